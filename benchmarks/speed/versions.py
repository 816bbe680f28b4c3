"""What ``evaluate`` costs in two versions of the package: 200 digits, two attacks, one small network.

    python benchmarks/speed/versions.py OLD NEW [--rounds 7]

``OLD`` and ``NEW`` are checkouts. Each round runs both in a process of its own, one after the other; the order alternates.
Within a process the first call warms up. The fastest of the calls of four seconds counts, in seconds of the processor, and
then the median of the rounds' ratios. Both versions must leave the same number of robust images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ONE = """
import json, time, torch
from torch import nn
import art_qplugins
from art_qplugins import QuantizedClassifier, Threat, evaluate, load
from art_qplugins.models.convnet import ConvNet

torch.set_num_threads(1)
torch.manual_seed(0)
model = ConvNet((1, 8, 8), 10).eval()
estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
data = load("digits", "test").take(200, seed=0)
data = (data.x(), model(data.x()).argmax(1))  # an untrained network is right by definition, so that there is work to do


def call(claim):
    started = time.process_time()
    run = evaluate(estimator, data, Threat("Linf", 0.1), attacks=["art:pgd", "autoattack:apgd-ce"], claim=claim)
    return time.process_time() - started, [cell.accuracy for cell in run.cells if cell.role == "attack"]


found = {}
for name, claim in (("attacks alone", None), ("with the diagnosis", "art:pgd")):
    call(claim)
    calls = [call(claim)]
    while sum(seconds for seconds, _ in calls) < 4:
        calls.append(call(claim))
    found[name] = min(calls)
print(json.dumps(found))
"""


def measure(checkout: Path) -> dict[str, tuple[float, list[float]]]:
    environment = os.environ | {
        "PYTHONPATH": str(checkout.resolve()),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run([sys.executable, "-c", ONE], env=environment, capture_output=True, text=True, cwd=checkout)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        order = ("old", "new") if number % 2 == 0 else ("new", "old")
        found = {name: measure(getattr(arguments, name)) for name in order}
        for what, (seconds, robust) in found["new"].items():
            before, robust_before = found["old"][what]
            assert robust == robust_before, f"{what}: {robust} is not {robust_before}"
            ratios.setdefault(what, []).append(seconds / before)
    for what, each in ratios.items():
        print(f"evaluate, {what}: {statistics.median(each):.2f} x ({', '.join(f'{r:.2f}' for r in each)})")


if __name__ == "__main__":
    main()
