"""``artq diagnose``: exit status 3 for a claim that does not survive, one line for what cannot be used."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from art_qplugins.cli import main
from art_qplugins.data import load
from art_qplugins.errors import InputError
from art_qplugins.evaluation.records import Results
from art_qplugins.recipes.factory import make_estimator, make_module

NETWORKS = """
    import torch
    from art_qplugins import load, quantize, train
    from art_qplugins.models.convnet import ConvNet

    def plain():
        torch.manual_seed(0)
        network = ConvNet((1, 8, 8), 10, width=8)
        return train(network, load("digits", "train"), epochs=8, learning_rate=0.05, weight_decay=5e-3)

    def masked():
        return quantize(plain(), weight_bits=3, mu=255.0, mu_layers=2)

    class Nan(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] * float("nan")

    def number():
        return 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(textwrap.dedent(NETWORKS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return tmp_path


def diagnose(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["diagnose", *arguments])
    return stop.value.code


def results(folder: Path) -> Results:
    return Results.model_validate_json((folder / "results.json").read_bytes())


@pytest.mark.parametrize(("factory", "verdict"), [("masked", "MASKED"), ("Nan", "INVALID")])
def test_a_claim_that_does_not_survive_ends_with_status_3(here, capsys, factory, verdict):
    status = diagnose("--model", f"my_networks:{factory}", "--eps", "0.15", "--limit", "60", "--out", "r")
    assert status == 3
    assert results(here / "r").models[0].verdict == verdict
    assert (here / "r" / "report.html").exists()
    assert verdict in capsys.readouterr().out


def test_an_honest_module_is_not_refuted_and_the_second_time_nothing_is_computed(here, capsys):
    arguments = ["diagnose", "--model", "my_networks:plain", "--eps", "0.15", "--limit", "100", "--out", "r"]
    main(arguments)
    assert results(here / "r").models[0].verdict == "NOT_REFUTED"
    main(arguments)
    assert "0 cells computed" in capsys.readouterr().out


def test_a_claimed_number_is_what_is_tested(here):
    main(
        [
            "diagnose",
            "--model",
            "my_networks:plain",
            "--eps",
            "0.15",
            "--limit",
            "100",
            "--out",
            "r",
            "--claimed",
            "0.9",
        ]
    )
    claim = results(here / "r").models[0].claim
    assert (claim.accuracy, claim.status) == (0.9, "OVERSTATED")


@pytest.mark.slow
def test_the_claims_of_a_recipe_alone(here):
    recipe = """
        name = "small"
        claim = { attack = "art:pgd", eps = 0.15 }
        data = { name = "digits", limit = 100 }
        threat = { eps = [0.05, 0.15] }
        [[models]]
        name = "fp32"
        [[models]]
        name = "mu"
        base = "fp32"
        quantize = { weight_bits = 3, mu = 255.0, mu_layers = 2 }
        train = { epochs = 0 }
        [[attacks]]
        id = "art:pgd"
        [[attacks]]
        id = "art:mifgsm"
    """
    (here / "small.toml").write_text(textwrap.dedent(recipe))
    assert diagnose("small.toml", "--out", "r") == 3
    found = results(here / "r")
    assert {m.name: m.verdict for m in found.models} == {"fp32": "NOT_REFUTED", "mu": "MASKED"}
    assert {c.eps for c in found.cells if c.role != "probe"} == {0.0, 0.15}
    counted = {cell for m in found.models for r in m.robust for cell in r.attacks}
    assert {c.eps for c in found.cells if c.id in counted} == {0.0, 0.15}  # but one probe has an unbounded eps
    assert not any(c.attack == "art:mifgsm" for c in found.cells)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "RECIPE or --model"),
        (["x.toml", "--model", "my_networks:plain"], "one of them"),
        (["--model", "my_networks"], "MODULE:FACTORY"),
        (["--model", "no_such_module:x"], "cannot import"),
        (["--model", "my_networks:plian"], "did you mean 'plain'"),
        (["--model", "my_networks:number"], "must return a torch.nn.Module"),
        (["--model", "my_networks:Nan", "--eps", "8/0"], "not a number"),
        (["--model", "my_networks:Nan", "--claimed", "52"], "in [0, 1]"),
        (["--model", "my_networks:Nan", "--attack", "art:pdg"], "did you mean 'art:pgd'"),
        (["--model", "my_networks:plain", "--checkpoint", "none.safetensors"], "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(here, capsys, arguments, says):
    assert diagnose(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


# --- What their code may do

ODD = """
    import sys
    import torch
    from torch import nn

    print("their print")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            return self.odd(self.fc(x.flatten(1)), x)

    class Tuple(Net):
        def odd(self, logits, x):
            return logits, x

    class Table(Net):
        def odd(self, logits, x):
            return {"logits": logits}

    class Classes(Net):
        def odd(self, logits, x):
            return logits.argmax(1)

    class Whole(Net):
        def odd(self, logits, x):
            return logits.long()

    class Few(Net):
        def odd(self, logits, x):
            return logits[:, :3]

    class Raises(Net):
        def odd(self, logits, x):
            return {}["no such key"]

    class Inside(Net):
        def odd(self, logits, x):
            return nn.functional.linear(x, self.fc.weight)

    class Exits(Net):
        def odd(self, logits, x):
            sys.exit(0)

    class Repr(Net):
        def odd(self, logits, x):
            return logits

        def extra_repr(self):
            raise ValueError("no repr")

    class Other(BaseException):
        def __str__(self):
            raise ValueError

    def needs(width): ...
    def nothing(): ...
    def a_class(): return Net
    def tensor(): return torch.zeros(100, 100)
    def exits(): sys.exit(0)
    def other(): raise Other
    def long(): raise ValueError("x" * 1000 + chr(27) + chr(10))
    def interrupted(): raise KeyboardInterrupt
    number = 3
"""
MODULES = {
    "odd": textwrap.dedent(ODD),
    "syntax": "def make(:\n",
    "undecodable": 'x = "\udcff"\n',
    "exits": "import sys\n\nsys.exit(0)\n",
    "lacks": "import torch\nimport no_such_package\n",
    "divides": "a = 1 / 0\n",
    "asks": "import divides\n",
    "refuses": "def __getattr__(name):\n    raise ValueError(name)\n",
}


@pytest.fixture
def odd(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_bytes(text.encode(errors="surrogateescape"))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        *((name, "MODULE:FACTORY") for name in (":make", "..odd:make", "odd:", "a:b:c", "odd", "a..b:c", "odd:a b")),
        ("größe:make", "cannot import 'größe': ModuleNotFoundError"),
        ("syntax:make", "SyntaxError: .*at syntax.py:1 \\(def make\\(:\\)"),
        ("undecodable:make", "SyntaxError: .*undecodable.py"),
        ("exits:make", "SystemExit: 0, at exits.py:3 \\(sys.exit\\(0\\)\\)"),
        ("lacks:make", "No module named 'no_such_package', at lacks.py:2 \\(import no_such_package\\)"),
        ("divides:make", "ZeroDivisionError: division by zero, at divides.py:1 "),
        ("asks:make", "ZeroDivisionError: division by zero, at divides.py:1 "),
        ("refuses:make", "ValueError: make, at refuses.py:2 "),
        ("odd:needs", "TypeError: needs\\(\\) missing 1 required positional argument: 'width'"),
        ("odd:nothing", "it returns None; it must return a torch.nn.Module"),
        ("odd:a_class", "it returns <class 'odd.Net'>; it must"),
        ("odd:tensor", "it returns tensor.*; it must"),
        ("odd:number", "it is 3; it must be a function"),
        ("odd:exits", "SystemExit: 0, at odd.py:"),
        ("odd:other", "model odd:other: Other, at odd.py:"),
        ("odd:long", "ValueError: xxx.* ... "),
        ("odd:Tuple", "Tuple gives tuple for 2 images"),
        ("odd:Table", "Table gives dict for 2 images"),
        ("odd:Classes", "Classes gives \\(2,\\) for 2 images"),
        ("odd:Few", "Few gives \\(2, 3\\) for 2 images"),
        ("odd:Whole", "gives torch.int64; it must give floating-point logits"),
        ("odd:Raises", "KeyError: 'no such key', at odd.py:"),
        ("odd:Inside", "RuntimeError: .*at odd.py:.*linear\\(x, self.fc.weight\\)"),
        ("odd:Exits", "SystemExit: 0, at odd.py:"),
        ("odd:Repr", "ValueError: no repr, at odd.py:"),
    ],
)
def test_what_their_code_does_is_one_line_with_its_place_and_nothing_is_written(odd, capsys, model, says):
    assert diagnose("--model", model, "--limit", "10", "--out", "r") == 2
    error = capsys.readouterr().err
    assert re.search(says, error), error
    assert error.startswith(f"artq: model {model}: ") and error.count("\n") == 1 and len(error) <= 310
    assert not (odd / "r").exists()


def test_an_interrupt_of_their_code_stays_one(odd):
    assert diagnose("--model", "odd:interrupted", "--out", "r") == 130


def test_a_trial_of_a_module_changes_nothing_of_it(odd):
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(64, 10)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            torch.rand(())
            return self.fc(x.flatten(1))

    sys.modules["odd"] = type(sys)("odd")
    sys.modules["odd"].made = Counts().train()
    before = torch.get_rng_state()
    estimator = make_estimator("odd:made", None, load("digits", "test"))
    assert estimator.model.calls == 0 and torch.equal(torch.get_rng_state(), before)


def test_a_module_that_exits_in_an_attack_fails_its_cell_alone(odd, capsys):
    (odd / "late.py").write_text(
        textwrap.dedent("""
            import sys
            import torch

            class Late(torch.nn.Sequential):
                def forward(self, x):
                    return sys.exit(0) if x.requires_grad else super().forward(x)

            def make():
                return Late(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        """)
    )
    assert diagnose("--model", "late:make", "--limit", "10", "--level", "0", "--out", "r") in (1, 3)
    sys.modules.pop("late")
    error = next(cell.error for cell in results(odd / "r").cells if cell.attack == "art:pgd")
    assert error.strip().endswith("SystemExit: 0")


def test_the_current_folder_is_on_the_path_for_the_import_alone(here):
    before = list(sys.path)
    with pytest.raises(InputError):
        make_module("no_such_module:x")
    assert sys.path == before


def test_the_current_folder_comes_after_what_is_installed(here, monkeypatch):
    """A file of the user's does not replace a module of that name which the network imports."""
    installed = here / "site-packages"
    installed.mkdir()
    (installed / "used_by_both.py").write_text("import torch\nmake = torch.nn.Flatten\n")
    (here / "used_by_both.py").write_text("raise RuntimeError('the wrong one')\n")
    (here / "my_networks.py").write_text("from used_by_both import make\n")
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.delitem(sys.modules, "used_by_both", raising=False)
    assert isinstance(make_module("my_networks:make"), torch.nn.Flatten)


def test_a_current_folder_that_is_on_the_path_stays_there(here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    before = list(sys.path)
    make_module("my_networks:Nan")
    assert sys.path == before


def test_a_factory_may_make_an_art_estimator_which_is_judged_as_its_predict_answers(tmp_path, monkeypatch):
    (tmp_path / "arts.py").write_text(
        textwrap.dedent("""
            import torch
            from art.defences.preprocessor import FeatureSqueezing
            from art.estimators.classification import PyTorchClassifier

            def make():
                torch.manual_seed(0)
                network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
                squeeze = FeatureSqueezing((0, 1), bit_depth=1)
                loss = torch.nn.CrossEntropyLoss()
                return PyTorchClassifier(network, loss, (1, 8, 8), 10, preprocessing_defences=squeeze, device_type="cpu")

            ready = make()
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = load("digits", "test")
    x = data.x()[:4]
    for name in ("arts:make", "arts:ready"):
        estimator = make_estimator(name, None, data)
        assert torch.equal(estimator.model(x), estimator.model.network(x.round()))
