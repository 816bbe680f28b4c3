"""Recipes that would run and mean nothing, or could not run: each is refused in one line, before any work."""

from __future__ import annotations

import copy
import math
import time

import pytest

from art_qplugins.domains import LARGEST
from art_qplugins.errors import LONGEST, InputError
from art_qplugins.recipes.load import change, parse_recipe

GOOD = {
    "name": "small",
    "data": {"name": "digits"},
    "threat": {"norm": "Linf", "eps": [0.1]},
    "claim": {"attack": "art:pgd", "eps": 0.1},
    "models": [
        {"name": "a"},
        {"name": "b", "quantize": {"activation_bits": 2}},
        {"name": "c", "base": "a", "quantize": {"weight_bits": 3}, "train": {"epochs": 0}},
    ],
    "attacks": [{"id": "art:fgsm"}, {"id": "art:pgd"}],
}
DIGITS = 10**4999


def with_(*changes):
    """GOOD with ((key, ..., value), ...) set. Missing tables are added."""
    recipe = copy.deepcopy(GOOD)
    for *path, last, value in changes:
        place = recipe
        for key in path:
            place = place[key] if isinstance(place, list) else place.setdefault(key, {})
        place[last] = value
    return recipe


def refusal(given):
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        parse_recipe(given, where="r.toml")
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert message.startswith("r.toml: ") and message.isprintable() and len(message) <= LONGEST
    return message


# --- Numbers

WHOLE = [
    ("seed",),
    ("batch_size",),
    ("shard",),
    ("threads",),
    ("grid",),
    ("data", "limit"),
    ("data", "seed"),
    ("models", 0, "seed"),
    ("models", 0, "draws"),
    ("models", 0, "train", "epochs"),
    ("models", 0, "train", "batch_size"),
    ("models", 1, "quantize", "activation_bits"),
    ("models", 1, "quantize", "weight_bits"),
    ("models", 1, "quantize", "mu_layers"),
    ("diagnosis", "level"),
]
REAL = [
    ("threat", "eps", 0),
    ("claim", "eps"),
    ("claim", "accuracy"),
    ("models", 0, "train", "learning_rate"),
    ("models", 0, "train", "weight_decay"),
    ("models", 1, "quantize", "clip"),
    ("models", 1, "quantize", "mu"),
    ("models", 1, "quantize", "alpha"),
    ("budget", "gradients"),
    ("budget", "queries"),
    ("diagnosis", "budget"),
]
NO_NUMBERS = [math.nan, math.inf, -math.inf, 1e308, -1e308, 10**400, -DIGITS, DIGITS, -1, True, "a", [], {}]


@pytest.mark.parametrize("path", [*WHOLE, *REAL], ids=lambda path: ".".join(map(str, path)))
def test_a_number_is_finite_and_bounded(path):
    for value in NO_NUMBERS:
        assert f"{path[-1]}: " in refusal(with_((*path, value)))


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: ".".join(map(str, path)))
def test_a_whole_number_is_one(path):
    for value in (2.0, 1.5, "2", 2**64, 10**30):
        assert f"{path[-1]}: it is " in refusal(with_((*path, value)))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("threads",), 10**9, "threads: it is 1000000000; give a whole number from 1 to 1024"),
        (("seed",), 10**30, "above 9.223372037e+18; give a whole number of at least 0"),
        (("batch_size",), 2**64, "batch_size: it is 18446744073709551616, above 2147483647; give a whole number of"),
        (("models", 1, "quantize", "clip"), 1e308, "clip: it is 1e+308, above 1e+30; give a number above 0"),
        (("claim", "accuracy"), math.nan, "claim.accuracy: it is nan; give a number in [0, 1]"),
        (("claim", "accuracy"), 52, "claim.accuracy: it is 52; give a number in [0, 1]"),
        (("claim", "accuracy"), "0.5", "claim.accuracy: it is '0.5'; give a number in [0, 1]"),
        (("diagnose",), 1, "diagnose: it is 1; give true or false"),
        (("models", 0, "train", "decay_norm_and_bias"), "no", "decay_norm_and_bias: it is 'no'; give true or false"),
        (("threat", "eps"), ["1e999999999"], "threat.eps.0: it is inf, above 1e+30; give a number above 0"),
        (("threat", "eps"), ["1/1e999999999"], "threat.eps.0: it is 0.0; give a number above 0"),
        (("threat", "eps"), ["9" * 100_000], "threat.eps.0: it is inf"),
        (("threat", "eps"), ["-1"], "threat.eps.0: it is -1.0; give a number above 0"),
        (("threat", "eps"), ["nan"], "threat.eps.0: it is nan; give a number above 0"),
        (("threat", "eps"), ["1/2/3"], "'1/2/3' is not a number; write e.g. 0.1 or \"8/255\""),
        (("threat", "eps"), ["8/nan"], "threat.eps.0: it is nan"),
        (("threat", "eps"), list(range(1, 1002)), "threat.eps: list should have at most 1000 items"),
    ],
)
def test_the_words_for_a_number(path, value, expected):
    assert expected in refusal(with_((*path, value)))


def test_an_attack_on_quantizers_is_for_the_models_that_have_them():
    given = with_(("attacks", 0, {"id": "artq:bits", "models": ["b"]}))
    assert [m.name for m in parse_recipe(given).models][:2] == ["a", "b"]


def test_the_largest_numbers_are_accepted():
    given = with_(("models", 1, "quantize", "clip", LARGEST), ("seed", 2**63 - 1), ("threads", 1024))
    assert parse_recipe(given).seed == 2**63 - 1


# --- What is switched off, and what is there twice


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("attacks", 0, "eps", [])], "attacks.art:fgsm.eps: it is empty; give at least one, or leave it out"),
        ([("attacks", 0, "models", [])], "attacks.art:fgsm.models: it is empty"),
        ([("transfer", {"attack": "art:pgd", "models": []})], "transfer.models: it is empty"),
        ([("transfer", {"attack": "art:pgd", "eps": []})], "transfer.eps: it is empty"),
        ([("attacks", 0, {"suite": "quick", "models": []})], "attacks.quick.models: it is []; give a list of models"),
        ([("attacks", 0, {"suite": "quick", "models": ["a", "a"]})], "attacks.quick.models: a model is there twice"),
        ([("attacks", 0, {"suite": "quick", "eps": [0.1, 0.1]})], "eps: 0.1 is there twice"),
        ([("attacks", 0, "models", ["a", "a"])], "attacks.art:fgsm.models: 'a' is there twice; remove one"),
        ([("threat", "eps", [0.1, "0.1"])], "threat.eps: 0.1 is there twice; remove one"),
        ([("threat", "eps", ["8/255", 8 / 255])], "threat.eps: 0.03137254901960784 is there twice"),
        ([("attacks", 0, "source", "a"), ("models", [{"name": "a"}])], "its source 'a' is the only model that it att"),
        ([("attacks", 0, {"id": "art:fgsm", "source": "a", "models": ["a"]})], "its source 'a' is the only model"),
        ([("models", 1, "defences", [{"name": "orthogonality"}] * 2)], "models.b.defences: 'orthogonality' is there t"),
        ([("models", 2, "checkpoint", "c.safetensors")], "models.c: its weights come from its base or from its check"),
        ([("attacks", 0, "suite", "quick")], "attacks.quick: it has an id too, 'art:fgsm'; give the suite or the id"),
        (
            [("models", 1, "quantize", {"alpha": 2.0})],
            "models.b.quantize: alpha makes activations stochastic, and need",
        ),
        ([("attacks", 0, {"id": "artq:bits"})], "attacks.artq:bits: 'a' has no quantized activations that this attack"),
        ([("models", 1, "name", "A")], "models.A: only capital letters tell it from 'a'; rename one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_switches_something_off_is_refused(changes, expected):
    assert expected in refusal(with_(*changes))


@pytest.mark.parametrize(
    ("threat", "expected"),
    [
        ({"eps": [8]}, 'threat.eps: it is 8 and pixels are in [0, 1]; give at most 1, e.g. "8/255"'),
        ({"eps": [0.1, 1.001]}, "threat.eps: it is 1.001 and pixels"),
        ({"norm": "L0", "eps": [0.5]}, "threat.eps: it is 0.5 and in L0 it counts pixels; give at least 1"),
    ],
)
def test_an_eps_that_allows_all_or_nothing_is_refused(threat, expected):
    recipe = with_(("threat", threat))
    del recipe["claim"]
    assert expected in refusal(recipe)
    elsewhere = with_(("attacks", 0, "eps", [8]), ("transfer", {"attack": "art:pgd"}))
    assert 'attacks.art:fgsm.eps: it is 8 and pixels are in [0, 1]; give at most 1, e.g. "8/255"' in refusal(elsewhere)
    assert parse_recipe(with_(("threat", "eps", [0.1, 1]))).threat.eps == [0.1, 1.0]


# --- Names and tables of any kind

ODD_NAMES = ["a\0b", "a\nb", "a\x1b[31m", "a\u2028b", "\udcff", "", "x" * 81, 5, None, ["a"], {}]


@pytest.mark.parametrize("path", [("name",), ("models", 0, "name"), ("models", 2, "base"), ("attacks", 0, "source")])
def test_a_name_is_a_short_text_in_one_line(path):
    for name in ODD_NAMES:
        if name is None and path[-1] in ("base", "source"):
            continue
        assert path[-1] in refusal(with_((*path, name)))


@pytest.mark.parametrize(
    "path",
    [
        ("title",),
        ("data", "name"),
        ("models", 0, "checkpoint"),
        ("models", 0, "factory"),
        ("models", 0, "architecture", "name"),
        ("attacks", 0, "id"),
        ("claim", "attack"),
        ("threat", "norm"),
    ],
)
def test_a_text_has_no_control_characters(path):
    for text in ["a\0b", "a\nb", "\udcff", "x" * 10_000, 5, True, [], {}]:
        assert path[-1] in refusal(with_((*path, text)))


def deep(levels, kind=dict):
    value = 1
    for _ in range(levels):
        value = {"a": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("k" * 10_000, 1)], "unknown key"),
        ([("models", 0, "k" * 10_000, 1)], "unknown key"),
        ([("models", 0, "architecture", {"name": "convnet", "options": {"k" * 10_000: 1}})], "unknown option"),
        ([("attacks", 0, "options", {"k\n" * 10_000: 1})], "unknown option"),
        ([("extra", deep(100_000))], "nested more than 20 deep"),
        ([("title", deep(100_000, list))], "nested more than 20 deep"),
        ([("models", 0, "architecture", {"name": "convnet", "options": deep(30)})], "nested more than 20 deep"),
        ([("models", 0, "architecture", {"name": "convnet", "options": {"width": deep(9)}})], "option width: it is {"),
        ([("models", 0, "name", "x" * 10_000)], "give a text of 1 to 80 characters"),
        ([("models", [[]] * 3)], "models.0"),
        ([("models", 0, "name", DIGITS)], "models.a int.name: it is a int; give a text"),
        ([("models", 2, "base", DIGITS), ("sweep", {"seed": [0, 1]})], "base: it is a int; give a text"),
        ([("attacks", 0, "source", DIGITS), ("sweep", {"seed": [0, 1]})], "source: it is a int; give a text"),
        ([("sweep", {"models.a.train.epochs": [True, 1]})], "models.a-epochs=True.train.epochs: it is True"),
        ([("attacks", 0, {"suite": ["quick"]})], "unknown suite"),
        ([("attacks", 0, {"suite": "quick", "models": [["a"]]})], "attacks.quick: unknown model ['a']"),
        ([("attacks", 0, {"suite": "quick", "models": 5})], "attacks.quick.models: it is 5"),
        ([("attacks", 0, {"suite": "quick"}), ("threat", "norm", 5)], "norm"),
        ([("attacks", 0, {"suite": "quick"}), ("threat", "eps", [[0.1]])], "threat.eps.0"),
        ([("attacks", 0, {"suite": "quick"}), ("models", 1, "quantize", {"activation": ["x"]})], "models.b.quantize"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_odd_tables_are_one_line(changes, expected):
    assert expected in refusal(with_(*changes))


# --- Sweeps

BITS = "models.b.quantize.activation_bits"


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({"models.b.base": ["x", "y"]}, "no model 'x' above it"),
        ({"models.c.base": ["x", "y"]}, "models.c-base=x.base: no model 'x' above it"),
        ({"models.a.name": ["x", "y"]}, "sweep.models.a.name: a name changes nothing of a model"),
        ({"models.a.replicate_of": ["x", "y"]}, "sweep.models.a.replicate_of: a name changes nothing of a model"),
        ({"attacks.nope.eps": [[0.1]]}, "sweep.attacks.nope.eps"),
        ({"attacks.nope.eps": [0.1]}, "sweep.attacks.nope.eps: sweep seed, threat.eps or a setting of a model"),
        ({"models.b.quantize.clip": [math.nan, math.nan]}, "sweep.models.b.quantize.clip: nan is no finite number"),
        ({"eps": [math.nan, math.nan]}, "sweep.eps: nan is no finite number"),
        ({BITS: [2, 2.0]}, f"sweep.{BITS}: 2.0 is there twice"),
        ({"seed": [0, 1], "models.a.seed": [2, 3]}, "sweep.models.a.seed: seed is swept for all models already"),
        ({"models.a.seed": ["x", "y"]}, "models.a-seed=x.seed: it is 'x'"),
        ({"models.a.draws": [4, 8]}, "sweep.models.a.draws: it changes nothing, because the model is not random"),
        (
            {"models.b.quantize.mu_layers": [1, 2]},
            "sweep.models.b.quantize.mu_layers: it changes nothing, because mu is not given",
        ),
        ({"models.c.quantize.clip": [1.0, 2.0]}, "it changes nothing, because activation_bits is not given"),
        ({"models.c.train.learning_rate": [0.1, 0.2]}, "it changes nothing, because train.epochs is 0"),
        ({}, "sweep: it is empty"),
        ({"models": {}}, "sweep: it is empty"),
        ({BITS: [2, 3], "models": {"b": {"quantize": {"activation_bits": [4]}}}}, f"sweep.{BITS}: it is there twice"),
        ({"models..x": [1]}, "sweep.models..x: there is no model ''"),
        ({"seed": [-1]}, "seed: it is -1"),
        ({"seed": [DIGITS]}, "sweep.seed: a int is no finite number"),
        ({"models.b.quantize.clip": [2, DIGITS]}, "clip: a int is no finite number"),
        ({"x" * 10_000: [1]}, "sweep seed, threat.eps or a setting of a model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sweep_that_changes_nothing_is_refused(sweep, expected):
    assert expected in refusal(with_(("sweep", sweep)))


def test_a_swept_base_is_the_base():
    recipe = parse_recipe(
        with_(("sweep", {"models.c.base": ["a", "b"]}), ("models", 2, "quantize", {"weight_bits": 3}))
    )
    assert [(m.name, m.base) for m in recipe.models[2:]] == [("c-base=a", "a"), ("c-base=b", "b")]


def test_close_values_have_names_of_their_own():
    recipe = parse_recipe(with_(("sweep", {"models.b.quantize.clip": [0.12345678, 0.12345679, 2.0]})))
    assert [m.name for m in recipe.models[1:4]] == ["b-clip=0.12345678", "b-clip=0.12345679", "b-clip=2"]


# --- --set


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["seed=1\ndata.limit=3"], "--set seed: it sets 'data' too; give one value"),
        (["title=one\ntwo"], "--set title: 'one\\ntwo' is no TOML and has more than one line; give one value"),
        (["data..limit=3"], "write it as --set a.b=value"),
        ([".=3"], "write it as --set a.b=value"),
        (["seed=1", "seed=2"], "--set seed: it is set twice; leave one out"),
        (["seed=1", " seed =2"], "--set seed: it is set twice"),
        (["seed=" + "9" * 5000], "--set seed: "),
        (["title=" + "[" * 100_000], "nested too deeply"),
        (["attacks.art:pgd.options.max_iter=3"], "2 are called 'art:pgd'; write its position, one of [1, 2]"),
        ([f"{'a.' * 40}b=1"], "nested more than 20 deep"),
        (["sweep.models.b.quantize.activation_bits=[2, 3]", f"{BITS}=4"], f"--set {BITS}: the recipe sweeps it"),
        (["sweep.eps=[0.1]", "eps=[0.2]"], "--set eps: the recipe sweeps it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_that_goes_nowhere_is_refused(changes, expected):
    given = with_(("attacks", [{"id": "art:fgsm"}, {"id": "art:pgd"}, {"id": "art:pgd", "source": "a"}]))
    with pytest.raises(InputError) as caught:
        parse_recipe(change(given, changes))
    assert expected in str(caught.value) and str(caught.value).isprintable()


def test_a_sweep_can_be_changed_however_it_is_written():
    for sweep in ({BITS: [2, 3]}, {"models": {"b": {"quantize": {"activation_bits": [2, 3]}}}}):
        changed = change(with_(("sweep", sweep)), [f"sweep.{BITS}=[4, 5]"])
        assert [m.name for m in parse_recipe(changed).models[1:3]] == ["b-activation_bits=4", "b-activation_bits=5"]
