"""Recipes and options of ``artq``: what is wrong is refused in one line before anything is done, or is a warning."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing.apart import command

from art_qplugins import ATTACKS
from art_qplugins.recipes.load import parse_recipe, tables_about
from art_qplugins.runner.plan import plan

MODULE = """
import sys
import torch

Net = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

def needs(width):
    return Net()

def none():
    return None

def raises():
    raise KeyError("weights\\n" * 200)

def leaves():
    sys.exit(0)
"""


def attack(name, options="", **more):
    return f"attacks=[{{id={name!r}, options={{{options}}}" + "".join(f", {k}={v}" for k, v in more.items()) + "}]"


def model(name, **settings):
    return f"{{name={name!r}, " + ", ".join(f"{key}={value}" for key, value in settings.items()) + "}"


# --- Options that switch an attack off

NUMBERS = [
    (name, option)
    for name, row in ATTACKS.items()
    if row.norms
    for option, about in row.options.items()
    if not isinstance(about.default, (bool, str, list))
]


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_a_number_of_an_attack_is_never_nan(name, option, here, refused):
    """Of every attack: with NaN the images stay where they are, and the robust accuracy is the clean one.

    They are many, and asked in this process: a child for each takes six times as long.
    """
    row = ATTACKS[name]
    eps = 5 if row.norms[0] == "L0" else 0.1
    models = "models=[{name='sq', quantize={activation_bits=2, alpha=2.0}}]"
    changes = [models] if row.models == "stochastic" else []
    for value in ("nan", "inf"):
        threat = f"threat={{norm={row.norms[0]!r}, eps=[{eps}]}}"
        settings = [*changes, attack(name, f"{option}={value}"), threat]
        result = command("run", "small.toml", "--dry-run", *(part for each in settings for part in ("--set", each)))
        refused(result, name, option)


@pytest.mark.parametrize(
    ("name", "norm", "eps", "option", "value"),
    [
        ("art:cw-l2", "L2", 0.5, "learning_rate", -1),
        ("art:cw-l2", "L2", 0.5, "initial_const", -1),
        ("art:cw-l0", "L0", 5, "learning_rate", -1),
        ("art:pgd", "Linf", 0.1, "rel_eps_step", 0),
        ("art:pgd", "Linf", 0.1, "rel_eps_step", -1),
        ("art:pgd", "Linf", 0.1, "num_random_init", -1),
        ("art:mifgsm", "Linf", 0.1, "decay", -1),
        ("art:deepfool", "L2", 0.5, "overshoot", -1),
        ("art:newtonfool", "L2", 0.5, "eta", -1),
        ("art:jsma", "L0", 5, "theta", 0),
        ("art:pgd", "Linf", 0.1, "max_iter", 0),
        ("art:pgd", "Linf", 0.1, "max_iter", 10**400),
        ("artq:bits", "Linf", 0.1, "bits", "[2, nan]"),
        ("artq:joint", "Linf", 0.1, "weights", "[]"),
        ("artq:rescaled", "Linf", 0.1, "scaling", "'per-imag'"),
    ],
)
def test_a_number_of_an_attack_is_in_its_range(name, norm, eps, option, value, dry, refused):
    refused(dry(attack(name, f"{option}={value}"), f"threat={{norm={norm!r}, eps=[{eps}]}}"), name, option)


def test_the_claimed_attack_is_checked_too(dry, refused):
    claim = "claim={attack='art:pgd', eps=0.1}"
    refused(dry(attack("art:pgd", "rel_eps_step=nan"), claim), "rel_eps_step")


def test_so_is_the_transfer(dry, refused):
    refused(dry("transfer={attack='art:pgd', options={rel_eps_step=nan}}"), "transfer", "rel_eps_step")


# --- What is refused, and where the line points to

BASED = "models=[{name='fp32'}, {name='q', base='fp32', quantize={weight_bits=3}, train={epochs=0}}]"
REFUSED = {
    # nothing would run
    "no-eps": (["attacks=[{id='art:fgsm', eps=[]}]"], "eps"),
    "no-models": (["attacks=[{id='art:fgsm', models=[]}]"], "models"),
    "source-is-the-only-model": (["models=[{name='a'}]", "attacks=[{id='art:fgsm', source='a'}]"], "source"),
    "source-is-the-only-target": (["attacks=[{id='art:fgsm', source='fp32', models=['fp32']}]"], "fp32"),
    "no-transfer-models": (["transfer={attack='art:fgsm', models=[]}"], "transfer"),
    "no-transfer-eps": (["transfer={attack='art:fgsm', eps=[]}"], "eps"),
    # sweeps of no effect
    "sweep-bases-that-do-not-exist": ([BASED, "sweep={'models.q.base'=['x', 'y']}"], "base"),
    "sweep-names": (["sweep={'models.fp32.name'=['x', 'y']}"], "name"),
    "sweep-replicates": (["sweep={'models.fp32.replicate_of'=['x', 'y']}"], "replicate_of"),
    "sweep-attacks": (["sweep={'attacks.nope.eps'=[0.1, 0.2]}"], "attacks.nope"),
    "sweep-nan": (["sweep={'models.fp32.train.learning_rate'=[nan, nan]}"], "learning_rate"),
    "sweep-equal-numbers": (["sweep={'models.fp32.train.learning_rate'=[1, 1.0]}"], "learning_rate"),
    "sweep-seeds-twice": ([BASED, "sweep={seed=[0, 1], 'models.fp32.seed'=[2, 3]}"], "seed"),
    "sweep-seeds-twice-of-the-base": ([BASED, "sweep={'models.fp32.seed'=[2, 3], seed=[0, 1]}"], "seed"),
    # what the run would refuse
    "mu-layers": (["models.fp32.quantize={mu=255.0, mu_layers=99}"], "mu_layers"),
    "alpha-without-bits": (["models.fp32.quantize={alpha=2.0}"], "alpha"),
    "clip-inf": (["models.fp32.quantize={activation_bits=2, clip=inf}"], "clip"),
    "clip-nan": (["models.fp32.quantize={activation_bits=2, clip=nan}"], "clip"),
    "clip-too-large": (["models.fp32.quantize={activation_bits=2, clip=1e308}"], "clip"),
    "mu-nan": (["models.fp32.quantize={mu=nan}"], "mu"),
    "learning-rate-nan": (["models.fp32.train.learning_rate=nan"], "learning_rate"),
    "weight-decay-nan": (["models.fp32.train.weight_decay=nan"], "weight_decay"),
    "vgg-on-8x8": (["models=[{name='v', architecture={name='vgg16'}}]"], "models.v"),
    "missing-npz": (["data={name='npz:nowhere.npz'}"], "nowhere.npz"),
    "missing-folder": (["data={name='folder:nowhere'}"], "nowhere"),
    "part-of-a-pixel": (["threat={norm='L0', eps=[0.5]}", attack("art:jsma")], "eps"),
    "missing-checkpoint": (["models=[{name='a', checkpoint='nowhere.safetensors'}]"], "checkpoint"),
    "checkpoint-nowhere": (["models=[{name='a', checkpoint=''}]"], "checkpoint"),
    # values that no number, seed or path can hold
    "norm-with-a-suite": (["threat={norm=5, eps=[0.1]}", "attacks=[{suite='dq'}]"], "norm"),
    "granularity": (["models.fp32.quantize={weight_bits=3, granularity=5}"], "granularity"),
    "beta-of-400-digits": ([f"models.fp32.defences=[{{name='orthogonality', options={{beta={10**400}}}}}]"], "beta"),
    "beta-nan": (["models.fp32.defences=[{name='orthogonality', options={beta=nan}}]"], "beta"),
    "beta-below-0": (["models.fp32.defences=[{name='orthogonality', options={beta=-1}}]"], "beta"),
    "eps-of-training-8": (["models.fp32.defences=[{name='adversarial-training', options={eps=8}}]"], "eps"),
    "eps-of-training-8/0": (["models.fp32.defences=[{name='trades', options={eps='8/0'}}]"], "eps"),
    "eps-of-training-digits": (
        ["models.fp32.defences=[{name='trades', options={eps='1/1" + "0" * 4500 + "'}}]"],
        "eps",
    ),
    "steps-of-fgsm": (
        ["models.fp32.defences=[{name='adversarial-training', options={method='fgsm', steps=2}}]"],
        "steps",
    ),
    "window-0": (["models.fp32.defences=[{name='feature-squeezing', options={window=0}}]"], "window"),
    "5000-digits": (["seed=" + "9" * 5000], "seed"),
    "deep-lists": (["seed=" + "[" * 100_000], "seed"),
    "deep-lists-that-end": (["seed=" + "[" * 900 + "]" * 900], "seed"),
    "deep-keys": ([".".join(["a"] * 2000) + "=1"], "a"),
    "data-seed": (["data.seed=-1"], "data.seed"),
    "seed-of-30-digits": ([f"seed={10**30}"], "seed"),
    "seed-below-0": (["seed=-1"], "seed"),
    "threads": ([f"threads={2**64}"], "threads"),
    "threads-of-nobody": (["threads=1000000000"], "threads"),
    "batch-size": ([f"batch_size={2**64}"], "batch_size"),
    "shard": ([f"shard={2**64}"], "shard"),
    "limit": ([f"data.limit={10**400}"], "limit"),
    "width-0": (["models.fp32.architecture.options.width=0"], "width"),
    "width-below-0": (["models.fp32.architecture.options.width=-1"], "width"),
    "width-of-12-digits": (["models.fp32.architecture.options.width=1000000000000"], "width"),
    "nul-in-data": (['data={name="npz:a\\u0000b"}'], "data"),
    "nul-in-a-checkpoint": (['models=[{name="a", checkpoint="a\\u0000b"}]'], "checkpoint"),
    "no-user": (["data={name='npz:~nouser/x.npz'}"], "nouser"),
    "no-user-folder": (["data={name='folder:~nouser'}"], "nouser"),
    "eps-of-many-digits": (["threat.eps=['1e999999999']"], "eps"),
    "eps-of-few-digits": (["threat.eps=['1e-999999999']"], "eps"),
    "eps-of-a-fraction": (["threat.eps=['1/1" + "0" * 4500 + "']"], "eps"),
    "eps-inf": (["threat.eps=[inf]"], "eps"),
    "eps-nan": (["threat.eps=[nan]"], "eps"),
    "eps-1e400": (["threat.eps=[1e400]"], "eps"),
    "budget-nan": (["diagnosis.budget=nan"], "budget"),
    "budget-of-gradients-nan": (["budget.gradients=nan"], "gradients"),
    "two-lines": (["data.limit=5\nseed=3"], "--set data.limit"),
    # long values, and lists of everything
    "unknown-attack": (["attacks=[{id='nothing-like-it'}]"], "nothing-like-it"),
    "long-attack": (["attacks=[{id='" + "x" * 5000 + "'}]"], "attacks"),
    "long-name": (["name='" + "x" * 5000 + "'"], "name"),
    "long-value": (["seed='" + "x" * 5000 + "'"], "seed"),
    "long-list": (["seed=[" + "1," * 5000 + "]"], "seed"),
    "long-key": (["x" * 5000 + "=1"], "xxx"),
    "claimed-nan": ([attack("art:fgsm"), "claim={attack='art:fgsm', eps=0.1, accuracy=nan}"], "accuracy"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_it_is_refused(row, dry, refused):
    changes, place = REFUSED[row]
    refused(dry(*changes), place, never=("e.g. nan", "Is a directory", "lower learning_rate"))


# --- What is legal and surely a mistake

ORTHOGONAL = "{name='orthogonality'}"
NOTICED = {
    "eps-8": (["threat.eps=[8]"], "eps"),
    "the-same-defence-twice": ([f"models.fp32.defences=[{ORTHOGONAL}, {ORTHOGONAL}]"], "orthogonality"),
    "suite-beside-id": (["attacks=[{id='art:fgsm', suite='dq'}]"], "suite"),
    "draws-of-a-deterministic-model": (["models.fp32.draws=4"], "draws"),
    "base-beside-checkpoint": (["models.other.checkpoint='net.safetensors'"], "base"),
}


@pytest.mark.parametrize("row", NOTICED)
def test_it_is_refused_or_a_warning(row, here, dry, noticed):
    if "checkpoint" in row:
        from art_qplugins.checkpoint import save_checkpoint
        from art_qplugins.models.convnet import ConvNet

        save_checkpoint(here / "net.safetensors", ConvNet((1, 8, 8), 10, width=2), {"model": {"name": "other"}})
    changes, place = NOTICED[row]
    noticed(dry(*changes), place)


# --- What is right


@pytest.mark.parametrize("name", ["artq:surrogates", "artq:bits", "artq:joint"])
@pytest.mark.parametrize("options", ["", "max_iter=3"])
def test_every_listed_attack_can_be_planned(name, options, dry):
    result = dry(attack(name, options), "models=[{name='net', quantize={activation_bits=2}, train={epochs=0}}]")
    assert (result.status, result.kind) == (0, ""), result.trace
    assert name in result.out


@pytest.mark.parametrize("name", ["[/x]", "[bold]", "x[/]", "\\[/x]"])
def test_names_are_no_markup(name, dry):
    result = dry(f"models=[{{name={name!r}, train={{epochs=0}}}}]")
    assert (result.status, result.kind) == (0, ""), result.trace or result.err
    assert name in result.out


def test_names_and_paths_are_no_markup_after_a_run(here, artq):
    recipe = (
        "name = 'm'\ndiagnose = false\ndata = {name = 'digits', limit = 4}\nthreat = {norm = 'L2', eps = [1]}\n"
        "models = [{name = '[/x]', architecture = {options = {width = 2}, name = 'convnet'}, train = {epochs = 0}}]\n"
        "attacks = [{id = 'artq:clean'}]\n"
    )
    Path("m.toml").write_text(recipe)
    result = artq("run", "m.toml", "--out", "out[/y]", seconds=60)
    assert (result.status, result.kind, result.err) == (0, "", ""), result.trace or result.err
    assert "[/x]" in result.out and "out[/y]" in result.out


@pytest.mark.parametrize(
    "name", ["../../esc", "{outside}/esc", "..", ".", "a/../../../esc", "esc\\u0000", "CON", "a\\nb"]
)
def test_no_name_leads_out_of_the_folder(name, here, artq):
    outside = here.parents[1]
    before = _beside(outside, here)
    (here / "small.toml").write_text(
        (here / "small.toml").read_text().replace('"small"', f'"{name}"'.format(outside=outside))
    )
    result = artq("train", "small.toml", seconds=30)
    assert result.status in (0, 2) and not result.kind, result.trace
    assert _beside(outside, here) == before
    assert {p.name for p in here.iterdir()} <= {"small.toml", "results"}
    assert not (here / "results" / "checkpoints").exists(), "the folder of all results is that of no run"


def _beside(outside, here):
    return sorted(p for p in outside.rglob("*") if here not in p.parents and "cache" not in p.parts)


# --- diagnose


@pytest.fixture
def diagnose(here, artq):
    (here / "my_net.py").write_text(MODULE)
    (here / "my_slip.py").write_text("import torch\n\nraise ValueError('in the module')\n")
    (here / "my_syntax.py").write_text("def broken(:\n")
    (here / "my_exit.py").write_text("raise SystemExit(0)\n")
    return lambda *more, model="my_net:Net": artq("diagnose", "--model", model, "--limit", "4", *more)


@pytest.mark.parametrize(
    ("more", "place", "never"),
    [
        (["--eps", "1e400"], "eps", ""),
        (["--eps", "1e999999999"], "eps", ""),
        (["--eps", "-1"], "eps", "not a number"),
        (["--eps", "nan"], "eps", ""),
        (["--eps", "inf"], "eps", ""),
        (["--eps", "0"], "eps", ""),
        (["--claimed", "nan"], "nan", "e.g. nan"),
        (["--claimed", "inf"], "inf", "e.g. inf"),
        (["--budget", "nan"], "budget", ""),
        (["--budget", "inf"], "budget", ""),
        (["--out", ""], "--out", ""),
        (["--set", "x=1"], "x", ""),
        (["--set", "diagnosis.x=1"], "x", ""),
        (["--set", "attacks.art:pgd.options.rel_eps_step=nan"], "rel_eps_step", ""),
        (["--set", "batch_size=5\nseed=3"], "--set", ""),
        (["--checkpoint", ""], "checkpoint", "Is a directory"),
        (["--data", "npz:"], "npz:", ""),
        (["--attack", "art:nothing-like-it" * 100], "attack", ""),
    ],
)
def test_diagnose_refuses(more, place, never, diagnose, refused):
    refused(diagnose(*more), place, never=[never] if never else [])


@pytest.mark.parametrize("attack", ["artq:surrogates", "artq:bits", "artq:joint"])
def test_diagnose_knows_every_listed_attack(attack):
    tables = tables_about("my_net:Net", None, "digits", "Linf", "8/255", attack, None)
    models, cells = plan(parse_recipe(tables).claims_alone())
    assert models[0].claim in cells and models[0].claim.attack == attack


@pytest.mark.parametrize(
    ("model", "place"),
    [
        (":f", ":f"),
        ("..x:f", "..x:f"),
        ("my_net:", "my_net:"),
        ("my_net:a.b", "my_net:a.b"),
        ("\x00:f", "model"),
        ("my net:f", "my net"),
        ("my_slip:f", "my_slip.py"),
        ("my_syntax:f", "my_syntax"),
        ("my_exit:f", "my_exit"),
        ("my_net:needs", "my_net:needs"),
        ("my_net:none", "my_net:none"),
        ("my_net:raises", "my_net.py"),
        ("my_net:leaves", "my_net"),
        ("my_net:sys", "my_net:sys"),
        ("x" * 5000 + ":f", "model"),
    ],
)
@pytest.mark.parametrize("command", ["diagnose", "replay"])
def test_what_a_module_does_is_one_line(model, place, command, here, diagnose, artq, refused):
    if command == "diagnose":
        return refused(diagnose(model=model), place)
    import numpy as np

    x = np.zeros((2, 1, 8, 8), np.float32)
    np.savez(here / "e.npz", x=x, x_adv=x, y=np.zeros(2, int), norm=np.array("Linf"), eps=np.array(0.1))
    diagnose("--help")
    return refused(artq("replay", "e.npz", "--model", model), place)


@pytest.mark.parametrize("command", ["run", "train"])
def test_no_folder_for_the_results(command, artq, refused):
    refused(artq(command, "small.toml", "--out", ""), "--out")


@pytest.mark.parametrize("path", ["a\x00b.toml", "~nouser/x.toml", ".", "", "x" * 5000])
def test_recipes_that_cannot_be_opened(path, artq, refused):
    refused(artq("run", path, "--dry-run"))


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "[" + "a." * 50_000 + "a]", "a = {" * 3000, "\x00", "\udcff"]
)
def test_recipes_that_are_no_toml(text, here, artq, refused):
    (here / "small.toml").write_bytes(text.encode(errors="surrogateescape"))
    refused(artq("run", "small.toml", "--dry-run"), "small.toml")


# --- Sizes


def many(count, **more):
    return {
        "name": "many",
        "data": {"name": "digits"},
        "threat": {"eps": [0.1]},
        "models": [{"name": f"m{i}", "train": {"epochs": 1}} for i in range(count)],
        "attacks": [{"id": "art:fgsm"}],
        **more,
    }


@pytest.mark.parametrize(
    ("count", "more"),
    [
        (1000, {}),
        (5000, {}),
        (150, {"transfer": {"attack": "art:pgd"}}),
    ],
)
def test_many_models_are_planned_in_seconds(count, more, python):
    """5,000 models took more than 15 s, and the transfer between 150 took 14 s."""
    result = python(lambda: print(len(plan(parse_recipe(many(count, **more)))[1])), seconds=10)
    assert (result.status, result.kind) == (0, ""), result.trace
    assert int(result.out) == 2 * count + (count * (count - 1) + count if more else 0)
