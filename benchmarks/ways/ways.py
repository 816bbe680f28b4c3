"""Every way to quantize one trained network, put to the test: what attack libraries do, what the diagnosis says, what it costs.

``python benchmarks/ways/ways.py`` measures and writes ``results.json`` and ``results.md`` beside it; ``--page-only`` makes the
page again from the records; names of ways measure these alone and keep the other records.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import io
import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quantized import WAYS, Session, onnx_file, trained_network
from torch import Tensor, nn
from ways_page import page

import art_qplugins
from art_qplugins import Threat, diagnose
from art_qplugins.data import load
from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.metrics import wilson_interval

HERE = Path(__file__).parent
N, EPS, FEW = 200, 0.15, 32
#: Batch and rounds of the latency.
BATCH, ROUNDS = 64, 60

Record = dict[str, Any]


def _art(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1))
    attack = ProjectedGradientDescent(classifier, eps=EPS, eps_step=EPS / 4, max_iter=20, verbose=False)
    return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def _torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    import torchattacks

    attack = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=20, random_start=False)
    attack.set_device("cpu")
    return attack(x, y)


def _foolbox(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    import foolbox

    attack = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=20, random_start=False)
    return attack.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilon=EPS)


LIBRARIES: Mapping[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "ART": _art,
    "torchattacks": _torchattacks,
    "Foolbox": _foolbox,
}


def _under(attack: Callable[[nn.Module, Tensor, Tensor], Tensor], model: nn.Module, x: Tensor, y: Tensor) -> str:
    """What a library's PGD does to a module that has answered before: it works, or it moves nothing, or raises."""
    right = _right(model, x, y)
    try:
        moved = attack(model, x, y).detach()
    except Exception as error:
        return f"raises {type(error).__name__}"
    if bool((moved == x).all()):
        return "moves nothing"
    return "works" if _right(model, moved, y) < right else "breaks nothing"


@torch.no_grad()
def _labels(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)


def _right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((_labels(model, x) == y).double().mean())


def _seconds(models: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Medians of interleaved rounds."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, model in models.items():
                start = time.perf_counter()
                model(x)
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _size(model: nn.Module) -> int:
    """Bytes of the ONNX file, or of the saved state dict."""
    if isinstance(model, Session):
        return model.size
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def measure(name: str, net: nn.Module, images: Tensor, x: Tensor, y: Tensor, twin_adv: Tensor) -> Record:
    """The record of one way.

    :param images: for calibration.
    :param twin_adv: for each image of ``x`` the strongest image that a diagnosis of the float network found.
    """
    way = WAYS[name]
    libraries = {lib: _under(attack, way(net, images), x[:FEW], y[:FEW]) for lib, attack in LIBRARIES.items()}
    model = way(net, images)
    runtime = Session(onnx_file(net, images)) if isinstance(model, Session) else net
    start = time.perf_counter()
    estimator = QuantizedClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10)
    found = diagnose(estimator, x.numpy(), y.numpy(), Threat("Linf", EPS))
    own = _labels(model, torch.from_numpy(found.x_adv)) == y
    transferred = _labels(model, twin_adv) == y
    seconds = _seconds({"float": runtime, "quantized": model}, x[:BATCH])
    return {
        "way": name,
        "version": way.version,
        "settings": way.settings,
        "libraries": libraries,
        "n": len(x),
        "right": _right(model, x, y),
        "verdict": str(found.verdict),
        "claim": str(found.claim.status),
        "claimed": found.claimed_accuracy,
        "left": found.corrected_accuracy,
        "interval": list(wilson_interval(round(found.corrected_accuracy * len(x)), len(x))),
        "left_by_twin": float(transferred.double().mean()),
        "left_by_both": float((own & transferred).double().mean()),
        "same_clean": float((_labels(model, x) == _labels(net, x)).double().mean()),
        "same_adversarial": float((_labels(model, twin_adv) == _labels(net, twin_adv)).double().mean()),
        "bytes": _size(model),
        "float_bytes": _size(runtime),
        "latency": seconds["quantized"] / seconds["float"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ways", nargs="*", metavar="WAY", help="those to measure; all by default")
    parser.add_argument("--page-only", action="store_true")
    args = parser.parse_args()
    path = HERE / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"ways": []}
    if not args.page_only:
        _measure_all(args.ways or list(WAYS), results, path)
    (HERE / "results.md").write_text(page(results), encoding="utf-8")


def _measure_all(names: list[str], results: Record, path: Path) -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    train, test = load("digits", "train"), load("digits", "test")
    net = trained_network(train.x(), train.y(), epochs=15)
    images, x, y = train.x()[: FEW * 8], test.x()[:N], test.y()[:N]
    twin = diagnose(
        QuantizedClassifier(net, nn.CrossEntropyLoss(), (1, 8, 8), 10), x.numpy(), y.numpy(), Threat("Linf", EPS)
    )
    left = twin.corrected_accuracy or 0.0
    results |= {
        "date": str(datetime.date.today()),
        "versions": f"art_qplugins {art_qplugins.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "processor": _processor(),
        "eps": EPS,
        "n": N,
        "float": {
            "right": _right(net, x, y),
            "left": left,
            "interval": list(wilson_interval(round(left * N), N)),
            "bytes": _size(net),
        },
    }
    for name in names:
        missing = [module for module in WAYS[name].modules if importlib.util.find_spec(module.split(".")[0]) is None]
        if missing:
            print(f"{name}: pip install {WAYS[name].package}", flush=True)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = measure(name, net, images, x, y, torch.from_numpy(np.array(twin.x_adv)))
        print(json.dumps(record), flush=True)
        kept = {r["way"]: r for r in results["ways"]} | {name: record}
        results["ways"] = [kept[way] for way in WAYS if way in kept]
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("avx512_vnni", "avx512_bf16", "amx_int8") if flag in found.get("flags", "").split()]
    return f"{found.get('model name', platform.processor())} ({', '.join(flags) or 'no VNNI'}), one thread"


if __name__ == "__main__":
    main()
