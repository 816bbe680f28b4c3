"""Defences in one list: every two of them train together, beside a third, in recipes, in ``train`` and in ART's ``fit``."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from art_qplugins import InputError, QuantizedClassifier, quantize, train
from art_qplugins.defences import DEFENCES
from art_qplugins.defences.adversarial import AdversarialTraining
from art_qplugins.defences.base import Defence
from art_qplugins.defences.noise import GaussianNoise
from art_qplugins.defences.squeezing import FeatureSqueezing
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.filtered import SqueezedNetwork
from art_qplugins.models.mixture import Mixture
from art_qplugins.models.wide_resnet import WideResNet
from art_qplugins.recipes.build import build_models
from art_qplugins.recipes.describe import describe, training_warnings
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.training.batches import loss_of

#: The options of a quick step.
QUICK = {
    "adversarial-training": {"steps": 1},
    "trades": {"steps": 1},
    "feedback-learning": {"directions": 4, "nearest": 2},
}


def lists_of_three():
    """Few lists that hold every two defences together."""
    left, found = set(itertools.combinations(DEFENCES, 2)), []
    pairs = {three: set(itertools.combinations(three, 2)) for three in itertools.combinations(DEFENCES, 3)}
    while left:
        found.append(max(pairs, key=lambda three: len(pairs[three] & left)))
        left -= pairs[found[-1]]
    return found


THREE = lists_of_three()


@pytest.fixture(scope="module")
def few(digits):
    data = digits[0].take(16, seed=0)
    return data.x(), data.y()


def made(*names):
    return [DEFENCES[name].load()(**DEFENCES[name].resolve(QUICK.get(name, {}))) for name in names]


def network(*defences, stochastic=True, members=1):
    """A network that each defence finds what it needs in."""
    torch.manual_seed(0)
    models = [WideResNet((1, 8, 8), 10, depth=10, widen_factor=1, aggregation=True) for _ in range(members)]
    model = models[0] if members == 1 else Mixture(models)
    if stochastic:
        model = quantize(model, activation_bits=2, alpha=2.0, clip=2.0)
    for defence in defences:
        model = defence.network(model)
    return model


@pytest.fixture(scope="module")
def trained(few):
    """The network after it has learned the few images, from which feedback learning starts."""
    return train(network(), few, epochs=15, batch_size=8, weight_decay=0.0, learning_rate=0.05).state_dict()


@pytest.mark.parametrize("names", THREE, ids=" ".join)
def test_every_two_train_together_beside_a_third(names, few, trained):
    defences, members = made(*names), 2 if "adaptive-diversity" in names else 1
    model = network(members=members)
    if "feedback-learning" in names:
        for member in model.members if members > 1 else [model]:
            member.load_state_dict(trained)
    for defence in defences:
        model = defence.network(model)
    before = copy.deepcopy(model.state_dict())
    hooks = sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())
    train(model, few, defences, epochs=1, batch_size=8, weight_decay=0.0)  # two steps
    assert all(value.isfinite().all() for value in model.state_dict().values())
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) > len(before) / 4
    assert not any(m.training for m in model.modules())
    assert sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()) == hooks


def test_the_loss_is_the_sum_of_its_parts(few):
    """Each alone adds what it adds beside the others, where none changes the images."""
    names = ["orthogonality", "mutual-information", "bin-spacing", "trades"]
    values = {}
    for chosen in ([], *([name] for name in names), names, names[::-1]):
        defences = made(*chosen)
        model = network().train()
        for defence in defences:
            defence.start(model)
        torch.manual_seed(1)
        values[tuple(chosen)] = loss_of(model, nn.functional.cross_entropy, defences, few).item()
        for defence in defences:
            defence.finish(model)
    parts = sum(values[(name,)] - values[()] for name in names)
    assert values[tuple(names)] == pytest.approx(values[()] + parts, rel=1e-5)
    assert values[tuple(names[::-1])] == pytest.approx(values[tuple(names)], rel=1e-6)


def test_images_pass_the_defences_in_their_order(few):
    model, seen = network(stochastic=False).train(), []
    model.conv.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    defences = [GaussianNoise(sigma=0.3), AdversarialTraining("fgsm", eps=0.01)]
    torch.manual_seed(1)
    loss_of(model, nn.functional.cross_entropy, defences, few)
    torch.manual_seed(1)
    noisy = defences[0].images(model, *few)
    assert torch.equal(seen[0], noisy)  # FGSM's gradient is taken at the noisy image
    assert (seen[1] - noisy).abs().max() <= 0.01 + 1e-6 and not torch.equal(seen[1], noisy)


@pytest.mark.parametrize("name", DEFENCES)
def test_images_have_no_gradient_and_leave_the_network_as_it_is(name, few):
    (defence,) = made(name)
    model = network(defence).train()
    model.requires_grad_(True)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = few[0].clone()
    found = defence.images(model, x, few[1])
    assert found.shape == x.shape and found.dtype == x.dtype and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1 and torch.equal(x, few[0])
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", DEFENCES)
def test_what_a_defence_says_of_itself_is_in_its_range(name):
    (defence,) = made(name)
    assert isinstance(defence, Defence)
    assert defence.threat() is None or 0 < defence.threat() <= 1
    assert all(passes >= 0 for passes in defence.passes())
    assert DEFENCES[name].help.isprintable() and len(DEFENCES[name].help) < 120


# --- A part of the network


def recipe(*models):
    return parse_recipe(
        {
            "name": "t",
            "data": {"name": "digits"},
            "threat": {"eps": ["8/255"]},
            "models": list(models),
            "attacks": [{"id": "art:fgsm"}],
        }
    )


def small(name, *defences, epochs=1, **more):
    architecture = {"name": "convnet", "options": {"width": 2}}
    train = {"epochs": epochs, "weight_decay": 0.0}
    return {"name": name, "architecture": architecture, "train": train, "defences": list(defences), **more}


def built(folder, digits, *models):
    return build_models(recipe(*models), digits[0].take(64, seed=0), folder, device=torch.device("cpu"))


SQUEEZING = {"name": "feature-squeezing", "options": {"bits": 4}}
OTHERS = ({"name": "adversarial-training", "options": {"eps": "16/255", "steps": 1}}, {"name": "orthogonality"})


@pytest.mark.parametrize(
    "quantized",
    [
        {},
        {"activation_bits": 3},
        {"weight_bits": 3},
        {"activation_bits": 2, "alpha": 2.0},
        {"weight_bits": 4, "mu": 5.0},
    ],
    ids=str,
)
def test_a_recipe_trains_and_loads_the_squeezed_network(quantized, tmp_path, digits):
    model = small("a", *OTHERS, SQUEEZING, quantize=quantized)
    trained = built(tmp_path, digits, model)["a"]
    assert isinstance(trained, SqueezedNetwork) and (trained.bits, trained.window) == (4, 2)
    x = digits[1].x()[:5]
    for again in (
        built(tmp_path, digits, model),
        built(tmp_path, digits, model | {"checkpoint": str(next(tmp_path.glob("*.safetensors")))}),
    ):
        assert isinstance(again["a"], SqueezedNetwork)
        assert all(torch.equal(v, trained.state_dict()[k]) for k, v in again["a"].state_dict().items())
        assert again["a"](x).shape == (5, 10)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_base_may_be_with_or_without_the_filter(tmp_path, digits):
    models = built(
        tmp_path,
        digits,
        small("plain"),
        small("squeezed", SQUEEZING, base="plain", epochs=0),
        small("again", base="squeezed", epochs=0),
        small("other", SQUEEZING | {"options": {"window": 3}}, base="squeezed", epochs=0, quantize={"weight_bits": 8}),
    )
    plain = models["plain"].state_dict()
    for name in ("squeezed", "again"):
        network = models[name].network if name == "squeezed" else models[name]
        assert isinstance(network, ConvNet)
        assert all(torch.equal(value, plain[key]) for key, value in network.state_dict().items())
    assert models["other"].window == 3
    assert torch.equal(models["other"].network.fc1.bias, plain["fc1.bias"])


def test_a_checkpoint_of_the_plain_network_is_not_that_of_the_squeezed(tmp_path, digits):
    built(tmp_path, digits, small("plain", epochs=0))
    file = str(next(tmp_path.glob("*.safetensors")))
    with pytest.raises(InputError, match=r"another model \(defences\.feature-squeezing is not set there"):
        built(tmp_path, digits, small("squeezed", SQUEEZING, checkpoint=file))


def test_the_defences_are_described_with_their_options():
    settings = recipe(small("a", *OTHERS, SQUEEZING)).models[0]
    line = describe(settings)
    assert "adversarial-training (method = pgd, eps = 0.0627451, steps = 1, distribution = fixed" in line
    assert "feature-squeezing (bits = 4, window = 2)" in line and "None" not in line
    assert training_warnings(settings) == []


@pytest.mark.parametrize(("defences", "warns"), [([SQUEEZING], False), ([{"name": "orthogonality"}], True)])
def test_a_filter_has_its_effect_without_training(defences, warns):
    from art_qplugins.recipes.facts import idle

    assert ("defences" in idle(small("a", *defences, epochs=0))) == warns


def test_training_without_the_filter_is_refused_in_one_line(few):
    says = r"^defence 'feature-squeezing' is a part of the network[^\n]*SqueezedNetwork\(model, bits=5, window=2\)"
    with pytest.raises(InputError, match=says):
        train(network(), few, [FeatureSqueezing()], epochs=1)
    with pytest.raises(InputError, match=says):
        train(SqueezedNetwork(network(), bits=3), few, [FeatureSqueezing()], epochs=1)
    module = network(stochastic=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    estimator = QuantizedClassifier(
        module,
        nn.CrossEntropyLoss(),
        (1, 8, 8),
        10,
        optimizer,
        device_type="cpu",
        training_defences=[FeatureSqueezing()],
    )
    with pytest.raises(InputError, match=says):
        estimator.fit(few[0].numpy(), few[1].numpy(), nb_epochs=1)


@pytest.mark.parametrize(
    ("options", "defences", "epochs", "warns"),
    [
        ({"aggregation": True}, [], 1, True),
        ({"aggregation": True}, [{"name": "convex-aggregation"}], 1, False),
        ({"aggregation": True}, [], 0, False),
        ({}, [], 1, False),
    ],
)
def test_aggregation_without_its_defence_is_a_warning(options, defences, epochs, warns):
    settings = recipe(
        {
            "name": "a",
            "architecture": {"name": "resnet8", "options": {"width": 2, **options}},
            "defences": defences,
            "train": {"epochs": epochs},
        }
    ).models[0]
    found = training_warnings(settings)
    assert bool(found) == warns and all("convex-aggregation" in line for line in found)
