"""Checkpoints of unknown origin: what a header promises, what weights hold, and what their description says."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from art_qplugins.checkpoint import load_checkpoint, read_description, save_checkpoint
from art_qplugins.errors import InputError
from art_qplugins.models.convnet import ConvNet


def network():
    return ConvNet((1, 8, 8), 10, width=4).eval()


def refused(*parts):
    """Raises InputError in one line of at most 300 characters that begins with the checkpoint and holds these parts."""
    pattern = "^checkpoint (?s:" + "".join(f"(?=.*{part})" for part in parts) + r")[^\n]{1,289}$"
    return pytest.raises(InputError, match=pattern)


@pytest.fixture
def weights():
    return {name: value.clone() for name, value in network().state_dict().items()}


def changed(weights, name, change):
    return {**weights, name: change(weights[name])}


ODD = {
    "NaN": ("conv1.weight", lambda w: w * float("nan"), "conv1.weight are NaN or infinite"),
    "infinity": ("fc2.bias", lambda w: w + float("inf"), "10 values of fc2.bias are NaN or infinite"),
    "NaN of a buffer": ("bn1.running_var", lambda w: w * float("nan"), "bn1.running_var are NaN"),
    "int8": ("fc2.weight", lambda w: w.to(torch.int8), "fc2.weight is I8 there and F32 in this ConvNet"),
    "bool": ("fc2.weight", lambda w: w > 0, "fc2.weight is BOOL there and F32"),
    "complex": ("fc2.weight", lambda w: w.to(torch.complex64), "fc2.weight is C64 there and F32"),
    "half": ("fc2.weight", lambda w: w.half(), "fc2.weight is F16 there and F32"),
    "double": ("fc2.weight", lambda w: w.double(), "fc2.weight is F64 there and F32"),
    "float count": ("bn1.num_batches_tracked", lambda w: w.float(), "num_batches_tracked is F32 there and I64"),
    "shape": ("fc2.bias", lambda w: w[:5].clone(), r"fc2.bias is \(5,\) there and \(10,\)"),
}


@pytest.mark.parametrize("kind", ODD)
def test_weights_that_are_refused(tmp_path, weights, kind):
    name, change, why = ODD[kind]
    save_file(changed(weights, name, change), tmp_path / "it.safetensors")
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with refused(rf"{tmp_path}/it\.safetensors: ", why):
        load_checkpoint(tmp_path / "it.safetensors", module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class Masked(nn.Module):
    """A network with an infinite buffer of its own, as masks of attention are."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.gain = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))


def test_infinities_of_the_network_itself_are_kept(tmp_path):
    path = tmp_path / "it.safetensors"
    save_file(Masked().state_dict(), path)
    assert load_checkpoint(path, Masked()) == {}
    save_file({**Masked().state_dict(), "mask": torch.tensor([float("-inf"), 0.0])}, path)
    with refused("1 values of mask are NaN or infinite"):
        load_checkpoint(path, Masked())


def test_a_state_that_is_no_tensor_is_refused(tmp_path, weights):
    class Odd(ConvNet):
        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            pass

    save_file(weights, tmp_path / "it.safetensors")
    with refused("_extra_state is absent there"):
        load_checkpoint(tmp_path / "it.safetensors", Odd((1, 8, 8), 10, width=4))


def _header(change):
    """Safetensors whose header is changed as JSON or as bytes, with the length that it then has."""

    def make(content):
        length = struct.unpack("<Q", content[:8])[0]
        text = change(content[8 : 8 + length])
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return make


def _entries(change):
    def edit(text):
        header = json.loads(text)
        change(header)
        return json.dumps(header).encode()

    return _header(edit)


FILES = {
    "empty": (lambda _: b"", "it has no header"),
    "short": (lambda content: content[:7], "it has no header"),
    "long header": (lambda content: struct.pack("<Q", 2**40) + content[8:], "it has no header"),
    "long file": (lambda content: content + b"more", "does not promise"),
    "cut": (lambda content: content[:-4], "does not promise"),
    "nested": (_header(lambda _: b"[" * 100_000), "nested more than 50 deep"),
    "no object": (_header(lambda _: b"[1, 2]"), "a list in place of an object"),
    "no type": (_entries(lambda h: h["fc2.bias"].pop("dtype")), "header is damaged"),
    "odd shape": (_entries(lambda h: h["fc2.bias"].update(shape=5)), "header is damaged"),
    "many values": (_entries(lambda h: h["fc2.bias"].update(shape=[10**12])), r"\(1000000000000,\) there"),
    "offsets beyond": (_entries(lambda h: h["fc2.bias"].update(data_offsets=[0, 10**12])), "does not promise"),
    "offsets odd": (_entries(lambda h: h["fc2.bias"].update(data_offsets=["a", "b"])), "a corrupt one"),
    "offsets overlap": (_entries(lambda h: h["fc2.bias"].update(data_offsets=[0, 40])), "corrupt one"),
    "pickle": (
        lambda _: b"\x80\x04K\x05.",
        "torch.save",
    ),
    "text": (lambda _: b"hello, hello", "it has no header"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_refused(tmp_path, weights, kind):
    change, why = FILES[kind]
    (tmp_path / "it.safetensors").write_bytes(change(save(weights)))
    with refused(r"it\.safetensors: ", why):
        load_checkpoint(tmp_path / "it.safetensors", network())


def test_a_file_of_torch_save_is_told_what_to_call_it(tmp_path, weights):
    torch.save(weights, tmp_path / "it.safetensors")
    with refused(r"it\.safetensors: not a safetensors file", r"name it FILE\.pt", "tensors alone$"):
        load_checkpoint(tmp_path / "it.safetensors", network())
    (tmp_path / "it.safetensors").rename(tmp_path / "it.pt")  # what the line says
    assert load_checkpoint(tmp_path / "it.pt", network()) == {}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "'': cannot be read .the path is empty"),
        (".", "it is a folder"),
        ("~nobody-has-this-name/w", "no such user"),
    ],
)
def test_paths_that_are_refused(path, why):
    with refused(why, "give the path of a .safetensors file$"):
        load_checkpoint(path, network())


@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
@pytest.mark.parametrize("beside", [False, True])
def test_a_pipe_is_not_waited_for(tmp_path, weights, beside):
    path = tmp_path / "it.safetensors"
    if beside:
        save_file(weights, path)
    os.mkfifo(path.with_suffix(".json") if beside else path)
    with refused("it is a pipe"):
        load_checkpoint(path, network())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000, "nested more than 50 deep"),
        (b'{"sha256": NaN}', "the number NaN"),
        (b'{"sha256": ' + b"9" * 5000 + b"}", "a whole number of 5000 digits"),
        (b'{"model": {}}', "no sha256"),
        (b'{"sha256": 5}', "no sha256"),
    ],
    ids=["nested", "NaN", "digits", "none", "number"],
)
def test_descriptions_that_are_refused(tmp_path, content, why):
    path = tmp_path / "it.safetensors"
    save_checkpoint(path, network(), {})
    path.with_suffix(".json").write_bytes(content)
    for read in (read_description, lambda path: load_checkpoint(path, network())):
        with refused(r"description .*it\.json: ", why, "delete it and the weights"):
            read(path)


def test_a_description_is_read_without_the_weights(tmp_path):
    path = tmp_path / "it.safetensors"
    save_checkpoint(path, network(), {"model": {"name": "net"}})
    os.truncate(path, 0)
    assert read_description(path)["model"] == {"name": "net"}
    path.with_suffix(".json").unlink()
    assert read_description(path) == {}
    path.unlink()
    with refused("no such file"):
        read_description(path)


def test_a_kill_between_the_two_writes_leaves_no_pair_that_loads(tmp_path, monkeypatch):
    path = tmp_path / "it.safetensors"
    save_checkpoint(path, network(), {})
    import art_qplugins.checkpoint as module

    really, written = module.write_atomically, []

    def killed(where, content):
        if written:
            raise KeyboardInterrupt
        written.append(where)
        really(where, content)

    monkeypatch.setattr(module, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, network(), {})
    assert written == [path]  # the weights come first
    with refused("it is corrupt", "SHA-256"):
        load_checkpoint(path, network())
