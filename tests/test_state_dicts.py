"""Weights of torch.save, which are tensors by name and nothing else, and archives of torch.export."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from art_qplugins.checkpoint import load_checkpoint, read_description
from art_qplugins.cli import main
from art_qplugins.data import load
from art_qplugins.errors import InputError
from art_qplugins.evaluation.records import Results
from art_qplugins.fingerprint import fingerprint
from art_qplugins.models.convnet import ConvNet
from art_qplugins.recipes.factory import make_estimator, make_module


def network(seed=0):
    torch.manual_seed(seed)
    return ConvNet((1, 8, 8), 10, width=4).eval()


def weights(prefix=""):
    return {f"{prefix}{name}": value for name, value in network(1).state_dict().items()}


def refused(*parts):
    """Raises InputError in one line of at most 300 characters that begins with the file and holds these parts."""
    pattern = "^checkpoint (?s:" + "".join(f"(?=.*{part})" for part in parts) + r")[^\n]{1,289}$"
    return pytest.raises(InputError, match=pattern)


class Made:
    """Writes a file where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize(
    "content",
    [
        weights(),
        weights("module."),
        weights("_orig_mod."),
        {"state_dict": weights()},
        {"model": weights("module.")},
        {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in weights().items()},
    ],
    ids=["plain", "DataParallel", "compiled", "state_dict", "model", "parameters"],
)
@pytest.mark.parametrize("suffix", [".pt", ".PTH"])
def test_a_state_dict_is_loaded(tmp_path, content, suffix):
    torch.save(content, tmp_path / f"w{suffix}")
    module = network()
    assert load_checkpoint(tmp_path / f"w{suffix}", module) == {}
    assert all(torch.equal(value, weights()[name]) for name, value in module.state_dict().items())


HELD = {
    "list": ([1, 2], "it holds a list of 2, and no state dict", "torch.save.net.state_dict.., FILE"),
    "number": (3, "it holds 3, and no state dict"),
    "tensor": (torch.zeros(3), "it holds one tensor, and no state dict"),
    "nothing": ({}, "it holds no tensor"),
    "training": ({"model": weights(), "epoch": 3}, r"it holds epoch beside model; .*weights_only=True.\[.model.\], NEW"),
    "text": ({**weights(), "arch": "resnet"}, "it holds 'resnet' as arch, and no tensors alone"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "sparse, quantized or other tensor as a"),
    "meta": ({"a": torch.zeros(3, device="meta")}, "sparse, quantized or other tensor as a"),
    "module": (nn.Linear(2, 2), "it holds torch.nn.modules.linear.Linear", "reading that runs code"),
    "class": ({"a": Made()}, "it holds builtins.getattr and 2 more", "reading that runs code"),
    "other": ({"a": torch.zeros(3)}, r"made for another network .a is \(3,\) there and absent in this ConvNet"),
    "shape": ({**weights(), "fc2.bias": torch.zeros(1).expand(2**40)}, r"fc2.bias is \(1099511627776,\) there"),
    "type": ({**weights(), "fc2.bias": torch.zeros(10).half()}, "fc2.bias is F16 there and F32"),
    "NaN": ({**weights(), "fc2.bias": torch.full((10,), torch.nan)}, "10 values of fc2.bias are NaN"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_a_file_of_torch_save_must_not_hold(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    content, *says = HELD[kind]
    torch.save(content, "w.pt")
    module = network()
    before = fingerprint(module)
    with refused("w.pt: ", *says):
        load_checkpoint("w.pt", module)
    assert fingerprint(module) == before and not Path("it-ran").exists()


def rezipped(content, change, compression=zipfile.ZIP_STORED):
    """The archive with its parts changed."""
    with zipfile.ZipFile("w.pt") as old, zipfile.ZipFile("new.pt", "w", compression) as new:
        for part in old.namelist():
            new.writestr(part, change(part, old.read(part)))
    return Path("new.pt").read_bytes()


def grown(name, content):
    """A table of tensors that goes on for 20 MB."""
    return content + b"." * 20_000_000 if name.endswith("data.pkl") else content


FILES = {
    "empty": (lambda content: b"", "not a file of torch.save .no archive"),
    "text": (lambda content: b"weights", "not a file of torch.save .no archive"),
    "pickle": (lambda content: pickle.dumps({}), "a pickle, or of a torch before 1.6"),
    "cut": (lambda content: content[: len(content) // 2], "it is cut or damaged"),
    "cut at its end": (lambda content: content[:-9], "it is cut or damaged"),
    "damaged": (lambda content: content[:5000] + b"\0" * 200 + content[5200:], "it is damaged .the checksum of w/data"),
    "compressed": (lambda content: rezipped(content, lambda _, part: part, zipfile.ZIP_DEFLATED), "its parts do not have"),
    "huge header": (lambda content: rezipped(content, grown), "the table of its tensors takes 19.1 MiB"),
    "other archive": (lambda content: rezipped(content, lambda _, part: part).replace(b"data.pkl", b"data.pkx"), "not a file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_whole_file_of_torch_save(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    torch.save(weights(), "w.pt")
    change, says = FILES[kind]
    Path("w.pt").write_bytes(change(Path("w.pt").read_bytes()))
    with refused("w.pt: ", says):
        load_checkpoint("w.pt", network())


def test_an_old_file_and_code_are_refused(tmp_path):
    torch.save(weights(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with refused("a torch before 1.6"):
        load_checkpoint(tmp_path / "old.pt", network())
    with zipfile.ZipFile(tmp_path / "code.pt", "w") as archive:
        archive.writestr("net/code/__torch__.py", "pass")
    with refused("a TorchScript archive, which is code"):
        load_checkpoint(tmp_path / "code.pt", network())


def test_a_json_file_beside_is_no_description(tmp_path):
    torch.save(weights(), tmp_path / "w.pt")
    (tmp_path / "w.json").write_text('{"lr": 0.1}')
    assert read_description(tmp_path / "w.pt") == load_checkpoint(tmp_path / "w.pt", network()) == {}


# --- torch.export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An archive of a network for batches of any size."""
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    dynamic = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(network(1), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=dynamic), path)
    return path


def test_weights_of_an_exported_network_are_loaded(exported):
    module = network()
    assert load_checkpoint(exported, module) == {}
    assert all(torch.equal(value, weights()[name]) for name, value in module.state_dict().items())


def test_weights_of_another_exported_network_say_what_else_it_is_for(exported):
    with refused("made for another network", "or give the archive as factory$"):
        load_checkpoint(exported, ConvNet((1, 8, 8), 10, width=8))


def test_an_exported_network_answers_and_has_a_gradient(exported):
    estimator = make_estimator(str(exported), None, load("digits", "test"))
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    own = x.detach().clone().requires_grad_()
    estimator.model(x).square().sum().backward()
    network(1)(own).square().sum().backward()
    assert torch.equal(estimator.model(x), network(1)(x)) and torch.allclose(x.grad, own.grad, atol=1e-6)
    assert estimator.model.train().eval() is estimator.model


def test_another_graph_is_another_network(exported, tmp_path):
    class Twice(ConvNet):
        def forward(self, x):
            return 2 * super().forward(x)

    twice = Twice((1, 8, 8), 10, width=4).eval()
    twice.load_state_dict(weights())
    torch.export.save(torch.export.export(twice, (torch.zeros(2, 1, 8, 8),)), tmp_path / "twice.pt2")
    one, two = (make_module(str(path)) for path in (exported, tmp_path / "twice.pt2"))
    assert one.state_dict().keys() == two.state_dict().keys()
    assert fingerprint(one) == fingerprint(make_module(str(exported))) != fingerprint(two)


def test_an_exported_network_is_diagnosed(exported, tmp_path):
    arguments = ["--eps", "0.1", "--limit", "20", "--level", "0", "--out", str(tmp_path / "r")]
    with pytest.raises(SystemExit):  # it was never trained
        main(["diagnose", "--model", str(exported), *arguments])
    results = Results.model_validate_json((tmp_path / "r" / "results.json").read_bytes())
    assert [(model.name, model.n) for model in results.models] == [("net", 20)]
    assert {cell.attack: cell.status for cell in results.cells} == {"artq:clean": "success", "art:pgd": "success"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.pt2", weights(), "w.pt2: no archive of torch.export.save; write one with torch.export.save"),
        ("none.pt2", None, r"none.pt2: cannot be read \(no such file\)"),
    ],
)
def test_what_is_no_exported_network(tmp_path, monkeypatch, name, content, says):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        torch.save(content, name)
    with pytest.raises(InputError, match=f"^checkpoint {says}"):
        load_checkpoint(name, network())
    with pytest.raises(InputError, match=f"^model {says}"):
        make_module(name)


def test_an_exported_network_with_the_ending_of_torch_save_is_told_its_own(exported, tmp_path):
    (tmp_path / "net.pt").write_bytes(exported.read_bytes())
    with refused("an archive of torch.export; name it FILE.pt2"):
        load_checkpoint(tmp_path / "net.pt", network())


def test_a_damaged_archive_is_one_line(exported, tmp_path):
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(tmp_path / "net.pt2", "w") as new:
        for part in old.namelist():
            new.writestr(part, b"{}" if part.endswith("model.json") else old.read(part))
    with refused("torch cannot read it"):
        load_checkpoint(tmp_path / "net.pt2", network())
