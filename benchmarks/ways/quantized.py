"""The ways in which people quantize a trained network, each as a function from the network to the module that would ship."""

from __future__ import annotations

import copy
import importlib.metadata
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WAYS", "Session", "Way", "onnx_file", "trained_network"]


def trained_network(
    images: Tensor, labels: Tensor, *, width: int = 16, epochs: int = 8, seed: int = 0
) -> nn.Sequential:
    """Two convolutions and two linear layers for digits, trained on images (N, 1, 8, 8) with labels (N,), in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _network(width)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
                optimizer.step()
    return net.eval()


def _network(width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, 10)),
    )


class Session(nn.Module):
    """An ONNX file as a module without a gradient. A session is neither copied nor pickled."""

    def __init__(self, file: bytes) -> None:
        import onnxruntime

        super().__init__()
        self.size = len(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {self.name: x.detach().numpy()})[0])


# --- torch.ao.quantization, which is deprecated and still in torch


def _eager(net: nn.Module, images: Tensor) -> nn.Module:
    from torch.ao import quantization

    quantized = quantization.QuantWrapper(net)
    quantized.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(quantized, inplace=True)
    quantized(images)
    return quantization.convert(quantized, inplace=True)


def _dynamic(net: nn.Module, images: Tensor) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


def _fx(net: nn.Module, images: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(net, get_default_qconfig_mapping("x86"), (images,))
    prepared(images)
    return convert_fx(prepared)


# --- torchao


def _torchao(config: str, **settings: Any) -> Callable[[nn.Module, Tensor], nn.Module]:
    def make(net: nn.Module, images: Tensor) -> nn.Module:
        from torchao import quantization

        quantization.quantize_(net, getattr(quantization, config)(**settings))
        return net

    return make


def _intx(net: nn.Module, images: Tensor) -> nn.Module:
    return _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4)(net, images)


def _pt2e(net: nn.Module, images: Tensor) -> nn.Module:
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    dynamic = ({0: torch.export.Dim("n")},)
    exported = torch.export.export(net, (images,), dynamic_shapes=dynamic).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(images)
    return pt2e.move_exported_model_to_eval(convert_pt2e(prepared))


# --- ONNX Runtime


def _onnx_static(net: nn.Module, images: Tensor) -> nn.Module:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter({"x": batch.numpy()} for batch in images.split(50))

        def get_next(self) -> Any:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = Path(folder, "plain.onnx"), Path(folder, "quantized.onnx")
        plain.write_bytes(onnx_file(net, images))
        quantize_static(plain, quantized, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
        return Session(quantized.read_bytes())


def onnx_file(net: nn.Module, images: Tensor) -> bytes:
    """The network as a float32 ONNX file for batches of any size."""
    shapes = ({0: torch.export.Dim("n")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (images,), input_names=["x"], dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    return program.model_proto.SerializeToString()


# --- Other packages


def _quanto(net: nn.Module, images: Tensor) -> nn.Module:
    from optimum import quanto

    quanto.quantize(net, weights=quanto.qint8, activations=quanto.qint8)
    with quanto.Calibration(), torch.no_grad():
        net(images)
    quanto.freeze(net)
    return net


def _brevitas(net: nn.Module, images: Tensor) -> nn.Module:
    from brevitas import nn as qnn

    def layer(old: nn.Module) -> nn.Module:
        if isinstance(old, nn.Conv2d):
            new = qnn.QuantConv2d(old.in_channels, old.out_channels, 3, padding=1, weight_bit_width=8)
        elif isinstance(old, nn.Linear):
            new = qnn.QuantLinear(old.in_features, old.out_features, bias=True, weight_bit_width=8)
        else:
            return qnn.QuantReLU(bit_width=8) if isinstance(old, nn.ReLU) else old
        new.load_state_dict(old.state_dict(), strict=False)
        return new

    from brevitas.graph.calibrate import calibration_mode

    quantized = nn.Sequential(qnn.QuantIdentity(bit_width=8), *map(layer, net.children())).eval()
    with calibration_mode(quantized), torch.no_grad():
        quantized(images)
    return quantized


def _hqq(net: nn.Module, images: Tensor) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=64)
    return _linear_layers(net, lambda old: HQQLinear(old, config, compute_dtype=torch.float32, device="cpu"))


def _bnb_int8(net: nn.Module, images: Tensor) -> nn.Module:
    import bitsandbytes as bnb

    def layer(old: nn.Linear) -> nn.Module:
        new = bnb.nn.Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False)
        new.load_state_dict(old.state_dict())
        return new.to("cpu")

    return _linear_layers(net, layer)


def _bnb_nf4(net: nn.Module, images: Tensor) -> nn.Module:
    import bitsandbytes as bnb

    def layer(old: nn.Linear) -> nn.Module:
        new = bnb.nn.Linear4bit(old.in_features, old.out_features, compute_dtype=torch.float32, quant_type="nf4")
        new.load_state_dict(old.state_dict())
        return new.to("cpu")

    return _linear_layers(net, layer)


def _linear_layers(net: nn.Module, layer: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """With each linear layer of a Sequential replaced but the last, as these packages do by default."""
    last = list(net.children())[-1]
    parts = (layer(p) if isinstance(p, nn.Linear) and p is not last else p for p in net.children())
    return nn.Sequential(*parts).eval()


@dataclass(frozen=True)
class Way:
    """A way to quantize.

    :param package: the distribution whose version is shown.
    :param modules: what must be importable.
    :param settings: in words.
    :param convert: from a network in eval mode, which may be changed, and images (N, C, H, W) for calibration.
    """

    package: str
    modules: tuple[str, ...]
    settings: str
    convert: Callable[[nn.Module, Tensor], nn.Module]

    @property
    def version(self) -> str:
        return f"{self.package} {importlib.metadata.version(self.package)}"

    def __call__(self, net: nn.Module, images: Tensor) -> nn.Module:
        """The quantized network. ``net`` stays as it is. Warnings of the package, e.g. of what is deprecated, are kept quiet."""
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            return self.convert(copy.deepcopy(net).eval(), images)


WAYS: dict[str, Way] = {
    "torch.ao eager": Way("torch", (), "int8, static", _eager),
    "torch.ao dynamic": Way("torch", (), "int8 linear layers, activations at run time", _dynamic),
    "torch.ao fx": Way("torch", (), "int8, static", _fx),
    "torchao int8 dynamic": Way(
        "torchao",
        ("torchao",),
        "int8 linear layers, activations at run time",
        _torchao("Int8DynamicActivationInt8WeightConfig"),
    ),
    "torchao int8 weights": Way(
        "torchao", ("torchao",), "int8 weights of linear layers", _torchao("Int8WeightOnlyConfig")
    ),
    "torchao intx weights": Way("torchao", ("torchao",), "int4 weights of linear layers", _intx),
    "torchao PT2E": Way("torchao", ("torchao",), "x86, int8, static", _pt2e),
    "ONNX Runtime static": Way(
        "onnxruntime", ("onnx", "onnxscript", "onnxruntime"), "`quantize_static`, QDQ, per channel", _onnx_static
    ),
    "optimum-quanto": Way("optimum-quanto", ("optimum.quanto",), "int8 weights and activations", _quanto),
    "Brevitas": Way("brevitas", ("brevitas",), "int8 weights and activations", _brevitas),
    "HQQ": Way("hqq", ("hqq",), "4-bit weights of linear layers", _hqq),
    "bitsandbytes int8": Way("bitsandbytes", ("bitsandbytes",), "`Linear8bitLt`", _bnb_int8),
    "bitsandbytes nf4": Way("bitsandbytes", ("bitsandbytes",), "`Linear4bit`, nf4", _bnb_nf4),
}
