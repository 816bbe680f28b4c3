"""Does another version of the package write the same records? Run both, then compare what they wrote.

    python benchmarks/regression/same_records.py run OUT --data-root DIR     # digits, MNIST and eight rows of the zoo
    python benchmarks/regression/same_records.py compare OLD NEW

``run`` uses the package that Python finds (``PYTHONPATH=CHECKOUT``) and the recipes and the zoo of ``--checkout``. It goes
on where it stopped. ``compare`` renames what the newer version renamed, numbers the cells in the order of the run, and
holds every other value against its counterpart, bit for bit. Not compared: times, dates, versions and the recipe as
written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Two honest networks, plants of every family of mechanisms, one random model; the claims are Linf and L2.
ROWS = ("plain", "at-4bit", "mu-law-2", "x10-l2", "rounded-2bit", "sign-steep", "sq-one-draw", "gelu")
_NOT_COMPARED = {"created", "seconds", "environment", "spec"}


def run(out: Path, checkout: Path, data_root: Path) -> None:
    import torch

    from art_qplugins import evaluate
    from art_qplugins.cli import main
    from art_qplugins.data import from_arrays

    torch.set_num_threads(1)
    for recipe in ("digits", "mnist"):
        folder = out / recipe
        if not (folder / "report.html").exists():
            arguments = ["run", str(checkout / f"benchmarks/{recipe}.toml"), "--out", str(folder)]
            main([*arguments, "--data-root", str(data_root)])
    sys.path.insert(0, str(checkout / "benchmarks/masking"))
    import zoo
    from networks import Site

    torch.set_num_threads(1)
    site = Site("digits", 0, data_root, out / "weights")
    for name in ROWS:
        if (out / name / "samples.jsonl").exists():
            continue
        row = next(row for row in zoo.ROWS if row.name == name)
        x, y = site.test(200)
        evaluate(
            zoo.classifier(row.build(site).model, site),
            from_arrays(x, y, classes=[str(i) for i in range(10)]),
            row.threat(site.dataset),
            [(row.attack, row.options)],
            claim=row.attack,
            seed=0,
            out=out / name,
        )
        print(name, flush=True)


def read(folder: Path) -> dict[str, Any]:
    """The records of a run, with today's names, and cells by their position."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    try:
        from art_qplugins.evaluation.old_names import upgrade
    except ImportError:
        pass
    else:
        results = upgrade(results)
    order = {cell["id"]: f"cell {i}" for i, cell in enumerate(results["cells"])}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if k not in _NOT_COMPARED}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return order.get(value, value) if isinstance(value, str) else value

    return plain({"results": results, "samples": samples})  # type: ignore[no-any-return]


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b:
                yield f"{where}.{key}: only in {'the first' if key in a else 'the second'}"
            else:
                yield from differences(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)} entries"
        for i, (one, other) in enumerate(zip(a, b, strict=False)):
            yield from differences(one, other, f"{where}[{i}]")
    elif a != b:
        yield f"{where}: {a!r} and {b!r}"


def compare(old: Path, new: Path) -> int:
    total = 0
    for name in ("digits", "mnist", *ROWS):
        first, second = read(old / name), read(new / name)
        found = list(differences(first, second))
        cells, samples = len(first["results"]["cells"]), len(first["samples"])
        print(f"{name:12} {cells:4} cells {samples:6} samples: {len(found)} differences")
        for line in found[:10]:
            print(f"    {line}")
        total += len(found)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("out", type=Path)
    running.add_argument("--checkout", type=Path, default=Path(__file__).parents[2])
    running.add_argument("--data-root", type=Path, required=True, help="folder with MNIST")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.out, arguments.checkout, arguments.data_root)
    else:
        sys.exit(compare(arguments.old, arguments.new) > 0)


if __name__ == "__main__":
    main()
