"""What ``artq:worst-case`` leaves and takes beside AutoAttack ``standard``, network by network.

Beside a random network stands EOT-PGD on the margin: 100 steps, each along the mean of 20 draws. All are scored on the same 100
fresh draws.

    python benchmarks/speed/worst_case.py --cache DIR [--networks ROW:DATASET[:EPS][@SEED] ...] [--n 400] [--minutes 100]
    python benchmarks/speed/worst_case.py --cache DIR --again standard    # after a change, beside the recorded reference
    python benchmarks/speed/worst_case.py --report-only

Networks are rows of ``benchmarks/masking``. Both attacks see the same images, one after the other, in one process with one
thread. Each network becomes a line of ``worst_case.jsonl`` when it is finished, and is not run again. ``worst_case.md`` is
the table. Gradients are backward passes per image of the whole set, and shares are of AutoAttack's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import art_qplugins
from art_qplugins import QuantizedClassifier, Threat
from art_qplugins.attacks.adaptive.run import answers_at_random
from art_qplugins.attacks.adaptive.worst_case import EFFORTS
from art_qplugins.attacks.craft import craft
from art_qplugins.guard import isolated
from art_qplugins.quantizers.noise import draws_from

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent / "masking"))
from networks import CLASSES, Site  # noqa: E402
from one_run import row_named  # noqa: E402
from rows import classifier  # noqa: E402

RECORDS, TABLE = _HERE / "worst_case.jsonl", _HERE / "worst_case.md"
NETWORKS = (
    # Digits
    *("plain:digits:0.1", "wide:digits:0.1", "mlp:digits:0.1", "residual:digits:0.1", "gelu:digits:0.1"),
    *("at:digits", "at:digits:0.2", "trades:digits", "at-small-eps:digits", "at-large-eps:digits"),
    *("8bit:digits:0.1", "3bit:digits:0.1", "2bit-weights:digits:0.1", "at-8bit:digits", "at-4bit-tuned:digits"),
    *("plain-l2:digits", "at-l2:digits", "transformer-noise:digits:0.1", "equilibrium:digits:0.1"),
    # Mapped by the mu-law, and networks whose gradients mislead
    *(
        "mu-law-1:digits:0.1",
        "mu-law-2:digits:0.1",
        "rounded:digits",
        "tanh-pgd:digits",
        "codebook:digits",
        "sign:digits",
    ),
    *("k-winners:digits:0.1", "jpeg:digits", "thermometer:digits"),
    # Random
    *("noisy-input:digits", "sq-eot-4:digits", "random-resize:digits", "sq-at:digits"),
    # MNIST
    *("plain:mnist:0.05", "at:mnist", "at-large-eps:mnist", "trades:mnist", "at-8bit:mnist", "3bit:mnist:0.05"),
    # Trained with another seed: no setting was chosen by them
    *("plain:digits:0.1@1", "residual:digits:0.1@1", "gelu:digits:0.1@1", "at:digits@1", "at:digits:0.2@1"),
    *(
        "at-large-eps:digits@1",
        "8bit:digits:0.1@1",
        "at-4bit-tuned:digits@1",
        "at-l2:digits@1",
        "mu-law-2:digits:0.1@1",
    ),
    # CIFAR-10: color, 32x32, a residual network
    *("resnet8:cifar10:0.002", "resnet8:cifar10"),
)

Record = dict[str, Any]
_FRESH = 2**31  # a seed that no attack uses
#: Points above the reference that count as the same answer, by the group of a network.
_MOST = {"networks": 0.25, "networks whose gradients mislead": 0.0, "random networks": 0.5}


def network_of(
    name: str, n: int, cache: Path | None, root: Path | None
) -> tuple[QuantizedClassifier, torch.Tensor, torch.Tensor, Threat]:
    """A network by its row, data set, eps and the seed of its training, with images and labels."""
    name, _, seed = name.partition("@")
    row_name, dataset, *eps = name.split(":")
    row, site = row_named(row_name), Site(dataset, int(seed or 0), root, cache)
    x, y = site.test(n)
    model, threat = row.build(site).model, row.threat(dataset)
    return classifier(model, x, CLASSES), x, y, Threat(threat.norm, float(eps[0])) if eps else threat


def measured(name: str, n: int, cache: Path | None, root: Path | None, again: Sequence[str] | None = None) -> Record:
    """Both attacks on one network.

    :param again: these efforts alone, without the reference.
    """
    estimator, x, y, threat = network_of(name, n, cache, root)
    model = estimator.model
    random = answers_at_random(model, x, 0)
    reference = ("artq:eot", {"max_iter": 100, "eot_iter": 20}) if random else ("autoattack:standard", {})
    attacks = [] if again else [reference]
    attacks += [("artq:worst-case", {"effort": effort}) for effort in again or EFFORTS]
    found: dict[str, Any] = {}
    for attack, options in attacks:
        started = time.perf_counter()
        crafted = craft(estimator, attack, x, y, threat=threat, options=options)
        standing = _standing(model, crafted.x_adv, y, 100 if random else 1)
        found[options.get("effort", "autoattack")] = {
            "standing": standing,
            "forward": crafted.forward_samples / n,
            "backward": crafted.backward_samples / n,
            "seconds": time.perf_counter() - started,
        }
    found["random"] = random
    return {"network": name, "norm": threat.norm, "eps": threat.eps, "n": n, "date": _today(), **_machine(), **found}


def _standing(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int) -> float:
    """Images that are classified correctly, on average over draws."""
    with torch.no_grad(), isolated(model, _FRESH), draws_from(model, _FRESH):
        answers = [torch.cat([model(part) for part in x.split(500)]).argmax(1) for _ in range(draws)]
    return float(torch.stack([(answer == y).float() for answer in answers]).mean(0).sum())


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _machine() -> Record:
    return {"torch": torch.__version__, "version": art_qplugins.__version__, "processor": platform.machine()}


def table(records: Sequence[Record]) -> str:
    """The table, in Markdown."""
    lines = [
        "# The worst case beside AutoAttack",
        "",
        f"{records[-1]['date']}; art_qplugins {records[-1]['version']}, torch {records[-1]['torch']}, one CPU thread. "
        "`python benchmarks/speed/worst_case.py` measures, `--report-only` prints this again.",
        "",
        "Robust accuracy in percent; difference from AutoAttack `standard` in points; backward passes and seconds as shares of "
        "AutoAttack's, or gradients of each image where AutoAttack has none to follow. Beside a random network (marked) stands EOT-PGD with 100 steps of 20 draws, scored on 100 fresh draws.",
        "",
        "| network | norm, eps | n | AutoAttack | gradients | "
        + " | ".join(f"{e}: difference | gradients | seconds" for e in EFFORTS)
        + " |",
        "| --- | --- | --- | --- | --- | " + " | ".join(["--- | --- | ---"] * len(EFFORTS)) + " |",
    ]
    for record in records:
        full, n = record["autoattack"], record["n"]
        cells = [
            f"{100 * (record[e]['standing'] - full['standing']) / n:+.2f} | {_share(record, e, 'backward')} | "
            f"{_share(record, e, 'seconds')}"
            for e in EFFORTS
        ]
        accuracy = f"{100 * full['standing'] / n:.2f} | {full['backward']:.0f}"
        lines.append(
            f"| {record['network']}{', random' if record.get('random') else ''} | {record['norm']}, {record['eps']:.3g} | {n} | {accuracy} | {' | '.join(cells)} |"
        )
    for who, most in _MOST.items():
        chosen = [record for record in records if _group(record) == who]
        if not chosen:
            continue
        head = f"| effort, {len(chosen)} {who} | at most {most} above | largest difference | median share of gradients | largest | seconds |"
        lines += ["", head, "| --- | --- | --- | --- | --- | --- |"]
        for effort in EFFORTS:
            above = [100 * (r[effort]["standing"] - r["autoattack"]["standing"]) / r["n"] for r in chosen]
            shares = [r[effort]["backward"] / r["autoattack"]["backward"] for r in chosen if _follows(r)]
            seconds = [r[effort]["seconds"] / r["autoattack"]["seconds"] for r in chosen]
            lines.append(
                f"| {effort} | {sum(a <= most + 1e-9 for a in above)} of {len(above)} | {max(above):+.2f} | "
                f"{statistics.median(shares):.1%} | {max(shares):.1%} | median {statistics.median(seconds):.1%} |"
            )
    return "\n".join(lines) + "\n"


def _group(record: Record) -> str:
    if record.get("random"):
        return "random networks"
    planted = row_named(record["network"].split(":")[0]).kind == "masked"
    return "networks whose gradients mislead" if planted else "networks"


def _follows(record: Record) -> bool:
    """Whether AutoAttack has a gradient to follow. Where none reaches the pixels, it searches, and a share says nothing."""
    return bool(record["autoattack"]["backward"] >= 20)


def _share(record: Record, effort: str, what: str) -> str:
    if what == "backward" and not _follows(record):
        return f"{record[effort][what]:.0f} each"
    return f"{record[effort][what] / record['autoattack'][what]:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="ROW:DATASET[:EPS][@SEED]")
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--cache", type=Path, help="folder of trained weights")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further network after this time")
    parser.add_argument(
        "--again",
        nargs="+",
        choices=list(EFFORTS),
        help="measure these efforts of the finished ones among --networks anew",
    )
    parser.add_argument("--report-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    if arguments.again:
        settings = (arguments.cache, arguments.data_root, arguments.again)
        for place, record in enumerate(done):
            if record["network"] in arguments.networks:
                done[place] = record | measured(record["network"], record["n"], *settings)
                RECORDS.write_text("".join(json.dumps(r) + "\n" for r in done))
    started = time.monotonic()
    for name in [] if arguments.report_only or arguments.again else arguments.networks:
        if (name, arguments.n) in {(r["network"], r["n"]) for r in done}:
            continue
        if time.monotonic() - started > 60 * arguments.minutes:
            print("the time is over; the same command goes on")
            break
        record = measured(name, arguments.n, arguments.cache, arguments.data_root)
        done.append(record)
        with RECORDS.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(name, {k: v for k, v in record.items() if isinstance(v, dict)}, flush=True)
    if done:
        TABLE.write_text(table(done))
        print(table(done))


if __name__ == "__main__":
    main()
