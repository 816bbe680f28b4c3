"""Diagnosed from Python: real models whose truth is known, what proves it, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import art_qplugins
from art_qplugins import InputError, QuantizedClassifier, Threat, diagnose

N = 200


class Scaled(nn.Module):
    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return self.network(x) * self.factor


class _Killed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad)


class GradientKiller(Scaled):
    """The same answers, and a gradient of exactly zero."""

    def forward(self, x):
        return self.network(_Killed.apply(x))


class Rounding(Scaled):
    """Pixels rounded to five levels, whose true gradient is zero almost everywhere."""

    def forward(self, x):
        return self.network((x * 4).round() / 4)


class Detached(Scaled):
    def forward(self, x):
        return self.network(x.detach())


@pytest.fixture(scope="module")
def images(digits):
    test = digits[1].take(N, seed=0)
    return test.x(), test.y()


def classifier(model):
    return QuantizedClassifier(model.eval(), nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")


@pytest.fixture(scope="module")
def honest(fp32, images):
    return diagnose(classifier(fp32), *images, Threat("Linf", 0.15))


def test_a_plain_network_is_not_accused(honest):
    assert honest.verdict == "NOT_REFUTED"
    assert not [f.id for f in honest.findings if f.fired and f.class_ in "MV"]
    assert honest.corrected_accuracy <= honest.claimed_accuracy < honest.corrected_accuracy + 0.12


def test_mu_law_masks_and_its_corrected_number_is_that_of_the_network_it_hides(mu_law, images, honest):
    found = diagnose(classifier(mu_law), *images, Threat("Linf", 0.15))
    assert (found.verdict, found.claim.status) == ("MASKED", "OVERSTATED")
    assert found.claimed_accuracy > honest.claimed_accuracy + 0.2
    assert abs(found.corrected_accuracy - honest.corrected_accuracy) < 0.08
    assert {"attack-gap", "logit-scale", "loss-underflow", "large-logits"} <= {f.id for f in found.findings if f.fired}


def test_logits_times_ten_thousand_mask_and_hide_nothing_from_the_diagnosis(fp32, images, honest):
    found = diagnose(classifier(Scaled(fp32, 1e4)), *images, Threat("Linf", 0.15))
    assert found.verdict == "MASKED"
    assert found.claimed_accuracy > 0.95
    assert abs(found.corrected_accuracy - honest.corrected_accuracy) < 0.03
    assert {"zero-gradient", "loss-underflow", "large-logits", "logit-scale"} <= {
        f.id for f in found.findings if f.fired
    }


@pytest.mark.parametrize("model", [GradientKiller, Rounding])
def test_a_blocked_gradient_is_found_out_and_repaired(model, fp32, images):
    found = diagnose(classifier(model(fp32, None)), *images, Threat("Linf", 0.15))
    assert found.verdict == "MASKED"
    assert {"surrogate-gradient", "zero-gradient", "blocking-operation", "unfaithful-gradient"} <= {
        f.id for f in found.findings if f.fired
    }
    assert found.claimed_accuracy > 0.95 and found.corrected_accuracy < 0.2
    assert found.run.models[0].layer.op in ("_KilledBackward", "RoundBackward0")


def test_a_model_that_detaches_its_input_has_no_number(fp32, images):
    found = diagnose(classifier(Detached(fp32, None)), *images, Threat("Linf", 0.15))
    assert (found.verdict, found.claimed_accuracy) == ("INVALID", None)
    assert "no-gradient" in {f.id for f in found.findings if f.fired}
    assert found.run.models[0].clean_accuracy > 0.95


def test_a_stochastic_network_that_is_attacked_through_its_average_is_not_accused(stochastic, images):
    x, y = images
    found = diagnose(classifier(stochastic), x[:100], y[:100], Threat("Linf", 0.15))
    assert found.verdict == "NOT_REFUTED"
    assert not {"zero-gradient", "loss-underflow", "large-logits", "logit-scale"} & {
        f.id for f in found.findings if f.fired
    }


def test_the_images_that_prove_it_can_be_replayed(mu_law, images):
    x, y = images
    found = diagnose(classifier(mu_law), x.numpy(), y.numpy(), threat=Threat("Linf", 0.15))
    x_adv = torch.from_numpy(found.x_adv)
    assert x_adv.shape == x.shape and x_adv.min() >= 0 and x_adv.max() <= 1
    assert (x_adv - x).abs().max() <= 0.15 + 1e-6
    with torch.no_grad():
        assert (mu_law(x_adv).argmax(1) == y).double().mean() == found.corrected_accuracy
    assert str(found).startswith("MASKED: ")


# --- evaluate() and diagnose() from Python


def test_a_plain_art_classifier_can_be_diagnosed(fp32, images, honest):
    from art.estimators.classification import PyTorchClassifier

    plain = PyTorchClassifier(fp32, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    found = diagnose(plain, *images, Threat("Linf", 0.15))
    assert (found.verdict, found.claimed_accuracy) == (honest.verdict, honest.claimed_accuracy)


def test_a_number_may_be_claimed(fp32, images):
    x, y = images
    found = diagnose(classifier(fp32), x, y, Threat("Linf", 0.15), claimed=0.9)
    assert (found.claim.status, found.claimed_accuracy) == ("OVERSTATED", 0.9)
    assert found.corrected_accuracy < 0.4


def test_evaluate_tells_models_apart_and_reuses_what_is_finished(fp32, mu_law, images, tmp_path):
    x, y = images[0][:30], images[1][:30]
    models = {"fp32": classifier(fp32), "mu": classifier(mu_law)}
    threats = [Threat("Linf", 0.1), Threat("Linf", 0.05)]
    run = art_qplugins.evaluate(models, (x, y), threats, ["art:fgsm", ("art:pgd", {"max_iter": 3})], out=tmp_path)
    assert [m.name for m in run.models] == ["fp32", "mu"]
    assert len(run.cells) == 2 * (1 + 2 * 2)
    assert [r.eps for r in run.models[0].robust] == [0.05, 0.1]
    for c in run.cells:
        assert run.x_adv(c).shape == (30, 1, 8, 8)
    assert "fp32" in str(run) and "Linf 0.05" in str(run) and "<pre>" in run._repr_html_()
    again = art_qplugins.evaluate(models, (x, y), threats, ["art:fgsm", ("art:pgd", {"max_iter": 3})], out=tmp_path)
    assert again.cells == run.cells  # the seconds too: nothing was computed


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"claimed": 56}, ["it is 56", "0.56"]),
        ({"claimed": "art:pdg"}, ["unknown attack 'art:pdg'", "art:pgd"]),
        ({"x": torch.rand(5, 1, 8, 8) * 255}, ["[0, 1]"]),
        ({"x": torch.rand(4, 1, 8, 8)}, ["4", "5"]),
        ({"y": torch.tensor([0, 1, 2, 3, 10])}, ["10"]),
        ({"estimator": nn.Linear(1, 1)}, ["Linear", "PyTorchClassifier"]),
    ],
)
def test_bad_arguments_are_one_line(change, parts, fp32):
    arguments = {"estimator": classifier(fp32), "x": torch.rand(5, 1, 8, 8), "y": torch.arange(5), **change}
    with pytest.raises(InputError) as caught:
        diagnose(**arguments)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_what_art_would_apply_outside_the_module_is_refused(fp32, images):
    from art.defences.postprocessor import ReverseSigmoid
    from art.estimators.classification import PyTorchClassifier

    for outside in ({"preprocessing": (0.5, 0.5)}, {"postprocessing_defences": ReverseSigmoid()}):
        plain = PyTorchClassifier(fp32, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu", **outside)
        with pytest.raises(InputError, match="move its pre- and postprocessing into the module"):
            diagnose(plain, *images)
