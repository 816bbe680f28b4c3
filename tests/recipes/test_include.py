"""Recipes that are made of others: files that include files, and profiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import art_qplugins
from art_qplugins.errors import InputError
from art_qplugins.recipes.load import load_recipe, parse_recipe, read_tables, whole_tables
from art_qplugins.recipes.merge import choose, merged

BASE = """
name = "base"
seed = 3
data = { name = "digits", limit = 20 }
threat = { norm = "Linf", eps = [0.05, 0.1] }
claim = { attack = "art:pgd", eps = 0.1 }
[[models]]
name = "fp32"
architecture = { name = "convnet", options = { width = 2 } }
train = { epochs = 4, batch_size = 32 }
[[models]]
name = "dq"
quantize = { activation_bits = 2 }
defences = [{ name = "orthogonality" }]
[[attacks]]
id = "art:fgsm"
[[attacks]]
id = "art:pgd"
[profiles.small]
data.limit = 5
[[profiles.small.models]]
name = "fp32"
train.epochs = 1
[profiles.coarse]
threat.eps = [0.1]
data.limit = 7
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.toml").write_text(BASE)


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 300
    return message


# --- Two tables


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3}}}, {"a": {"b": {"c": 3, "d": 2}}}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"threat": {"eps": [0.1, 0.2]}}, {"threat": {"eps": [0.3]}}, {"threat": {"eps": [0.3]}}),
        ({"attacks": [{"id": "a"}, {"id": "b"}]}, {"attacks": [{"id": "b"}]}, {"attacks": [{"id": "b"}]}),
        # models by name
        (
            {"models": [{"name": "a", "seed": 1, "draws": 2}, {"name": "b"}]},
            {"models": [{"name": "c"}, {"name": "a", "seed": 2}]},
            {"models": [{"name": "a", "seed": 2, "draws": 2}, {"name": "b"}, {"name": "c"}]},
        ),
        # a list in a model is one setting
        (
            {"models": [{"name": "a", "defences": [{"name": "x"}, {"name": "y"}]}]},
            {"models": [{"name": "a", "defences": [{"name": "y"}]}]},
            {"models": [{"name": "a", "defences": [{"name": "y"}]}]},
        ),
        # two of one name in a file are still two, so that they are refused
        ({"models": [{"name": "a"}]}, {"models": [{"name": "a"}] * 2}, {"models": [{"name": "a"}] * 2}),
        ({"models": [{"name": "a"}]}, {"models": 5}, {"models": 5}),
        ({"models": [1, {"name": 2}]}, {"models": [{"name": 2}]}, {"models": [1, {"name": 2}, {"name": 2}]}),
        # options are those of what is named beside them
        (
            {"x": {"name": "convnet", "options": {"width": 2}}},
            {"x": {"name": "vgg16"}},
            {"x": {"name": "vgg16"}},
        ),
        (
            {"x": {"name": "convnet", "options": {"width": 2, "depth": 3}}},
            {"x": {"name": "convnet", "options": {"width": 4}}},
            {"x": {"name": "convnet", "options": {"width": 4, "depth": 3}}},
        ),
        (
            {"transfer": {"attack": "art:pgd", "options": {"max_iter": 5}, "eps": [0.1]}},
            {"transfer": {"attack": "art:fgsm"}},
            {"transfer": {"attack": "art:fgsm", "eps": [0.1]}},
        ),
        (
            {"data": {"name": "digits", "limit": 5}},
            {"data": {"name": "mnist"}},
            {"data": {"name": "mnist", "limit": 5}},
        ),
        # a path of a sweep is the same, as one key and as tables
        (
            {"sweep": {"models.a.seed": [1], "seed": [0]}},
            {"sweep": {"models": {"a": {"seed": [2]}}}},
            {"sweep": {"models.a.seed": [2], "seed": [0]}},
        ),
        # a profile is a recipe too
        (
            {
                "profiles": {
                    "x": {"models": [{"name": "a", "seed": 1}], "sweep": {"models.a.seed": [1]}},
                    "y": {"seed": 1},
                }
            },
            {
                "profiles": {
                    "x": {"models": [{"name": "b"}], "sweep": {"models": {"a": {"seed": [2]}}}},
                    "z": {"seed": 2},
                }
            },
            {
                "profiles": {
                    "x": {"models": [{"name": "a", "seed": 1}, {"name": "b"}], "sweep": {"models.a.seed": [2]}},
                    "y": {"seed": 1},
                    "z": {"seed": 2},
                }
            },
        ),
        ({"profiles": 3}, {"profiles": {"x": {}}}, {"profiles": {"x": {}}}),
        ({"profiles": {"x": 3}}, {"profiles": {"x": {}}}, {"profiles": {"x": {}}}),
    ],
    ids=lambda tables: str(tables)[:30],
)
def test_the_tables_of_two_become_one(base, over, expected):
    before = repr((base, over))
    assert merged(base, over) == expected
    assert repr((base, over)) == before


# --- include


def test_this_file_wins_over_what_it_includes():
    path = write(
        "mine.toml",
        'include = "base.toml"\nname = "mine"\n[data]\nlimit = 9\n[[models]]\nname = "dq"\nquantize.clip = 2.0\n'
        '[[models]]\nname = "more"\n[[attacks]]\nid = "art:pgd"\n',
    )
    recipe, given = load_recipe(path)
    assert (recipe.name, recipe.seed, recipe.data.name, recipe.data.limit) == ("mine", 3, "digits", 9)
    assert [m.name for m in recipe.models] == ["fp32", "dq", "more"]
    assert (recipe.models[1].quantize.activation_bits, recipe.models[1].quantize.clip) == (2, 2.0)
    assert [a.id for a in recipe.attacks] == ["art:pgd"]
    assert "include" not in given
    assert parse_recipe(given) == recipe, "what is recorded needs no file"


def test_a_path_is_from_the_file_that_includes_and_the_last_file_wins():
    write("a/one.toml", 'include = ["../b/two.toml", "three.toml"]\nseed = 1')
    write("b/two.toml", 'include = "four.toml"\ntitle = "two"\nbatch_size = 2')
    write("b/four.toml", "grid = 4\nshard = 4\nbatch_size = 4")
    write("a/three.toml", 'title = "three"\nshard = 3')
    assert read_tables(Path("a/one.toml")) == {"grid": 4, "shard": 3, "batch_size": 2, "title": "three", "seed": 1}


def test_one_file_may_be_included_twice():
    write("left.toml", 'include = "base.toml"\nseed = 1')
    write("right.toml", 'include = "base.toml"\nshard = 1')
    both = read_tables(write("both.toml", 'include = ["left.toml", "right.toml"]'))
    assert (both["seed"], both["shard"]) == (3, 1), "right.toml, and with it base.toml, wins over left.toml"


def test_a_recipe_that_comes_along_can_be_included_by_its_name():
    path = write("mine.toml", 'include = "digits"\nname = "mine"\ndata.limit = 3')
    assert load_recipe(path)[1] == load_recipe(Path("digits"), ["name=mine", "data.limit=3"])[1]


def test_a_file_of_that_name_comes_first():
    write("digits", 'title = "here"')
    assert read_tables(write("mine.toml", 'include = "digits"')) == {"title": "here"}


def test_set_comes_after_all():
    path = write("mine.toml", 'include = "base.toml"\nseed = 4')
    assert load_recipe(path, ["seed=5", "models.fp32.train.epochs=6"])[0].models[0].train.epochs == 6
    assert load_recipe(path, ["seed=5"])[0].seed == 5
    for key in ("include=base.toml", "profiles.small.seed=1"):
        assert refusal(load_recipe, path, [key]).startswith(f"--set {key.split('=')[0]}: files and profiles are merged")


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("include = 3", "mine.toml: include: it is 3; give the path of a TOML file, or a list of different ones"),
        ("include = []", "mine.toml: include: it is []; give the path"),
        ('include = ["base.toml", "base.toml"]', "mine.toml: include: it is ['base.toml', 'base.toml']; give"),
        ('include = "bas.toml"', "mine.toml: include: bas.toml: no such recipe; did you mean 'base.toml'?"),
        ('include = "nowhere/x.toml"', "mine.toml: include: nowhere/x.toml: no such recipe"),
        ('include = "."', ".: cannot be read"),
        ('include = "mine.toml"', "mine.toml: it includes itself, through mine.toml; take one out"),
        ('include = "circle.toml"', "mine.toml: it includes itself, through circle.toml; take one out"),
        ('include = "broken.toml"', "broken.toml: not TOML"),
        ('include = "inner.toml"', "inner.toml: include: it is True"),
        ("include = 'base.toml'\n[data]\ninclude = 'base.toml'", "mine.toml: data.include: unknown key"),
        ('include = "deep.toml"', "deep.toml: its tables and lists are nested more than 20 deep"),
        ('include = "sweep.toml"\n[sweep]\nseed = [1]', "sweep: it is 3; give a list of values"),
    ],
)
def test_what_cannot_be_included_is_one_line(include, expected):
    write("circle.toml", 'include = "mine.toml"')
    write("broken.toml", "name = ")
    write("inner.toml", "include = true")
    write("sweep.toml", "sweep = 3")
    write("deep.toml", "x = " + "[" * 25 + "]" * 25)
    message = refusal(load_recipe, write("mine.toml", include))
    assert expected in message


def test_a_recipe_of_too_many_files_is_one_line():
    for i in range(7):
        write(f"{i}.toml", f'include = ["{i + 1}.toml", "./{i + 1}.toml"]')
    write("7.toml", "seed = 1")
    assert "the recipe is made of more than 100 files; include fewer" in refusal(read_tables, Path("0.toml"))


# --- profiles


def test_without_a_profile_a_recipe_is_its_base():
    recipe, given = load_recipe(Path("base.toml"))
    assert (recipe.name, recipe.data.limit, recipe.models[0].train.epochs) == ("base", 20, 4)
    assert "profiles" not in given


def test_a_profile_wins_over_the_recipe():
    recipe, given = load_recipe(Path("base.toml"), profiles=["small"])
    assert (recipe.name, recipe.data.limit, recipe.models[0].train.epochs) == ("base-small", 5, 1)
    assert (recipe.models[0].train.batch_size, len(recipe.models), recipe.threat.eps) == (32, 2, [0.05, 0.1])
    assert parse_recipe(given) == recipe


def test_of_several_profiles_the_last_wins_and_set_wins_over_all():
    def found(*profiles, **more):
        recipe = load_recipe(Path("base.toml"), profiles=profiles, **more)[0]
        return recipe.name, recipe.data.limit, recipe.threat.eps

    assert found("small", "coarse") == ("base-small-coarse", 7, [0.1])
    assert found("coarse", "small") == ("base-coarse-small", 5, [0.1])
    assert found("small", changes=["data.limit=9", "name=mine"]) == ("mine", 9, [0.05, 0.1])


def test_a_profile_may_name_its_recipe():
    given = {"name": "a", "profiles": {"x": {"name": "b"}, "y": {}}}
    assert choose(given, ["x"])["name"] == "b" and choose(given, ["x", "y"])["name"] == "b-y"


def test_profiles_are_included_and_merged_too():
    path = write("mine.toml", 'include = "base.toml"\nname = "mine"\n[profiles.small]\nseed = 8')
    recipe = load_recipe(path, profiles=["small"])[0]
    assert (recipe.name, recipe.data.limit, recipe.seed) == ("mine-small", 5, 8)


@pytest.mark.parametrize(
    ("profiles", "names", "expected"),
    [
        ({"small": {}}, ["smal"], "there is no profile 'smal'; did you mean 'small'?"),
        ({"small": {}}, [""], "profile: it is ['']; give a list"),
        ({"small": {}}, ["small", "small"], "profile: it is ['small', 'small']; give a list of different values"),
        ({}, ["small"], "there is no profile 'small'; there is: none"),
        ({"small": 3}, [], "profiles: it is {'small': 3}; write [profiles.NAME], and below it tables of the recipe"),
        (3, [], "profiles: it is 3; write [profiles.NAME]"),
        ({"small": {"include": "x"}}, ["small"], "profiles.small: include: a profile has none; write it at the top"),
        ({"small": {"profiles": {}}}, ["small"], "profiles.small: profiles: a profile has none"),
        ({"small": {"sweep": 3}}, ["small"], "profiles.small: sweep: it is 3"),
    ],
)
def test_a_wrong_profile_is_one_line(profiles, names, expected):
    assert expected in refusal(choose, {"name": "a", "sweep": {"seed": [1]}, "profiles": profiles}, names)


# --- From the command line and from Python


def test_full_and_small_have_folders_of_their_own(artq):
    path = write("one.toml", BASE.replace('claim = { attack = "art:pgd", eps = 0.1 }', "diagnose = false"))
    status, _, err = artq("run", path, "--profile", "small")
    assert (status, err) == (0, "")
    records = json.loads(Path("results/base-small/results.json").read_text())
    assert records["spec"]["given"]["name"] == records["spec"]["resolved"]["name"] == "base-small"
    assert records["data"]["n"] == 5 and not Path("results/base").exists()
    status, out, _ = artq("train", path, "--profile", "small")
    assert status == 0 and "results/base-small/checkpoints" in out and "trained" not in out
    assert artq("run", path, "--profile", "coarse", "--dry-run", "--out", "results/base-small")[0] == 2, (
        "another recipe's"
    )


def test_a_diagnosis_takes_a_profile(artq):
    status, out, err = artq("diagnose", "base.toml", "--profile", "smal")
    assert (status, out) == (2, "") and "there is no profile 'smal'; did you mean 'small'?" in err
    status, out, err = artq("diagnose", "--model", "nets:make", "--profile", "small")
    assert (status, out) == (2, "") and "--profile is for a RECIPE" in err
    few = ("--set", "models.dq.train.epochs=1", "--level", "0")
    status, _, err = artq("diagnose", "base.toml", "--profile", "small", *few)
    assert status in (0, 3) and err == ""  # whatever a network says that has seen few images
    assert json.loads(Path("results/base-small-diagnosis/results.json").read_text())["data"]["n"] == 5


def test_python_takes_a_profile_and_what_is_included():
    tables = {"include": "base.toml", "diagnose": False, "models": [{"name": "dq", "train": {"epochs": 0}}]}
    run = art_qplugins.run(tables, profile=["small"])
    given = run.results.spec["given"]
    assert given["name"] == "base-small" and given["data"]["limit"] == 5 and not {"include", "profiles"} & given.keys()
    assert given == whole_tables(tables, ["small"])
    assert [m.name for m in run.models] == ["fp32", "dq"]
    with pytest.raises(InputError, match="there is no profile 'tiny'"):
        art_qplugins.run("base.toml", profile="tiny")


def test_tables_from_python_may_not_hold_themselves():
    loop = {"name": "a"}
    loop["data"] = loop
    assert "nested more than 20 deep" in refusal(whole_tables, loop)
