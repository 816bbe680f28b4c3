"""The attacks: one contract over every registered id, and an oracle where the worst case is known in closed form."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import ATTACKS, InputError, Threat
from art_qplugins.attacks.craft import craft
from art_qplugins.attacks.views import LogitScale, MarginLoss, median_gap
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.score import check_legal
from art_qplugins.gradients.fidelity import logit_margin
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.quantizers import quantize

N = 6
EPS = {"Linf": 0.2, "L2": 0.8, "L1": 3.0, "L0": 3.0}
# Enough to run the code; whether the attacks are strong is the oracle's business.
CHEAP = {"max_iter": 4, "n_queries": 30, "eot_iter": 2, "directions": 2}
#: Ours and AutoAttack's, and the usual ones of the libraries; the contract of all rows is in test_registry.py.
CORE = [n for n in ATTACKS if n.split(":")[0] in ("autoattack", "artq") and n != "autoattack:plus"]
CORE += ["art:fgsm", "art:bim", "art:pgd", "art:mifgsm", "art:square"]
CORE += ["torchattacks:fgsm", "torchattacks:pgd", "torchattacks:mifgsm", "torchattacks:eotpgd"]
CASES = [(name, norm) for name in CORE for norm in ATTACKS[name].norms]


def cheap(name):
    return {option: CHEAP[option] for option in ATTACKS[name].options if option in CHEAP}


#: Attacks that need something to undo.
QUANTIZED = ("artq:full-precision", "artq:bits", "artq:joint")


def network(stochastic=False, quantized=False):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    if stochastic:
        return StochasticEnsemble(quantize(net, activation_bits=3, clip=2.0, alpha=2.0), 2).eval()
    return quantize(net, activation_bits=3, clip=2.0).eval() if quantized else net.eval()


def subject(name):
    """A small model of the kind that the attack is for, images, and the labels that the model itself gives them."""
    model = network(ATTACKS[name].models == "stochastic", name in QUANTIZED)
    x = torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = model(x).argmax(1)
    return classifier(model), x, y


def classifier(model, shape=(1, 8, 8), nb_classes=10):
    return QuantizedClassifier(model, nn.CrossEntropyLoss(), shape, nb_classes, device_type="cpu")


# --- The contract


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_images_are_legal_and_the_same_seed_gives_the_same_ones(name, norm):
    estimator, x, y = subject(name)
    before = x.clone(), y.clone()
    threat = Threat(norm, EPS[norm])
    first = craft(estimator, name, x, y, threat=threat, options=cheap(name), seed=7, batch_size=4)
    assert first.x_adv.dtype == torch.float32
    assert not first.x_adv.requires_grad
    check_legal(x, first.x_adv, threat)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert first.options.keys() == ATTACKS[name].options.keys()

    torch.manual_seed(99)  # only the seed that is passed counts
    np.random.seed(99)
    random.seed(99)
    again = craft(estimator, name, x, y, threat=threat, options=cheap(name), seed=7, batch_size=4)
    assert torch.equal(first.x_adv, again.x_adv)
    assert (first.forward_samples, first.backward_samples) == (again.forward_samples, again.backward_samples)


@pytest.mark.parametrize("name", [n for n in CORE if ATTACKS[n].knowledge == "white-box"])
def test_a_white_box_attack_changes_some_answers(name):
    estimator, x, y = subject(name)
    crafted = craft(estimator, name, x, y, threat=Threat("Linf", 0.3), options=cheap(name))
    with torch.no_grad():
        assert (estimator.model(crafted.x_adv).argmax(1) != y).float().mean() > 0.5
    assert crafted.backward_samples > 0


@pytest.mark.parametrize("name", [n for n in CORE if ATTACKS[n].knowledge == "black-box"])
def test_a_black_box_attack_asks_for_no_gradient(name):
    estimator, x, y = subject(name)
    crafted = craft(estimator, name, x, y, threat=Threat("Linf", 0.1), options=cheap(name))
    assert crafted.backward_samples == 0
    assert (crafted.forward_samples > 0) == (name != "artq:clean")


class Fuse(nn.Module):
    """A network that raises at its n-th call."""

    def __init__(self, network, calls):
        super().__init__()
        self.network, self.left = network, calls

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the network's own failure")
        return self.network(x)


def everything(model):
    """The state that others change and do not put back."""
    return {
        "modes": [(name, m.training) for name, m in model.named_modules()],
        "requires_grad": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "grad": [p.grad is None for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
        "python": random.getstate(),
        "trace": sys.gettrace(),
        "grad_enabled": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        *((n, False) for n in CORE),
        *((n, True) for n in CORE if n != "artq:clean"),
    ],  # that one never calls the model
)
def test_nothing_global_is_left_changed(name, fails):
    estimator, x, y = subject(name)
    # Our own loop stops with success, which here comes early.
    calls = 0 if ATTACKS[name].one_step or name.startswith("artq:") else 3
    model = Fuse(estimator.model, calls).eval() if fails else estimator.model
    dropout = next(m for m in model.modules() if isinstance(m, nn.Dropout))
    dropout.train()  # Monte-Carlo dropout: train mode inside an eval root
    next(model.parameters()).requires_grad_(False)
    estimator = classifier(model)
    dropout.train()  # ART's constructor may have changed it; that is not the attack's doing
    torch.manual_seed(41)  # states that no seed of the attack's could bring about
    np.random.seed(42)
    random.seed(43)
    traced = sys.gettrace()

    def tracer(frame, event, argument):
        return None

    sys.settrace(tracer)
    try:
        before = everything(model)
        assert before["trace"] is tracer
        if fails:
            with pytest.raises(RuntimeError, match="the network's own failure"):
                craft(estimator, name, x, y, threat=Threat("Linf", 0.2), options=cheap(name))
        else:
            craft(estimator, name, x, y, threat=Threat("Linf", 0.2), options=cheap(name))
        after = everything(model)
    finally:
        sys.settrace(traced)
    for key, value in before.items():
        assert after[key] == value, key
    assert dropout.training and not model.training


def test_during_an_attack_the_whole_model_is_in_eval_mode_and_its_parameters_are_frozen():
    estimator, x, y = subject("art:pgd")
    model = estimator.model.train()
    seen = []
    model.register_forward_pre_hook(
        lambda *_: seen.append(
            (any(m.training for m in model.modules()), any(p.requires_grad for p in model.parameters()))
        )
    )
    craft(estimator, "art:pgd", x, y, threat=Threat("Linf", 0.1), options={"max_iter": 2})
    assert set(seen) == {(False, False)}
    assert model.training


@pytest.mark.parametrize(
    ("name", "options", "forward", "backward"),
    [
        ("art:fgsm", {}, N, N),
        ("art:pgd", {"max_iter": 5}, 7 * N, 5 * N),  # ART asks twice more for the success rate that it logs
        ("art:pgd", {"max_iter": 3}, 5 * N, 3 * N),
        ("torchattacks:fgsm", {}, N, N),
        ("torchattacks:pgd", {"max_iter": 5}, 5 * N, 5 * N),
        ("torchattacks:eotpgd", {"max_iter": 5, "eot_iter": 3}, 15 * N, 15 * N),
        ("artq:clean", {}, 0, 0),
    ],
)
def test_costs_are_counted_in_images(name, options, forward, backward):
    estimator, x, y = subject(name)
    crafted = craft(estimator, name, x, y, threat=Threat("Linf", 0.1), options=options, batch_size=4)
    assert (crafted.forward_samples, crafted.backward_samples) == (forward, backward)


def test_every_member_of_an_ensemble_is_counted():
    estimator, x, y = subject("autoattack:rand")
    crafted = craft(estimator, "art:fgsm", x, y, threat=Threat("Linf", 0.1))
    assert (crafted.forward_samples, crafted.backward_samples) == (2 * N, 2 * N)


def test_a_librarys_warning_becomes_a_note_of_the_cell(caplog):
    torch.manual_seed(0)
    estimator, x, _ = subject("autoattack:apgd-ce")
    two = nn.Sequential(estimator.model, nn.Softmax(1))  # AutoAttack warns of probabilities
    with torch.no_grad():
        y = two(x).argmax(1)
    crafted = craft(classifier(two), "autoattack:apgd-ce", x, y, threat=Threat("Linf", 0.01))
    assert any("softmax" in note.lower() or "probabilit" in note.lower() for note in crafted.notes), crafted.notes
    assert not caplog.records


# --- Oracle: z = W x + b, whose worst case is known in closed form


def linear(nb_classes, seed=0):
    """A linear classifier, and images so far from 0 and 1 that only the budget binds."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, nb_classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(nb_classes, 64, generator=generator))
        model[1].bias.copy_(torch.randn(nb_classes, generator=generator) * 0.1)
        x = torch.rand(40, 1, 8, 8, generator=generator) * 0.4 + 0.3
        y = model.eval()(x).argmax(1)
    return classifier(model, (1, 8, 8), nb_classes), x, y


def worst_margin(model, x, y, norm, eps):
    """min over the ball of z_y - max_{j != y} z_j: by duality, each difference falls by eps times its dual norm."""
    weight = model[1].weight.detach()
    with torch.no_grad():
        logits = model(x)
    dual = {"Linf": 1, "L2": 2}[norm]
    fall = eps * torch.linalg.vector_norm(weight[y][:, None] - weight[None], ord=dual, dim=2)
    margins = logits.gather(1, y[:, None]) - logits - fall
    return margins.scatter(1, y[:, None], torch.inf).amin(1)


def margin(model, x, y):
    with torch.no_grad():
        return logit_margin(model(x), y)


EXACT = ["art:fgsm", "art:bim", "art:pgd", "art:mifgsm", "artq:pgd-margin"]
EXACT += ["torchattacks:fgsm", "torchattacks:pgd", "torchattacks:mifgsm", "torchattacks:eotpgd"]


@pytest.mark.parametrize(("name", "norm"), [c for c in CASES if c[0] in EXACT and c[1] in ("Linf", "L2")])
def test_a_gradient_attack_reaches_the_exact_worst_case_of_a_linear_model(name, norm):
    estimator, x, y = linear(2)
    eps = {"Linf": 0.1, "L2": 0.25}[norm]
    # One step is the worst case itself; in Linf, 2.5 eps of steps reach the corner from any start in the ball. In L2 the
    # iterates turn towards the worst point by rel_eps_step a step, whatever the start.
    options = {"max_iter": 100, "rel_eps_step": 0.2} if norm == "L2" and not ATTACKS[name].one_step else {}
    crafted = craft(estimator, name, x, y, threat=Threat(norm, eps), options=options)
    worst = worst_margin(estimator.model, x, y, norm, eps)
    torch.testing.assert_close(margin(estimator.model, crafted.x_adv, y), worst, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("autoattack:apgd-t", "Linf"),
        ("autoattack:apgd-t", "L2"),
        ("autoattack:fab-t", "Linf"),
        ("autoattack:fab-t", "L2"),
        ("autoattack:standard", "Linf"),
    ],
)
def test_autoattack_breaks_what_can_be_broken_in_a_linear_model_and_nothing_else(name, norm):
    estimator, x, y = linear(10)
    eps = {"Linf": 0.06, "L2": 0.35}[norm]
    worst = worst_margin(estimator.model, x, y, norm, eps)
    crafted = craft(estimator, name, x, y, threat=Threat(norm, eps))
    broken = margin(estimator.model, crafted.x_adv, y) < 0
    clear = worst.abs() > 0.02
    assert 5 < int((worst < 0).sum()) < len(x) - 5  # the oracle says something of both kinds
    assert clear.float().mean() > 0.8
    assert torch.equal(broken[clear], (worst < 0)[clear])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_apgd_on_cross_entropy_is_exact_where_there_are_two_classes(norm):
    estimator, x, y = linear(2)
    eps = {"Linf": 0.02, "L2": 0.12}[norm]
    worst = worst_margin(estimator.model, x, y, norm, eps)
    crafted = craft(estimator, "autoattack:apgd-ce", x, y, threat=Threat(norm, eps))
    clear = worst.abs() > 0.02
    assert 5 < int((worst < 0).sum()) < len(x) - 5
    assert torch.equal((margin(estimator.model, crafted.x_adv, y) < 0)[clear], (worst < 0)[clear])


# The suites are made of the parts that are here.
@pytest.mark.parametrize(
    ("name", "norm"),
    [c for c in CASES if c[1] in ("Linf", "L2") and ATTACKS[c[0]].models == "any" and c[0] not in QUANTIZED],
)
def test_no_attack_gets_below_the_worst_case(name, norm):
    estimator, x, y = linear(10, seed=1)
    eps = {"Linf": 0.02, "L2": 0.08}[norm]
    crafted = craft(estimator, name, x, y, threat=Threat(norm, eps), options=cheap(name))
    assert (margin(estimator.model, crafted.x_adv, y) >= worst_margin(estimator.model, x, y, norm, eps) - 1e-4).all()


# --- Options and errors


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"attack_id": "art:pdg"}, ["unknown attack 'art:pdg'", "art:pgd"]),
        ({"attack_id": "pgd"}, ["unknown attack 'pgd'", "art:pgd"]),
        ({"attack_id": "torchattacks:autoattack"}, ["unknown attack 'torchattacks:autoattack'"]),
        ({"options": {"max_iters": 3}}, ["art:pgd", "'max_iters'", "did you mean 'max_iter'"]),
        ({"options": {"max_iter": "3"}}, ["art:pgd", "max_iter is '3'", "20"]),
        ({"options": {"max_iter": 2.5}}, ["max_iter is 2.5"]),
        ({"options": {"max_iter": True}}, ["max_iter is True"]),
        ({"threat": Threat("L0", 3)}, ["art:pgd has no norm L0", "Linf, L2"]),
    ],
)
def test_a_wrong_name_is_answered_with_its_neighbour(change, parts):
    estimator, x, y = subject("art:pgd")
    settings = {"attack_id": "art:pgd", "threat": Threat("Linf", 0.1), **change}
    with pytest.raises(InputError) as caught:
        craft(estimator, settings.pop("attack_id"), x, y, **settings)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("norm", "eps", "parts"),
    [
        ("linf", 0.1, ["'linf'", "did you mean 'Linf'"]),
        ("Linf", -0.1, ["-0.1", "8/255"]),
        ("Linf", float("nan"), ["nan"]),
        ("Linf", float("inf"), ["inf"]),
        ("Linf", "8/255", ["'8/255'", "give a finite number"]),
    ],
)
def test_a_threat_is_checked_when_it_is_made(norm, eps, parts):
    with pytest.raises(InputError) as caught:
        Threat(norm, eps)
    assert all(part in str(caught.value) for part in parts)


def test_every_entry_loads_and_says_what_it_is():
    for name, attack in ATTACKS.items():
        assert attack.name == name
        assert callable(attack.load())
        assert attack.help and len(attack.help) < 160
        assert name.split(":")[0] in ("art", "torchattacks", "autoattack", "foolbox", "artq")
    assert "art:autoattack" not in ATTACKS  # another algorithm under the published one's name


def test_rel_eps_step_is_a_fraction_of_eps():
    estimator, x, y = linear(2)
    options = {"max_iter": 1, "rel_eps_step": 0.25}
    for name in ("art:bim", "art:mifgsm"):
        crafted = craft(estimator, name, x, y, threat=Threat("Linf", 0.08), options=options)
        torch.testing.assert_close((crafted.x_adv - x).abs(), torch.full_like(x, 0.02), atol=1e-6, rtol=0)


def test_a_suite_is_run_with_its_published_settings(monkeypatch):
    import pyautoattack

    made = []

    class Spy(pyautoattack.AutoAttack):
        def run_standard_evaluation(self, x, y, **settings):
            made.append(self)
            return x.clone(), y

    monkeypatch.setattr(pyautoattack, "AutoAttack", Spy)
    for name in ("autoattack:standard", "autoattack:rand", "autoattack:fab-t"):
        estimator, x, y = subject(name)
        craft(estimator, name, x, y, threat=Threat("Linf", 0.1), seed=11)
    standard, rand, part = made
    assert standard.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (standard.apgd.n_iter, standard.apgd_targeted.n_target_classes, standard.square.n_queries) == (100, 9, 5000)
    assert (standard.seed, standard.epsilon, standard.norm, standard.version) == (11, 0.1, "Linf", "standard")
    assert (rand.attacks_to_run, rand.apgd.eot_iter, rand.version) == (["apgd-ce", "apgd-dlr"], 20, "rand")
    assert part.attacks_to_run == ["fab-t"]


# --- Views


def test_a_temperature_changes_no_answer_and_divides_the_logits():
    model = network()
    x = torch.rand(50, 1, 8, 8)
    with torch.no_grad():
        logits, scaled = model(x), LogitScale(model, 1e4)(x)
    assert torch.equal(logits.argmax(1), scaled.argmax(1))
    torch.testing.assert_close(scaled * 1e4, logits)


def test_the_attack_sees_the_logits_divided_and_the_model_stays_as_it_was():
    """On a model with logits x 1e4 cross-entropy has no gradient; divided to a gap of 1 it has."""
    estimator, x, y = linear(2)
    with torch.no_grad():
        estimator.model[1].weight *= 1e4
        estimator.model[1].bias *= 1e4
    threat = Threat("Linf", 0.1)
    stuck = craft(estimator, "art:fgsm", x, y, threat=threat)
    freed = craft(estimator, "art:fgsm", x, y, threat=threat, gap=1.0)
    assert (stuck.x_adv == x).flatten(1).all(1).float().mean() > 0.5
    torch.testing.assert_close(
        margin(estimator.model, freed.x_adv, y) / 1e4,
        worst_margin(estimator.model, x, y, "Linf", 0.1) / 1e4,
        atol=2e-5,
        rtol=0,
    )
    assert freed.options["temperature"] == pytest.approx(median_gap(estimator.model, x))
    fixed = craft(estimator, "art:fgsm", x, y, threat=threat, temperature=freed.options["temperature"])
    assert torch.equal(fixed.x_adv, freed.x_adv)


def test_median_gap_is_the_median_distance_of_the_top_two():
    class Table(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, 1.0, 5.0], [7.0, 7.5, 1.0], [-3.0, -1.0, -9.0]])

    assert median_gap(Table(), torch.zeros(3, 1)) == 2.0  # of 4, 0.5 and 2


def test_median_gap_leaves_a_stochastic_models_stream_alone():
    model = network(stochastic=True)
    x = torch.rand(5, 1, 8, 8)
    state = model.next_draw
    assert median_gap(model, x, seed=3) == median_gap(model, x, seed=3)
    assert model.next_draw == state


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_margin_loss_has_a_gradient_that_no_scale_can_saturate(reduction):
    for scale in (1.0, 1e6):
        logits = (torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 9.0]]) * scale).requires_grad_()
        loss = MarginLoss()
        loss.reduction = reduction
        value = loss(logits, torch.tensor([0, 1]))
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        expected = torch.tensor([[-1.0, 0.0, 1.0], [0.0, -1.0, 1.0]]) / (2 if reduction == "mean" else 1)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(value.sum(), torch.tensor(3.0 * scale / (2 if reduction == "mean" else 1)))


def test_logit_margin_is_negative_exactly_where_the_answer_is_wrong():
    logits = torch.randn(200, 7)
    y = torch.randint(0, 7, (200,))
    assert torch.equal(logit_margin(logits, y) > 0, logits.argmax(1) == y)


def test_autoattack_takes_as_many_targets_as_there_are_classes():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5))
    estimator = QuantizedClassifier(network, torch.nn.CrossEntropyLoss(), (1, 4, 4), 5)
    x = torch.rand(6, 1, 4, 4)
    y = network(x).argmax(1)
    for part in ("autoattack:apgd-t", "autoattack:fab-t"):
        x_adv = craft(estimator, part, x, y, threat=Threat("Linf", 0.5)).x_adv
        assert (network(x_adv).argmax(1) != y).float().mean() > 0.5


@pytest.mark.parametrize(
    ("name", "least"), [("autoattack:standard", 4), ("autoattack:apgd-t", 4), ("autoattack:rand", 3)]
)
def test_too_few_classes_for_dlr_are_said_in_one_line(name, least):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, least - 1))
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match=f"^{name}: its DLR loss needs {least} classes and the model has {least - 1}"):
        craft(classifier(model, nb_classes=least - 1), name, x, y, threat=Threat("Linf", 0.1))


def test_the_median_gap_is_measured_in_batches():
    seen, model = [], nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    x = torch.rand(40, 1, 8, 8)
    assert median_gap(model, x, batch_size=16) == pytest.approx(median_gap(model, x))
    assert seen == [16, 16, 8, 40]
