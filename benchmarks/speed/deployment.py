"""What exported networks cost in ONNX Runtime against their float32 export, interleaved in one run.

    python benchmarks/speed/deployment.py [--rounds N]

Untrained networks: time does not depend on the weights. Each round answers one batch with each file, in turn, on one thread. The
table has the median over rounds of float32's time divided by the file's. ``deployment.md`` is the table.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
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
from art_qplugins.models.convnet import ConvNet
from art_qplugins.models.resnet import ResNet18

_HERE = Path(__file__).parent
SHAPE, BATCHES = (3, 32, 32), (1, 32)
NETWORKS = {"ConvNet (width 64)": lambda: ConvNet(SHAPE, 10, width=64), "ResNet-18": lambda: ResNet18(SHAPE, 10)}
FORMS = {
    "float32": (None, "float"),
    "8 bits": (8, "int"),
    "4 bits": (4, "int"),
    "4 bits, float bias": (4, "float"),
}
RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def joules() -> float:
    """The energy counter of the processor; NaN where it cannot be read."""
    try:
        return int(RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return float("nan")


def vnni() -> bool:
    """Whether the processor says so in /proc/cpuinfo."""
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def measured(make: object, rounds: int, folder: Path) -> list[str]:
    """Rows of the table for one network."""
    torch.manual_seed(0)
    network: nn.Module = make().eval()  # type: ignore[operator]
    files, lines = {}, []
    for form, (bits, bias) in FORMS.items():
        module = network if bits is None else quantize(network, bits, bits)
        path = folder / f"{form}.onnx"
        export(module, path, SHAPE, bias=bias)
        files[form] = (path.stat().st_size, open_deployed(path)[0].runtime.run)
    for batch in BATCHES:
        x = np.random.default_rng(0).random((batch, *SHAPE), dtype=np.float32)
        times: dict[str, list[float]] = {form: [] for form in files}
        energy: dict[str, list[float]] = {form: [] for form in files}
        for turn in range(rounds + 1):
            for form, (_, answer) in files.items():
                before, start = joules(), time.perf_counter()
                answer(x)
                if turn:  # the first round warms up
                    times[form].append(time.perf_counter() - start)
                    energy[form].append(joules() - before)
        for form, (size, _) in files.items():
            ratio = np.array(times["float32"]) / np.array(times[form])
            low, middle, high = np.percentile(ratio, [25, 50, 75])
            lines.append(
                f"| {form} | {batch} | {size / 1e6:.2f} | {min(times[form]) * 1e3:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) "
                f"| {np.median(energy['float32']) / np.median(energy[form]):.2f} |"
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
        + ("" if np.isfinite(joules()) else "This machine does not tell its energy (RAPL cannot be read): nan."),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, make in NETWORKS.items():
            text += [
                "",
                f"## {name}",
                "",
                "| file | batch | MB | least ms | times float32's speed | energy of float32 / its own |",
            ]
            text += ["|---|---|---|---|---|---|", *measured(make, rounds, Path(folder))]
    (_HERE / "deployment.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
