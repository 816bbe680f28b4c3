"""Cases of the literature in which a number was too good, on MNIST at small scale: claimed, corrected and the verdict.

    python benchmarks/masking/papers.py --data-root FOLDER        # minutes; resumable

The papers' own numbers stand beside ours for the pattern, not for the value. Theirs are of large networks, mostly on
CIFAR-10. Ours are of a small one, trained on 10,000 images of MNIST.

* Song, Fallon & Li 2020 (arXiv 2012.14965), table 3: mu-law weights of the last layers, 3 bit, against FGSM and PGD.
* Lin, Gan & Han 2019 (Defensive Quantization), table 5: tanh quantization and adversarial training, against PGD.
* The same, table 6: adversarial training by FGSM and by R+FGSM, against FGSM.
* arXiv 2312.00105: an ensemble of stochastic quantizers, attacked by the gradient of one draw.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import itertools
import json
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import art_qplugins
from art_qplugins import quantize
from art_qplugins.models.ensemble import StochasticEnsemble
from art_qplugins.models.mnist_cnn import MnistCNN
from art_qplugins.quantizers import QuantReLU, bake

sys.path.insert(0, str(Path(__file__).parent))
from losses import adversarial, cross_entropy
from networks import Shape, Site, network
from one_run import Record, diagnosed
from plants import Scaled, TanhQuantized
from records import version
from rows import Built, Row
from tables import percent, table
from training import Recipe, cached, fingerprint, fit, trained

_MNIST = "mnist"


def _float(site: Site) -> nn.Module:
    """The four-layer network of the mu-law paper, but narrow."""
    recipe = Recipe(epochs=5, learning_rate=0.02)

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(site.seed)
            return MnistCNN(site.shape, 10, width=8)

    return cached(site, ("four layers", 8, recipe), make, lambda m: fit(m, cross_entropy(), site, recipe))


def _mu_law(site: Site, layers: int = 2) -> Built:
    model = quantize(_float(site), weight_bits=3, mu=255.0, mu_layers=layers, mu_normalize=True)
    return Built(model, Scaled(model, 1e-2))


def _adversarial(site: Site, name: str, activation: Callable[[], nn.Module], width: int = 8) -> Built:
    """Adversarially trained at eps 0.2 (Madry et al. 2018) with these activations.

    :param name: of the activation, as part of the key of the cache.
    """
    options: dict[str, Any] = {"eps": 0.2, "steps": 4}
    recipe = Recipe(shape=Shape(width=width), loss="adversarial", options=tuple(options.items()), epochs=7)
    model = cached(
        site,
        (name, recipe),
        lambda: network(site, recipe.shape, activation),
        lambda m: fit(m, adversarial(**options), site, recipe),
    )
    return Built(model)


def _random_fgsm(eps: float) -> Callable[..., Tensor]:
    """R+FGSM: half of eps along a random sign, the rest along the gradient's sign (Lin et al. 2019, eq. 2)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor, random: torch.Generator, done: float) -> Tensor:
        model.eval()
        start = x + eps / 2 * torch.randn(x.shape, generator=random).sign()
        leaf = start.clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
        return F.cross_entropy(model.train()((leaf + eps / 2 * gradient.sign()).clamp(0, 1).detach()), y)

    return loss


def _one_step(site: Site, random: bool) -> Built:
    eps = 0.3
    recipe = Recipe(shape=Shape(width=16), loss="R+FGSM" if random else "FGSM", options=(("eps", eps),), epochs=15)
    loss = _random_fgsm(eps) if random else adversarial(eps=eps, steps=1, random_start=False)
    model = cached(site, recipe, lambda: network(site, recipe.shape), lambda m: fit(m, loss, site, recipe))
    return Built(model)


def _ensemble(site: Site, eot_draws: int | None) -> Built:
    recipe = Recipe(epochs=3, learning_rate=0.02)
    base = trained(site, Recipe())  # with strides, which are fast: every pass here is ten
    model = cached(
        site,
        ("stochastic", fingerprint(base), 2, recipe),
        lambda: quantize(base, activation_bits=2, alpha=2.0, clip=2.0, trainable=True, seed=site.seed),
        lambda m: fit(m, cross_entropy(), site, recipe),
    )
    members = bake(copy.deepcopy(model)).eval()
    deployed = StochasticEnsemble(members, draws=10, eot_draws=eot_draws).eval()
    return Built(deployed, StochasticEnsemble(members, draws=10).eval())


def _case(name: str, build: Callable[[Site], Built], paper: str, eps: float, attack: str, **more: Any) -> Row:
    return Row(
        name=name,
        kind="masked",
        family="papers",
        build=build,
        expected=frozenset(),  # nothing is scored here
        why=paper,
        attack=attack,
        eps={_MNIST: eps},
        **more,
    )


#: Gain of the tanh. At 1, its activations seldom reach the outer levels.
_STEEP = 2.0

CASES: tuple[Row, ...] = (
    _case("float, FGSM", lambda s: Built(_float(s)), "CIFAR-10: 20.9", 0.1, "art:fgsm"),
    _case("mu-law, 3 bit, FGSM", _mu_law, "CIFAR-10: 95.3", 0.1, "art:fgsm"),
    _case("float, PGD", lambda s: Built(_float(s)), "CIFAR-10: 2.2", 0.1, "art:pgd"),
    _case("mu-law, 3 bit, PGD", _mu_law, "CIFAR-10: 64.4", 0.1, "art:pgd"),
    _case("AT, float, PGD", lambda s: _adversarial(s, "relu", nn.ReLU), "CIFAR-10: 50.5, transfer 65.6", 0.2, "art:pgd"),
    _case("AT, 2-bit tanh, PGD", lambda s: _adversarial(s, "tanh-2", functools.partial(TanhQuantized, 2, _STEEP)), "CIFAR-10: 71.0, transfer 61.6", 0.2, "art:pgd"),
    _case("AT, 2-bit ReLU6, PGD", lambda s: _adversarial(s, "relu6-2", functools.partial(QuantReLU, 2)), "CIFAR-10: 48.9, transfer 59.4", 0.2, "art:pgd"),
    _case("AT by FGSM, FGSM", lambda s: _one_step(s, random=False), "CIFAR-10: 94.2, transfer 51.7", 0.3, "art:fgsm"),
    _case("AT by R+FGSM, FGSM", lambda s: _one_step(s, random=True), "CIFAR-10: 51.7, transfer 87.4", 0.3, "art:fgsm"),
    _case("SQ of ten, one draw", lambda s: _ensemble(s, 1), "CIFAR-10: above 50 at 5/255", 0.1, "art:pgd", options={"max_iter": 10}),
    _case("SQ of ten, all draws", lambda s: _ensemble(s, None), "–", 0.1, "art:pgd", options={"max_iter": 10}),
)  # fmt: skip


def _line(record: Record) -> tuple[object, ...]:
    numbers = (percent(record[key]) for key in ("clean", "claimed", "corrected"))
    reference = percent(record.get("reference"))
    fired = " ".join(record["fired"])
    return (
        record["row"],
        record["seed"],
        *numbers,
        reference,
        record["claim"],
        record["verdict"],
        fired,
        record["paper"],
    )


_HEADER = (
    *("case", "seed", "clean", "claimed", "corrected", "strongest known"),
    *("claim", "verdict", "fired", "paper's claim"),
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cases", nargs="+", help="parts of names, e.g. mu-law")
    parser.add_argument("--n", type=int, default=200, help="test images (200)")
    parser.add_argument("--reference", action="store_true", help="also AutoAttack, through the honest twin")
    parser.add_argument("--data-root", type=Path, help="folder with MNIST; by default ARTQ_DATA")
    parser.add_argument("--cache", type=Path, default=Path("results/masking-weights"), help="folder of trained weights")
    parser.add_argument("--out", type=Path, default=Path("results/papers.jsonl"))
    return parser.parse_args()


def _finished(path: Path, current: str) -> dict[tuple[str, int], Record]:
    """Records of this version by case and seed."""
    if not path.exists():
        return {}
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(r["row"], r["seed"]): r for r in records if r["version"] == current}


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    current = f"{version(Path(__file__))} {arguments.n} {arguments.reference}"
    done = _finished(arguments.out, current)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    records = []
    chosen = [c for c in CASES if not arguments.cases or any(part in c.name for part in arguments.cases)]
    for case, seed in itertools.product(chosen, arguments.seeds):
        if (record := done.get((case.name, seed))) is None:
            site = Site(_MNIST, seed, arguments.data_root, arguments.cache)
            record = diagnosed(case, site, n=arguments.n, reference=arguments.reference)
            record |= {"version": current, "paper": case.why}
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(*_line(record), sep="  ", file=sys.stderr, flush=True)
        records.append(record)
    print(
        f"# Numbers that were too good, on MNIST\n\n{datetime.date.today()}; art_qplugins {art_qplugins.__version__}, torch "
        f"{torch.__version__}, Python {platform.python_version()}; {arguments.n} test images, networks trained on 10,000 "
        "images; accuracies in percent; one CPU thread.\n"
    )
    print("\n".join(table(_HEADER, map(_line, records))))


if __name__ == "__main__":
    main()
