"""Does the information of an image tell adversarial images from clean ones, also where the attack knows of it?

    python benchmarks/sq/detector.py RUN [--model NAME ...] [--eps 0.05 0.1] [--n 200] [--fit 1000]

RUN is the folder of a recipe that was run, with the checkpoints of its networks. For each stochastic model a detector is fitted on
images that no model was trained on (``data.validation``), or else on training images. A table says, for each attack and eps:

* AUROC: how well the detector's score tells changed images from the same images unchanged, with an interval over images;
* found: the share of changed images above the threshold that 5 % of the unchanged images exceed;
* alone: the accuracy of the classifier; with detector: the share that is labelled correctly or rejected. Of clean images, a
  rejected one counts as lost.

FGSM, PGD and Square do not know of the detector. Noise of the same size, plus or minus eps at each pixel, is the control: what finds
it finds changed images, not adversarial ones. Two attacks know of it: one adds the score to its loss, at several weights of which
each image has the best, chosen by draws that do not score; the other attacks classifier and detector as one network with a class
more (Carlini & Wagner 2017).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from art_qplugins import InformationDetector, QuantizedClassifier, SQEnsembleClassifier, Threat, metrics, with_detector
from art_qplugins.attacks.adaptive.objectives import averaged
from art_qplugins.attacks.adaptive.run import AttackRun
from art_qplugins.attacks.craft import craft
from art_qplugins.data import Dataset
from art_qplugins.estimators.devices import accelerator
from art_qplugins.evaluation.reading import read_results
from art_qplugins.evaluation.score import check_legal, score
from art_qplugins.files import short_name
from art_qplugins.guard import isolated
from art_qplugins.recipes.build import build_model, estimator_for
from art_qplugins.recipes.load import parse_recipe
from art_qplugins.recipes.schema import Recipe
from art_qplugins.runner.prepare import Images
from art_qplugins.seeds import derive_seed

#: Weights of the score in the loss. The score is in standard deviations of clean images.
WEIGHTS = (0.1, 1.0, 10.0)
_HEAD = ("attack", "eps", "AUROC", "found", "accuracy alone", "with detector")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--model", action="append", help="only this one; may be given several times")
    parser.add_argument("--eps", type=float, nargs="+", help="by default those of the recipe in Linf")
    parser.add_argument("--n", type=int, default=200, help="images to attack")
    parser.add_argument("--fit", type=int, default=1000, help="clean images to fit on, at most")
    parser.add_argument("--side", default="two", choices=("two", "low", "high"))
    parser.add_argument("--draws", type=int, default=8, help="of a score")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--square", type=int, default=200, help="iterations of Square")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = parse_recipe(read_results(options.run / "results.json").spec["given"])
    sizes = options.eps or eps_of(recipe)
    if not sizes:
        raise SystemExit(f"{options.run}: it has no threat in Linf; give --eps")
    images = Images(root=options.data_root)
    train, validation = images.training(recipe)
    clean = (validation or train).take(min(options.fit, len(validation or train)), seed=options.seed)
    test = images.split(recipe, "test")
    test = test.take(min(options.n, len(test)), seed=recipe.data.seed)
    kind = "training" if validation is None else "validation"
    for name, estimator in models(recipe, options.run / "checkpoints", train):
        if options.model is None or name in options.model:
            detector = InformationDetector(estimator, side=options.side, draws=options.draws, seed=options.seed)
            detector.fit(clean.x().numpy(), np.zeros(len(clean)), options.batch_size)
            print(f"\n{name}: n = {len(test)}, fitted on {len(clean)} {kind} images\n")
            print("| " + " | ".join(_HEAD) + " |\n" + "|---" * len(_HEAD) + "|")
            for row in Table(detector, test, options).rows(sizes):
                print("| " + " | ".join(row) + " |", flush=True)


def eps_of(recipe: Recipe) -> list[float]:
    threats = recipe.threat if isinstance(recipe.threat, list) else [recipe.threat]
    return [float(eps) for threat in threats if threat.norm == "Linf" for eps in threat.eps]


def models(recipe: Recipe, checkpoints: Path, data: Dataset) -> Iterator[tuple[str, SQEnsembleClassifier]]:
    """The stochastic models of a run, as they were stored, whatever version of the package trained them."""
    for settings in recipe.models:
        if settings.trained and settings.quantize is not None and settings.quantize.random:
            files = sorted(checkpoints.glob(f"{short_name(settings.name)}-*.safetensors"))
            stored = [file for file in files if not file.stem.endswith("-state")]
            if settings.checkpoint is None and len(stored) != 1:
                raise SystemExit(f"{settings.name}: {len(stored)} networks in {checkpoints}; run the recipe to its end")
            known = settings.model_copy(update={"checkpoint": settings.checkpoint or str(stored[0])})
            module = build_model(recipe, known, data, checkpoints, {}, device=accelerator(recipe.accelerator))
            estimator = estimator_for(known, module, data)
            assert isinstance(estimator, SQEnsembleClassifier)
            yield settings.name, estimator


@dataclass(frozen=True)
class Table:
    """The rows of one model."""

    detector: InformationDetector
    test: Dataset
    options: Any

    def rows(self, sizes: list[float]) -> Iterator[tuple[str, ...]]:
        alone, options = self.detector.classifier, self.options
        both, x, y = with_detector(alone, self.detector), self.test.x().to(alone.device), self.test.y().to(alone.device)
        unchanged, seed = self.scores(x), options.seed
        more: dict[str, Any] = {"batch_size": options.batch_size, "seed": seed}
        iterated = {"max_iter": options.iterations, "rel_eps_step": 0.25}

        def row(name: str, eps: float | None, images: Tensor) -> tuple[str, ...]:
            found, rejecting = self.scores(images), score(both.model, images, y, abstain=both.abstain, **more)
            kept = rejecting["correct"] - (rejecting["rejected"] if eps is None else 0)
            low, high = metrics.auroc_interval(unchanged, found)
            return (
                name,
                "" if eps is None else f"{eps:.4g}",
                "" if eps is None else f"{metrics.auroc(unchanged, found):.3f} [{low:.3f}, {high:.3f}]",
                f"{self.found(unchanged, found) if eps is not None else rejecting['rejected'].mean():.1%}",
                f"{score(alone.model, images, y, **more)['correct'].mean():.1%}",
                f"{kept.mean():.1%}",
            )

        yield row("none", None, x)
        for eps in sizes:
            threat = Threat("Linf", eps)
            crafted = {"threat": threat, **more}
            signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(derive_seed(seed, "noise")))
            yield row("noise", eps, (x + eps * (2.0 * signs - 1).to(x)).clamp(0, 1))
            for name, attack, settings in (
                ("FGSM", "art:fgsm", {}),
                ("PGD", "artq:pgd", iterated),
                ("Square", "art:square", {"max_iter": options.square}),
            ):
                yield row(name, eps, craft(alone, attack, x, y, options=settings, **crafted).x_adv)
            yield row("Auto-PGD with the score in its loss", eps, self.adaptive(both, x, y, threat))
            yield row("PGD on both as one", eps, craft(both, "artq:pgd", x, y, options=iterated, **crafted).x_adv)

    def scores(self, images: Tensor) -> NDArray[np.float64]:
        found: NDArray[np.float64] = self.detector.detect(images, self.options.batch_size)[0]["score"]
        return found

    def found(self, unchanged: NDArray[np.float64], changed: NDArray[np.float64]) -> float:
        return metrics.true_positive_rate(unchanged, changed, false_positive_rate=0.05)

    def adaptive(self, both: QuantizedClassifier, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        """Of each image, that of the weight at which fewest draws label it correctly or reject it; of these, the least suspect."""
        options = self.options
        tried, judged = [], []
        for weight in WEIGHTS:
            seed = derive_seed(options.seed, f"score/{weight}")
            with isolated(both.model, seed):
                run = AttackRun(
                    name="score in the loss",
                    module=both.model,
                    x=x,
                    y=y,
                    threat=threat,
                    batch_size=options.batch_size,
                    seed=seed,
                    max_iter=options.iterations,
                    random=True,
                )
                objective = averaged(both.model, penalised(y, weight), draws=1, seed=seed)
                images = run.maximize(objective, run.random_starts("score"), deployed=False)
            check_legal(x, images, threat)
            tried.append(images)
            settings = {"abstain": both.abstain, "seed": seed, "batch_size": options.batch_size}
            judged.append(score(both.model, images, y, **settings)["selection"])
        suspect = np.stack([self.scores(images) for images in tried])
        best = np.lexsort((suspect, np.stack(judged)), axis=0)[0]
        return torch.stack(tried)[torch.as_tensor(best), torch.arange(len(x))]


def penalised(y: Tensor, weight: float) -> Any:
    """Cross-entropy of the classes less ``weight`` times the detector's score, both read from the logits of the pair."""

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        classes = logits[:, :-1]
        excess = logits[:, -1] - classes.amax(1)  # the score less the threshold
        return nn.functional.cross_entropy(classes, y[rows], reduction="none") - weight * excess

    return loss


if __name__ == "__main__":
    main()
