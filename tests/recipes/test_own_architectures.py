"""A network that a function of the user makes: it has all that a registered one has, and its code decides what is trained anew."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from art_qplugins.cli import main
from art_qplugins.data import from_arrays, load
from art_qplugins.errors import InputError
from art_qplugins.evaluation.cluster import check_packages
from art_qplugins.plugins import Plugin
from art_qplugins.quantizers import activation_quantizers
from art_qplugins.recipes.build import build_model, build_models, stored_at
from art_qplugins.recipes.describe import code_of_others
from art_qplugins.recipes.factory import make_estimator
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.packages import packages_of
from art_qplugins.recipes.rehearse import rehearse
from art_qplugins.recipes.user_code import code_of

FILES = {
    "own_nets/__init__.py": "",
    "own_nets/sizes.py": "WIDTH = 8  # of the hidden layer\n",
    "own_nets/models.py": """
        import numpy
        import torch
        from torch import nn
        from .sizes import WIDTH

        class Net(nn.Module):
            def __init__(self, pixels, classes, width=WIDTH):
                super().__init__()
                self.body = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.ReLU())
                self.head = nn.Linear(width, classes)
                self.register_buffer("noise", torch.tensor(numpy.random.rand()))

            def forward(self, x):
                from own_nets import late
                return late.answer(self.head(self.body(x)))

        def nothing():
            return Net(64, 10)

        def both(shape, nb_classes, width=WIDTH):
            return Net(shape[1] * shape[2], nb_classes, width)

        def classes(*, nb_classes):
            return Net(64, nb_classes)

        def any_name(**options):
            return Net(64, 10, **options)

        class Plain(Net):
            def __init__(self):
                super().__init__(64, 10)

        same = Net(64, 10)

        def the_same():
            return same

        def from_file():
            network = Net(64, 10)
            network.load_state_dict(torch.load("start.pt"))
            return network

        def few():
            return Net(64, 3)

        def number():
            return 3

        def fails():
            raise ValueError("no luck")

        def not_copied():
            network = Net(64, 10)
            network.lock = (one for one in "ab")
            return network
    """,
    "own_nets/late.py": "def answer(logits):\n    return logits\n",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "own_nets").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path
    forget()


def forget():
    """As in a new process."""
    for name in [name for name in sys.modules if name.split(".")[0] == "own_nets"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def data():
    return load("digits", "train").take(64, seed=0)


def recipe_of(*models, **more):
    named = [{"name": f"m{i}", **model} for i, model in enumerate(models)]
    return parse_recipe(
        {
            "name": "own",
            "data": {"name": "digits"},
            "threat": {"eps": [0.1]},
            "models": named,
            "attacks": [{"id": "art:fgsm"}],
            **more,
        }
    )


def own(function, epochs=0, **more):
    return {"architecture": f"own_nets.models:{function}", "train": {"epochs": epochs}, **more}


def built(recipe, data, folder):
    return build_models(recipe, data, folder, device=torch.device("cpu"))


def key(data, function="both", **more):
    recipe = recipe_of(own(function, **more))
    return stored_at(recipe, recipe.models[0], data, Path(), {}).name


@pytest.mark.parametrize("function", ["nothing", "both", "classes", "any_name", "Plain", "the_same"])
def test_a_function_is_given_what_it_takes(here, data, function):
    module = built(recipe_of(own(function)), data, here / "c")["m0"]
    assert module(torch.zeros(3, 1, 8, 8)).shape == (3, 10) and module.head.in_features == 8


def test_options_are_arguments(here, data):
    for function in ("both", "any_name"):
        named = {"name": f"own_nets.models:{function}", "options": {"width": 5}}
        module = built(recipe_of({"architecture": named, "train": {"epochs": 0}}), data, here / "c")["m0"]
        assert module.head.in_features == 5


def test_one_that_gives_the_same_network_again_gives_models_of_their_own(here, data):
    made = built(recipe_of(own("the_same", 1), own("the_same", 0)), data, here / "c")
    same = sys.modules["own_nets.models"].same
    assert not torch.equal(made["m0"].head.weight, same.head.weight)
    assert torch.equal(made["m1"].head.weight, same.head.weight)


def test_it_is_quantized_normalized_defended_and_started_from_another(here, data):
    normalize = {"normalize": {"mean": [0.3], "std": [0.4]}}
    defended = {"defences": ["orthogonality"], "quantize": {"activation_bits": 2}}
    recipe = recipe_of(own("both", 1, **normalize), own("both", 1, base="m0", **normalize, **defended))
    assert rehearse(recipe, data, {}) == []
    made = built(recipe, data, here / "c")
    assert not activation_quantizers(made["m0"]) and len(activation_quantizers(made["m1"])) == 1
    assert made["m1"][0].mean == (0.3,)


def test_a_second_time_nothing_is_trained_and_the_weights_are_those(here, data):
    recipe = recipe_of(own("both", 1))
    first = built(recipe, data, here / "c")["m0"]
    forget()

    def told(*_):
        raise AssertionError("it is trained again")

    again = build_model(recipe, recipe.models[0], data, here / "c", {}, device=torch.device("cpu"), progress=told)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("file", "old", "new", "differs"),
    [
        ("models.py", "nn.ReLU()", "nn.ReLU6()", True),
        ("sizes.py", "8", "9", True),
        ("late.py", "return logits", "return 2 * logits", True),  # imported while a forward pass runs
        ("__init__.py", "", "import os\n", True),
        ("sizes.py", "# of the hidden layer", "# another comment", False),
    ],
)
def test_edited_code_trains_anew(here, data, file, old, new, differs):
    before, code = key(data), code_of("own_nets.models:both")
    path = here / "own_nets" / file
    path.write_text(path.read_text().replace(old, new, 1))
    assert key(data) == before  # this process has the code that it has loaded
    forget()
    assert (key(data) != before) is differs
    assert (code_of("own_nets.models:both") != code) is differs


def test_first_weights_from_a_file_are_part_of_the_key(here, data):
    def start(value):
        torch.manual_seed(value)
        torch.save(sys.modules["own_nets.models"].nothing().state_dict(), "start.pt")
        forget()
        return key(data, "from_file")

    key(data)
    first, other = start(0), start(1)
    assert first != other


def test_the_seed_decides_also_what_numpy_draws(here, data):
    assert key(data) == key(data) != key(data, seed=1)


def test_weights_of_its_own_are_loaded_also_behind_a_normalization(here, data):
    recipe = recipe_of(own("both"))
    network = built(recipe, data, here / "c")["m0"]
    with torch.no_grad():
        network.head.bias += 1
    torch.save({"state_dict": {f"module.{name}": one for name, one in network.state_dict().items()}}, "w.pt")
    given = {"architecture": "own_nets.models:both", "checkpoint": "w.pt", "unverified_checkpoint": True}
    made = built(recipe_of(given, {**given, "normalize": {"mean": [0.0], "std": [1.0]}}), data, here / "d")
    x = data.x()[:3]
    assert torch.equal(made["m0"](x), network(x)) and torch.equal(made["m1"](x), network(x))


def test_a_network_of_a_factory_takes_the_same_weights(here, data):
    network = built(recipe_of(own("nothing")), data, here / "c")["m0"]
    torch.save(network.state_dict(), "w.pt")
    x = data.x()[:3]
    assert torch.equal(make_estimator("own_nets.models:nothing", "w.pt", data).model(x), network(x))


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("own_nets.models.both", "unknown architecture 'own_nets.models.both'; write your own as MODULE:FUNCTION"),
        ("own_nets.models:", "write it as MODULE:FACTORY"),
        ("no_such_module:both", "architecture no_such_module:both: cannot import 'no_such_module'"),
        ("own_nets.models:bth", "did you mean 'both'"),
        ("own_nets.models:same", "it is a network; give a function that makes one, or give this as factory"),
        ("own_nets.models:number", "it returns 3; it must return a torch.nn.Module"),
        ("own_nets.models:fails", "ValueError: no luck, at models.py:[0-9]+ "),
        ("own_nets.models:not_copied", "its network cannot be copied: TypeError"),
        ("own_nets.models:few", r"its network gives \(1, 3\) for one image; it must give logits \(1, 10\)"),
        ({"name": "own_nets.models:both", "options": {"widht": 3}}, "unknown option 'widht'; did you mean 'width'"),
        ({"name": "own_nets.models:both", "options": {"shape": [1]}}, "shape is that of the data; leave it out"),
    ],
)
def test_what_cannot_be_used_is_one_line(here, data, architecture, says):
    with pytest.raises(InputError, match=rf"^[^\n]*{says}[^\n]*$") as error:
        rehearse(recipe_of({"architecture": architecture}), data, {})
    assert len(str(error.value)) <= 300


def test_a_network_for_other_images_is_refused_with_the_place_in_its_code(here):
    wide = from_arrays(torch.zeros(4, 1, 4, 4), torch.tensor([0, 1, 2, 9]))
    with pytest.raises(InputError, match=r"models.m0: RuntimeError: .*at models.py:\d+ "):
        rehearse(recipe_of(own("nothing")), wide, {})


def test_code_in_no_file_is_refused(data):
    sys.modules["own_nets"] = type(sys)("own_nets")
    sys.modules["own_nets"].make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    try:
        with pytest.raises(InputError, match="its code is in no file"):
            packages_of(recipe_of({"architecture": "own_nets:make"}))
    finally:
        forget()


def test_records_and_workers_know_the_code(here):
    recipe = recipe_of(own("both"), own("both", base="m0"))
    (code,) = packages_of(recipe)
    assert code.package == "own_nets.models:both" and code.version.startswith("code ")
    check_packages([code])
    with pytest.raises(InputError, match=r"has own_nets.models:both code .*, and the run began with .* other"):
        check_packages([Plugin(code.package, "other")])
    with pytest.raises(InputError, match=r"lacks own_nets.models:gone"):
        check_packages([Plugin("own_nets.models:gone", "code 1")])


def test_a_dry_run_shows_what_code_runs(here, capsys):
    (here / "own.toml").write_text(
        textwrap.dedent("""
            name = "own"
            data = { name = "digits", limit = 10 }
            threat = { eps = [0.1] }
            defaults = { architecture = "own_nets.models:both", train = { epochs = 1 } }
            models = [{ name = "a" }, { name = "b", base = "a", quantize = { activation_bits = 2 } }]
            attacks = [{ id = "art:fgsm" }]
            sweep = { "models.b.quantize.activation_bits" = [1, 2] }
        """)
    )
    main(["run", "own.toml", "--dry-run", "--out", "r"])
    assert "runs code: own_nets.models:both, the architecture of a and 2 more\n" in capsys.readouterr().out
    assert not (here / "r").exists()


def test_only_what_a_recipe_names_itself_is_shown():
    recipe = recipe_of({}, {"factory": "nets:make", "checkpoint": "w.safetensors"}, {"factory": "net.pt2"})
    assert code_of_others(recipe) == ["nets:make, the factory of m1", "net.pt2, the factory of m2"]
    weights = recipe_of({"checkpoint": "w.pt2"}, {"checkpoint": "w.pt"})
    assert code_of_others(weights) == ["w.pt2, the checkpoint of m0"]
