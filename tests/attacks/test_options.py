"""The options of every attack: what their domains hold, and what the rules between them, eps and the norm allow."""

from __future__ import annotations

import math

import pytest
from catalogue_nets import USABLE

from art_qplugins import ATTACKS, InputError, Threat
from art_qplugins.attacks.adaptive.scalings import SCALINGS
from art_qplugins.attacks.catalogue import Attack
from art_qplugins.attacks.catalogue.artq import KINDS
from art_qplugins.domains import Number, Option, domain_of
from art_qplugins.errors import shown
from art_qplugins.evaluation.cell import cell_id
from art_qplugins.quantizers.surrogates import SURROGATES
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.runner.plan import plan

#: In no domain of any option, whatever its default.
ODD = [
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    -1e308,
    10**400,
    -(10**400),
    2**64,
    -1e9,
    b"1",
    {},
    [math.nan],
    [[1]],
    object(),
]
OPTIONS = [(name, option) for name, row in USABLE.items() for option in row.options]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=map(":".join, OPTIONS))
def test_an_option_refuses_what_it_cannot_mean_and_takes_its_default(name, option):
    row, default = ATTACKS[name], ATTACKS[name].options[option].default
    assert row.resolve({option: default}) == row.defaults
    wrong = [
        *ODD,
        True,
        "x",
        *([] if default is None else [None]),
        *([[default]] if not isinstance(default, list) else [0.5]),
    ]
    for value in wrong:
        with pytest.raises(InputError, match=f"^{name}: option {option}: it is ") as caught:
            row.resolve({option: value})
        assert len(str(caught.value)) <= 300, shown(value)


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=map(":".join, OPTIONS))
def test_a_domain_says_more_than_the_type_of_the_default(name, option):
    domain = ATTACKS[name].options[option].domain
    assert domain != domain_of(ATTACKS[name].options[option].default)
    if isinstance(domain, Number):
        assert domain.high <= 1e7
        assert domain.low >= -1


#: Each of these gave a success and a robust accuracy that the attack at its defaults contradicts, or failed in the run.
SWITCHED_OFF = [
    *((name, {"rel_eps_step": math.nan}) for name, row in USABLE.items() if "rel_eps_step" in row.options),
    *((name, {"rel_eps_step": 0}) for name, row in USABLE.items() if "rel_eps_step" in row.options),
    *((name, {"num_random_init": -1}) for name, row in USABLE.items() if "num_random_init" in row.options),
    *((name, {"learning_rate": -1}) for name, row in USABLE.items() if "learning_rate" in row.options),
    *((name, {"initial_const": -1}) for name, row in USABLE.items() if "initial_const" in row.options),
    ("art:mifgsm", {"decay": math.nan}),
    ("art:cw-l2", {"learning_rate": math.nan}),
    ("art:cw-l0", {"initial_const": math.nan}),
    ("art:deepfool", {"overshoot": math.nan}),
    ("art:deepfool", {"nb_grads": 1}),  # the class itself, from which it is 0 away
    ("art:newtonfool", {"eta": math.nan}),
    ("art:uap", {"delta": 1}),  # content with an accuracy of 1
    ("art:cw-linf", {"const_factor": 1}),  # never ends
    ("torchattacks:cw", {"max_iter": 1}),  # tries the clean image
    ("torchattacks:eadl1", {"max_iter": 9}),  # divides by a tenth of it
    ("torchattacks:difgsm", {"resize_rate": 1}),  # nothing to draw
    ("torchattacks:pixle", {"restarts": 0}),
    ("foolbox:ddn", {"max_iter": 1}),  # tries the clean image
    ("foolbox:fmn", {"max_iter": 1}),
    ("foolbox:cw", {"max_iter": 1}),
    ("foolbox:gen-attack", {"population": 1}),  # no parents
    ("artq:bits", {"bits": []}),
    ("artq:joint", {"weights": []}),
    ("artq:eot", {"eot_iter": 0}),
    ("autoattack:rand", {"eot_iter": 0}),
    ("autoattack:square", {"n_queries": 0}),
]


@pytest.mark.parametrize(("name", "options"), SWITCHED_OFF, ids=shown)
def test_what_switches_an_attack_off_is_refused(name, options):
    (option,) = options
    with pytest.raises(InputError, match=f"^{name}: option {option}: it is "):
        ATTACKS[name].check(options, Threat(ATTACKS[name].norms[0], 1.0))


# --- Relations


@pytest.mark.parametrize(
    ("name", "threat", "good", "bad", "words"),
    [
        (
            "art:pgd",
            Threat("Linf", 0.1),
            {"max_iter": 10, "rel_eps_step": 0.01},
            {"max_iter": 10, "rel_eps_step": 0.009},
            "max_iter is 10 and rel_eps_step is 0.009; give steps that are together at least a tenth of eps long",
        ),
        (
            "art:cw-linf",
            Threat("Linf", 0.1),
            {"initial_const": 1.0, "largest_const": 2.0},
            {"initial_const": 2.0, "largest_const": 2.0},
            "initial_const is 2.0 and largest_const is 2.0; give a largest_const above initial_const",
        ),
        (
            "art:hop-skip-jump",
            Threat("L2", 1.0),
            {"init_eval": 50, "max_eval": 50},
            {"init_eval": 51, "max_eval": 50},
            "give an init_eval of at most max_eval",
        ),
        (
            "foolbox:hop-skip-jump",
            Threat("L2", 1.0),
            {"initial_gradient_eval_steps": 50, "max_gradient_eval_steps": 50},
            {"initial_gradient_eval_steps": 51, "max_gradient_eval_steps": 50},
            "give initial_gradient_eval_steps of at most max_gradient_eval_steps",
        ),
        (
            "art:jsma",
            Threat("L0", 5),
            {"theta": -0.1},
            {"theta": 0.0},
            "give a theta of at least 0.01, or at most -0.01",
        ),
        (
            "foolbox:ddn",
            Threat("L2", 3.0),
            {"init_epsilon": 0.05},
            {"init_epsilon": 0.01},
            "give an init_epsilon that can grow to eps",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and ":" in value else "",
)
def test_settings_that_do_not_go_together_are_refused(name, threat, good, bad, words):
    ATTACKS[name].check(good, threat)
    with pytest.raises(InputError) as caught:
        ATTACKS[name].check(bad, threat)
    assert str(caught.value).startswith(f"{name}: ") and words in str(caught.value)


@pytest.mark.parametrize("name", USABLE)
def test_the_defaults_go_together_at_usual_eps(name):
    row = ATTACKS[name]
    for norm, several in {"Linf": (1 / 255, 0.5), "L2": (0.1, 10.0), "L1": (1.0, 100.0), "L0": (1, 100)}.items():
        for eps in several if norm in row.norms else ():
            assert row.check({}, Threat(norm, eps), 10) == row.defaults


@pytest.mark.parametrize("eps", [0.5, 1.5, 0])
def test_an_eps_in_l0_is_a_whole_number_of_pixels(eps):
    for name, row in USABLE.items():
        if "L0" in row.norms and name != "artq:clean":
            row.check({}, Threat("L0", 2.0))
            with pytest.raises(InputError, match=f"eps is {eps}(; L0 counts| pixels in L0).* whole number"):
                row.check({}, Threat("L0", eps))
    ATTACKS["artq:clean"].check({}, Threat("L0", 0))


@pytest.mark.parametrize(
    ("name", "options", "threat", "words"),
    [
        (
            "art:simba",
            {"freq_dim": 9},
            Threat("L2", 1.0),
            "freq_dim is 9 and side is 8; give a freq_dim of at most the side",
        ),
        ("art:zoo", {"nb_parallel": 65}, Threat("L2", 1.0), "nb_parallel is 65 and values is 64"),
        ("torchattacks:onepixel", {}, Threat("L0", 65), "eps is 65 pixels in L0; give a whole number from 1 to 64"),
    ],
)
def test_settings_fit_the_images_where_these_are_known(name, options, threat, words):
    row = ATTACKS[name]
    row.check(options, threat)
    row.check(options, threat, shape=(1, 9, 9))
    with pytest.raises(InputError) as caught:
        row.check(options, threat, shape=(1, 8, 8))
    assert words in str(caught.value)


def test_the_norm_and_the_number_of_classes_are_checked_with_the_options():
    with pytest.raises(InputError, match="art:bim has no norm L2; it has Linf"):
        ATTACKS["art:bim"].check({}, Threat("L2", 1.0))
    ATTACKS["autoattack:apgd-t"].check({}, Threat("L2", 1.0))
    with pytest.raises(InputError, match="its DLR loss needs 4 classes and the model has 3"):
        ATTACKS["autoattack:apgd-t"].check({}, Threat("L2", 1.0), 3)


def test_choices_are_those_that_there_are():
    assert {
        "as-is",
        *SURROGATES,
        "repaired",
        "bridged",
        "bypassed",
        "clipped-sign",
        "unrolled",
        "inner",
        "inner-alone",
        "smoothed",
    } == set(KINDS)
    for scaling in SCALINGS:
        ATTACKS["artq:rescaled"].resolve({"scaling": scaling})


# --- Ways in


def recipe(attack, norm="Linf", at=0.1, **more):
    return {
        "name": "r",
        "data": {"name": "digits"},
        "threat": {"norm": norm, "eps": [at]},
        "models": [{"name": "m", "quantize": {"activation_bits": 2}}],
        "attacks": [{"id": attack, **more}],
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (recipe("art:pgd", options={"rel_eps_step": math.nan}), "option rel_eps_step: it is nan; give a number"),
        (recipe("art:pgd", options={"rel_eps_step": 0.001}), "give steps that are together at least a tenth of eps"),
        (recipe("art:pgd", options={"num_random_init": -1}), "option num_random_init: it is -1"),
        (recipe("torchattacks:onepixel", "L0", 0.5), "threat.eps: it is 0.5 and in L0 it counts pixels"),
        (recipe("torchattacks:onepixel", "L0", 1, eps=[1, 2.5]), "eps is 2.5; L0 counts pixels"),
        (
            {**recipe("art:pgd"), "transfer": {"attack": "art:pgd", "options": {"rel_eps_step": 0}}},
            "transfer: art:pgd: option rel_eps_step: it is 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_recipe_is_refused_before_it_runs(given, words):
    with pytest.raises(InputError) as caught:
        parse_recipe(given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("artq:surrogates", "kinds", (["leaky"], ["leaky", "tanh"])),
        ("artq:bits", "bits", ([2], [2, 4])),
        ("artq:joint", "weights", ([0.5], [0.25, 0.5])),
    ],
)
def test_options_that_are_lists_are_planned_and_name_cells(name, option, values):
    given = recipe(name)
    given["attacks"] = [{"id": name, "options": {option: value}} for value in (*values, values[0])]
    _, cells = plan(parse_recipe(given))
    assert [cell.options.get(option) for cell in cells] == [None, *values]
    ids = {cell_id(cell, target="t", source="s", data="d", batch_size=8) for cell in cells}
    assert len(ids) == len(cells)


def test_a_row_of_another_package_with_bare_defaults_keeps_working():
    row = Attack(
        name="theirs:one", upstream="x", help="x", norms=("Linf",), options={"theta": 30.0, "max_iter": 5, "k": 3}
    )
    assert row.resolve({"theta": -90, "max_iter": 10**6, "k": -1}) == {"theta": -90.0, "max_iter": 10**6, "k": -1}
    for options in ({"max_iter": 0}, {"theta": math.nan}, {"k": 1.5}):
        with pytest.raises(InputError, match="theirs:one: option"):
            row.resolve(options)
    own = Attack(
        name="t", upstream="x", help="x", norms=("Linf",), options={"max_iter": Option(0, Number(0, 3, whole=True))}
    )
    assert own.resolve({"max_iter": 0}) == {"max_iter": 0}


def test_a_whole_number_where_a_fraction_belongs_is_the_same_setting():
    """Libraries may refuse 1 for 1.0, and both are one cell."""
    found = ATTACKS["art:mifgsm"].resolve({"decay": 1})
    assert found == ATTACKS["art:mifgsm"].defaults and type(found["decay"]) is float
