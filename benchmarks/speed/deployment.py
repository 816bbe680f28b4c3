"""What exported networks cost in ONNX Runtime against their float32 export, interleaved in one run.

    python benchmarks/speed/deployment.py [--rounds N]

Untrained networks: time does not depend on the weights. Each round answers one batch with each file, in turn, on one thread. The
table has the median over rounds of float32's time divided by the file's. ``deployment.md`` is the table.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import art_qplugins
from art_qplugins import quantize
from art_qplugins.deployment.export import export
from art_qplugins.deployment.files import open_deployed
from art_qplugins.deployment.speed import BATCHES, joules, speeds, vnni
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.resnet import ResNet18

_HERE = Path(__file__).parent
SHAPE = (3, 32, 32)
NETWORKS = {"ConvNet (width 64)": lambda: ConvNet(SHAPE, 10, width=64), "ResNet-18": lambda: ResNet18(SHAPE, 10)}
FORMS = {
    "float32": (None, "float"),
    "8 bits": (8, "int"),
    "4 bits": (4, "int"),
    "4 bits, float bias": (4, "float"),
}


def measured(make: object, rounds: int, folder: Path) -> list[str]:
    """Rows of the table for one network."""
    torch.manual_seed(0)
    network: nn.Module = make().eval()  # type: ignore[operator]
    files = {}
    for form, (bits, bias) in FORMS.items():
        module = network if bits is None else quantize(network, bits, bits)
        export(module, folder / f"{form}.onnx", SHAPE, bias=bias)
        files[form] = open_deployed(folder / f"{form}.onnx")[0].runtime.run
    found = speeds(files, SHAPE, rounds=rounds)
    lines = []
    for place, batch in enumerate(BATCHES):
        for form, told in found.items():
            one, size = told[place], (folder / f"{form}.onnx").stat().st_size
            energy = "" if one.energy is None else f"{one.energy:.2f}"
            low, middle, high = one.ratio
            lines.append(
                f"| {form} | {batch} | {size / 1e6:.2f} | {one.seconds * 1e3:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) | {energy} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    text = [
        "# What exported networks cost in ONNX Runtime",
        "",
        f"`python benchmarks/speed/deployment.py --rounds {rounds}`, {datetime.now(UTC):%Y-%m-%d}. art_qplugins "
        f"{art_qplugins.__version__}, torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, "
        f"{platform.machine()} {'with' if vnni() else 'without'} VNNI, one thread. All files of a network are interleaved in one "
        "run. The ratio is the median over rounds of float32's time divided by the file's, with quartiles. "
        + ("" if np.isfinite(joules()) else "This machine does not tell its energy."),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in NETWORKS.items():
            text += [
                "",
                f"## {name}",
                "",
                "| file | batch | MB | median ms | times float32's speed | energy of float32 / its own |",
            ]
            text += ["|---|---|---|---|---|---|", *measured(make, rounds, Path(folder))]
    (_HERE / "deployment.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
