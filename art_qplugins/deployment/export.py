"""``export`` writes a network as a file that a runtime takes.

==========  ===========================================================================================================
``to``      what the file holds
==========  ===========================================================================================================
onnx        the integer form (:mod:`~art_qplugins.deployment.integer`) in ONNX's operators, for ONNX Runtime and OpenVINO
pt2         the network itself as ``torch.export`` sees it: torch's operators in float32, bit for bit its answers
torchao     the integer form in PT2E's operators, as ``.pt2``
==========  ===========================================================================================================

Weights that are mapped by the mu-law are stored in float32: its levels are not even, so that no integer form exists. Of a
random network a file holds frozen members, whose noise is a constant.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from art_qplugins.deployment.frozen import frozen
from art_qplugins.deployment.integer import BIAS, Layer, integer_form
from art_qplugins.deployment.onnx_file import write_onnx
from art_qplugins.deployment.torch_file import write_pt2, write_torchao
from art_qplugins.domains import COUNT, PATH, ListOf, Maybe, OneOf, check_all
from art_qplugins.errors import InputError
from art_qplugins.estimators.deployed import as_module
from art_qplugins.files import as_path, printable
from art_qplugins.quantizers import bake

__all__ = ["FORMS", "Exported", "export"]

FORMS = ("onnx", "pt2", "torchao")
_SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "torchao": ".pt2"}
_NAMED = 6


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    :ivar path: of the file.
    :ivar module: a torch module on the CPU that gives what the file gives, up to the rounding of float32. Evaluate it, and what
        is evaluated is what ships.
    :ivar layers: how the file holds each layer with weights; empty for ``"pt2"``.
    :ivar draws: number of frozen members of a random network; 0 for others.
    """

    path: Path
    module: nn.Module
    layers: tuple[Layer, ...]
    draws: int

    @property
    def notes(self) -> list[str]:
        """What is not as in the network, a line each."""
        return list(_notes(self))


def export(
    model: Any,
    path: str | os.PathLike[str],
    input_shape: Sequence[int] | None = None,
    *,
    to: Literal["onnx", "pt2", "torchao"] = "onnx",
    bias: Literal["int", "float"] = "int",
) -> Exported:
    """Write ``model`` to ``path``, an ``.onnx`` or a ``.pt2``, for batches of any size. The model stays as it is.

    :param model: an ART ``PyTorchClassifier``, with its pre- and postprocessing, or a module that takes (N, C, H, W) float32 in
        [0, 1].
    :param input_shape: (C, H, W). An estimator has its own.
    :param to: ``"onnx"`` (needs ``onnx`` and ``onnxscript``), ``"pt2"``, or ``"torchao"`` (needs ``torchao``).
    :param bias: of convolutions and linear layers between quantized activations. ``"int"`` rounds it to int32 in steps of
        s_x s_w, which integer kernels need. ``"float"`` keeps it, and with it the network's answers: runtimes then compute such
        convolutions in float, and ONNX Runtime needs ``disabled_optimizers=["WeightBiasQuantization"]``, without which it
        rounds the biases itself. ``"pt2"`` keeps it always.
    :raises InputError: where an operation has no form there, naming its layer, or a package is missing.
    """
    check_all(
        locals(),
        {"path": PATH, "input_shape": Maybe(ListOf(COUNT, least=3, different=False)), "to": OneOf(FORMS), "bias": BIAS},
    )
    target, suffix = as_path(path, hint="give the path of a file"), _SUFFIXES[to]
    if target.suffix.lower() != suffix:
        raise InputError(f"path: {printable(target.name)} does not end in {suffix}, by which such files are known")
    module, shape = _module(model, input_shape)
    fixed, draws = frozen(bake(copy.deepcopy(module).cpu().float()).eval(), shape)
    if to == "pt2":
        write_pt2(target, fixed, shape)
        return Exported(target, fixed, (), draws)
    form = integer_form(fixed, shape, bias=bias)
    if to == "torchao":
        write_torchao(target, form.module, shape)
    else:
        write_onnx(target, form.module, shape, {"artq.bias": bias, "artq.frozen_draws": str(draws)})
    return Exported(target, form.module, form.layers, draws)


def _module(model: Any, input_shape: Sequence[int] | None) -> tuple[nn.Module, tuple[int, int, int]]:
    module = as_module(model)
    shape = input_shape if input_shape is not None else getattr(model, "input_shape", None)
    if not isinstance(module, nn.Module):
        raise InputError(f"model: a {type(model).__name__}; give a torch module or an ART PyTorchClassifier")
    if shape is None:
        raise InputError("input_shape: a module does not tell it; give (C, H, W), e.g. (3, 32, 32)")
    if len(shape) != 3:
        raise InputError(f"input_shape: {tuple(shape)}; give (C, H, W), e.g. (3, 32, 32)")
    channels, height, width = (int(size) for size in shape)
    return module, (channels, height, width)


def _notes(made: Exported) -> Iterator[str]:
    if made.draws:
        members = "a frozen member" if made.draws == 1 else f"{made.draws} frozen members"
        yield f"random network: the file holds {members}, whose noise is constant; the network itself draws afresh"
    reasons = {(_how(layer), layer.reason) for layer in made.layers if layer.reason}
    for how, reason in sorted(reasons):
        names = [one.name for one in made.layers if (_how(one), one.reason) == (how, reason)]
        shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        yield f"{shown}: {how}{reason}"
    if wide := [layer.name for layer in made.layers if layer.saturates]:
        shown = ", ".join(itertools.islice(wide, _NAMED))
        yield (
            f"{shown}: on x86 without VNNI, kernels may saturate 8-bit activations with such weights; there, set ONNX "
            "Runtime's session.x64quantprecision to 1, or quantize weights to 7 bits"
        )


def _how(layer: Layer) -> str:
    if layer.weight == "float32":
        return "float32 weights, "
    return "computed in float, " if layer.kernel == "float" else ""
