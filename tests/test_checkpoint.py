"""Checkpoints: whole, from this network, never a pickle."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from torch import nn

from art_qplugins import InputError, quantize
from art_qplugins.checkpoint import load_checkpoint, save_checkpoint
from art_qplugins.files import write_atomically
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.ensemble import StochasticEnsemble


def network(width=4):
    return ConvNet((1, 8, 8), 10, width=width).eval()


@pytest.fixture
def path(tmp_path):
    """A checkpoint of a network, with its description."""
    path = tmp_path / "deeper" / "net.safetensors"
    save_checkpoint(path, network(), {"architecture": "convnet", "width": 4})
    return path


def refused(*parts):
    """Raises InputError in one line that begins with the checkpoint and holds these parts."""
    return pytest.raises(InputError, match=r"^checkpoint (?s:" + "".join(f"(?=.*{p})" for p in parts) + r")[^\n]*$")


@pytest.mark.parametrize("kind", ["float", "weights", "stochastic"])
def test_a_round_trip(tmp_path, kind):
    make = {
        "float": network,
        "weights": lambda: quantize(network(), weight_bits=3),
        "stochastic": lambda: StochasticEnsemble(quantize(network(), activation_bits=2, alpha=2.0), 2),
    }[kind]
    saved, loaded = make(), make()
    with torch.no_grad():
        for value in saved.state_dict().values():
            value.copy_(torch.rand(value.shape) * 3)
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, saved, {"seed": 3, "where": tmp_path})
    x = torch.rand(3, 1, 8, 8)
    assert not torch.equal(loaded(x), make()(x))
    assert load_checkpoint(path, loaded) == {"seed": 3, "where": str(tmp_path)}
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value) and loaded.state_dict()[name].dtype == value.dtype, name
    if kind != "stochastic":
        assert torch.equal(loaded(x), saved(x))
    assert sorted(os.listdir(tmp_path)) == ["net.json", "net.safetensors"]


def test_weights_alone_are_enough(path):
    path.with_suffix(".json").unlink()
    assert load_checkpoint(path, network()) == {}


def test_a_missing_file(tmp_path):
    with refused(r"gone\.safetensors: cannot be read", "no such file", r"\.safetensors"):
        load_checkpoint(tmp_path / "gone.safetensors", network())


def test_a_folder_in_place_of_a_file(tmp_path):
    with refused("cannot be read"):
        load_checkpoint(tmp_path, network())


def flip(path, at):
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x80
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_changed_byte(path, at):
    flip(path, at)
    with refused("corrupt", r"SHA-256.*net\.json" if at == -1 else "header is damaged"):
        load_checkpoint(path, network())


def test_without_the_hash_only_the_format_itself_can_tell(path):
    path.with_suffix(".json").unlink()
    whole, changed = network(), network()
    load_checkpoint(path, whole)
    flip(path, -1)  # a byte of the last weight
    load_checkpoint(path, changed)
    differ = [n for n, value in whole.state_dict().items() if not torch.equal(value, changed.state_dict()[n])]
    assert len(differ) == 1
    flip(path, 0)  # the length of the header
    with refused("not a safetensors file"):
        load_checkpoint(path, network())


def die(call, monkeypatch, *, at):
    """Run ``call`` with a process that dies at its n-th renaming of a complete file."""
    replace, count = os.replace, 0

    def counted(part, target):
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        replace(part, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted)
        with pytest.raises(KeyboardInterrupt):
            call()


def test_where_there_is_a_description_the_weights_are_complete_also_after_a_crash(tmp_path, monkeypatch):
    path, saved = tmp_path / "net.safetensors", network()
    die(lambda: save_checkpoint(path, saved, {"seed": 3}), monkeypatch, at=1)
    assert os.listdir(tmp_path) == []
    die(lambda: save_checkpoint(path, saved, {"seed": 3}), monkeypatch, at=2)
    assert os.listdir(tmp_path) == ["net.safetensors"]
    assert load_checkpoint(path, network()) == {}


def test_new_weights_beside_an_old_description_are_refused(path, monkeypatch):
    trained = network()
    torch.nn.init.ones_(next(trained.parameters()))
    die(lambda: save_checkpoint(path, trained, {}), monkeypatch, at=2)
    with refused("corrupt", "SHA-256"):
        load_checkpoint(path, network())


@pytest.mark.parametrize("size", [0, 5, 500])
@pytest.mark.parametrize("described", [True, False])
def test_a_file_that_was_cut_off(path, size, described):
    path.write_bytes(path.read_bytes()[:size])
    if not described:
        path.with_suffix(".json").unlink()
    with refused("corrupt", "train again"):
        load_checkpoint(path, network())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"[]", b"null", b"3", b'"text"', b"{}", b'{"sha256": 1}', b"\xff\xfe"]
)
def test_a_description_that_is_none(path, content):
    path.with_suffix(".json").write_bytes(content)
    with refused(r"description .*net\.json|corrupt"):
        load_checkpoint(path, network())


def test_another_hash(path):
    description = json.loads(path.with_suffix(".json").read_text())
    description["sha256"] = "0" * 64
    path.with_suffix(".json").write_text(json.dumps(description))
    with refused("corrupt"):
        load_checkpoint(path, network())


@pytest.mark.parametrize(
    ("other", "parts"),
    [
        (lambda: network(width=6), ["another network", r"bn1\.bias is \(4,\) there and \(6,\) in this ConvNet"]),
        (lambda: nn.Linear(2, 2), ["another network", r"bias is absent there and \(2,\) in this Linear"]),
        (lambda: quantize(network(), activation_bits=2, alpha=2.0), [r"act1\.offset is absent there and \(\)"]),
    ],
)
def test_the_weights_of_another_network_change_nothing(path, other, parts):
    model = other()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with refused(*parts):
        load_checkpoint(path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_tensor_that_the_network_lacks_is_named(tmp_path):
    save_checkpoint(tmp_path / "net.safetensors", nn.Linear(2, 2), {})
    with refused("another network", r"\(bias is \(2,\) there and absent in this Linear\)"):
        load_checkpoint(tmp_path / "net.safetensors", nn.Linear(2, 2, bias=False))


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb))])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, write, hashed):
    import hashlib

    bomb = Bomb()
    bomb.target = str(tmp_path / "exploded")
    path = tmp_path / "net.safetensors"
    write(bomb, path)
    if hashed:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
    with refused("not a safetensors file"):
        load_checkpoint(path, network())
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(FileExistsError):  # the bomb does go off where it is loaded
        pickle.loads(pickle.dumps(bomb)), pickle.loads(pickle.dumps(bomb))


# --- write_atomically


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    for culprit in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, culprit, lambda *a: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_file_has_the_mode_that_a_plain_open_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "ours", b"")
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
