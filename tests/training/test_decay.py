"""Weight decay: one default, what it acts on, and where it cancels the orthogonality penalty."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import nn

import art_qplugins
from art_qplugins import quantize, train
from art_qplugins.defences.lipschitz import Orthogonality, stationary_singular_value
from art_qplugins.models.wide_resnet import WideResNet
from art_qplugins.recipes.build import build_models
from art_qplugins.recipes.describe import training_warnings
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.model import Training
from art_qplugins.training.decay import WEIGHT_DECAY, parameter_groups

IMAGES = torch.rand(20, 1, 8, 8), torch.arange(20) % 10


class Indifferent(nn.Module):
    """Its logits are 0 whatever its parameters are, so that cross-entropy pulls at none of them."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 0 * self.inner(x)


def recipe(weight_decay=None, **train):
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    return {
        "name": "decay",
        "data": {"name": "digits", "limit": 20},
        "threat": {"eps": [0.1]},
        "models": [
            {
                "name": "dq",
                "architecture": {"name": "convnet", "options": {"width": 4}},
                "defences": [{"name": "orthogonality", "options": {"beta": 2e-3}}],
                "train": {"epochs": 1, **decay, **train},
            }
        ],
        "attacks": [{"id": "art:fgsm"}],
    }


def test_python_and_recipes_share_a_default_that_leaves_the_penalty_its_force():
    defaults = {k: p.default for k, p in inspect.signature(train).parameters.items()}
    settings = Training()
    assert defaults["weight_decay"] == settings.weight_decay == WEIGHT_DECAY == 5e-4
    assert defaults["decay_norm_and_bias"] is settings.decay_norm_and_bias is True
    assert stationary_singular_value(Orthogonality().beta, WEIGHT_DECAY) > 0.9
    assert not any(training_warnings(model) for model in parse_recipe(recipe()).models)


@pytest.mark.parametrize(("beta", "weight_decay"), [(0.05, 0.0), (0.05, 0.02), (0.05, 0.05), (0.02, 0.03), (0.05, 0.2)])
def test_a_weight_comes_to_rest_where_penalty_and_decay_balance(beta, weight_decay):
    model = Indifferent(nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(
            model,
            IMAGES,
            [Orthogonality(beta)],
            epochs=400,
            batch_size=20,
            learning_rate=0.1,
            weight_decay=weight_decay,
        )
    expected = stationary_singular_value(beta, weight_decay)
    assert expected**2 == pytest.approx(max(0, 1 - weight_decay / (2 * beta)))
    found = torch.linalg.svdvals(model.inner[1].weight.detach())
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=0.02)
    assert bool(caught) == (expected == 0)


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
def test_decay_leaves_levels_and_weights_of_averages_alone(decay_norm_and_bias):
    network = WideResNet((1, 8, 8), 10, depth=10, widen_factor=1, aggregation=True)
    model = Indifferent(quantize(network, activation_bits=2, alpha=2.0, clip=2.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)  # decay cannot move what is 0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, IMAGES, epochs=1, batch_size=20, weight_decay=0.01, decay_norm_and_bias=decay_norm_and_bias)
    still = {name for name, p in model.named_parameters() if torch.equal(p.detach(), before[name])}
    own = {name for name in before if name.endswith((".add.a", ".offset", ".raw_spacing"))}
    small = {name for name, p in before.items() if p.ndim == 1}
    assert len(own) > 3 and len(small - own) > 3
    assert still == (own if decay_norm_and_bias else own | small)


def test_every_parameter_is_in_one_group_and_a_plain_network_has_one():
    plain = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    (group,) = parameter_groups(plain, 0.1)
    assert (group["weight_decay"], group["params"]) == (0.1, list(plain.parameters()))
    decaying, others = parameter_groups(plain, 0.1, decay_norm_and_bias=False)
    assert (decaying["params"], len(others["params"]), others["weight_decay"]) == ([plain[0].weight], 3, 0.0)


def test_the_switch_makes_another_checkpoint(tmp_path, digits):
    for on in (True, False, True):
        settings = parse_recipe(recipe(decay_norm_and_bias=on))
        build_models(settings, digits[0], tmp_path, device=torch.device("cpu"))
    assert len(list(tmp_path.glob("dq-*.safetensors"))) == 2


# --- Decay that cancels the penalty

WARNING = "weight decay 0.005 cancels the orthogonality penalty"


def test_python_warns_of_it_where_train_is_called():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.warns(UserWarning, match=rf"^{WARNING}: .* below 2 beta = 0\.004$") as caught:
        train(model, IMAGES, [Orthogonality(2e-3)], epochs=1, weight_decay=5e-3)
    assert caught[0].filename == __file__
    assert Orthogonality(2e-3).warning(4e-3) is not None
    assert "weakens" in Orthogonality(2e-3).warning(3.9e-3) and "to 0.16, not to 1" in Orthogonality(2e-3).warning(
        3.9e-3
    )
    assert Orthogonality(2e-3).warning(3e-3) is None  # to 0.5
    assert Orthogonality(0.0).warning(5e-4) is None  # switched off, as the control of a sweep


RECIPE = (
    'name = "decay"\ndata = { name = "digits" }\nthreat = { eps = [0.1] }\nattacks = [{ id = "art:fgsm" }]\n'
    '[[models]]\nname = "dq"\ndefences = [{ name = "orthogonality" }]\ntrain = { weight_decay = 5e-3 }\n'
)


def test_the_plan_warns_of_it(artq, tmp_path):
    path = tmp_path / "decay.toml"
    path.write_text(
        RECIPE + '[[models]]\nname = "later"\nbase = "dq"\ndefences = [{ name = "orthogonality" }]\n'
        "train = { weight_decay = 5e-3, epochs = 0 }\n"
    )
    status, out, _ = artq("run", path, "--dry-run")
    assert status == 0
    assert out.count(WARNING) == 1 and f"warning: dq: {WARNING}" in out
    assert "warning: later: defences has no effect, because train.epochs is 0" in out


def test_models_with_the_same_warning_share_a_line(artq, tmp_path):
    path = tmp_path / "seeds.toml"
    path.write_text(RECIPE + "[sweep]\nseed = [0, 1, 2]\n")
    status, out, _ = artq("run", path, "--dry-run")
    assert status == 0
    assert out.count(WARNING) == 1 and f"warning: dq-seed=0 and 2 more: {WARNING}" in out


def test_the_records_and_the_report_warn_of_it(tmp_path):
    with pytest.warns(UserWarning, match=WARNING):
        found = art_qplugins.run(recipe(5e-3), out=tmp_path)
    assert len(found.results.warnings) == 1
    again = art_qplugins.run(recipe(5e-3), out=tmp_path)  # trained before
    assert again.results.warnings == found.results.warnings
    for name in ("report.html", "results.md"):
        assert f"dq: {WARNING}" in (tmp_path / name).read_text(), name
