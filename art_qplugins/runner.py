"""From settings to a finished run: data, models, cells, findings, records. The only place that knows all the stages.

``run_recipe`` serves the command line; :mod:`~art_qplugins.api` does the same for models and images from Python.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from art_qplugins import diagnostics
from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.data import Dataset, load
from art_qplugins.errors import InputError
from art_qplugins.evaluation.cascade import Left, narrowed, ordered
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.cost import Cost, exceeds
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.outcome import Outcome, legal_at, robust_at, worst_case, worst_images
from art_qplugins.evaluation.records import Cell, Environment, ModelResult, Results, Robust, Spent, Step
from art_qplugins.evaluation.scheduler import Executor, Serial, run_cells
from art_qplugins.evaluation.sharing import SharedImages, judged_on_grid, skipped
from art_qplugins.evaluation.store import CellStore, Finished, Store
from art_qplugins.recipes.build import build_models, describe, estimator_for
from art_qplugins.recipes.schema import AttackSettings, Budget, ModelSettings, Recipe

__all__ = ["ModelUnderTest", "Progress", "Work", "distinct", "environment", "plan", "run_recipe", "train_recipe"]


class Progress:
    """What a run tells while it goes on. This one is silent; the command line's shows bars."""

    def training(self, model: str, epoch: int, epochs: int, loss: float) -> None: ...

    def cells(self, total: int) -> None: ...

    def cell(self, outcome: Outcome, reused: bool) -> None: ...


@dataclass(frozen=True)
class ModelUnderTest:
    """A model in a run, and the cell whose accuracy is its claim."""

    name: str
    description: str
    stochastic: bool
    clean: CellSpec
    claim: CellSpec | None
    claimed_accuracy: float | None = None  # the number claimed, where it is another than the claim cell's own


def plan(recipe: Recipe, *, claims_only: bool = False) -> tuple[list[ModelUnderTest], list[CellSpec]]:
    """Every cell of a recipe: first the clean ones, then its attacks. What a diagnosis adds depends on what these find.

    :param claims_only: leave out the recipe's attacks, but for the claims.
    """
    subjects, cells = [], []
    for model in recipe.subjects:
        claim = _claim_cell(recipe, model)
        clean = diagnostics.clean_cell(
            model.name, norm=recipe.threat.norm, seed=recipe.seed, eps=claim.eps if claim else None
        )
        subjects.append(ModelUnderTest(model.name, describe(model), model.stochastic, clean, claim))
        cells.append(clean)
    if claims_only:
        cells += [subject.claim for subject in subjects if subject.claim is not None]
    else:
        for attack in recipe.attacks:
            for model in recipe.attacked(attack):
                cells += [_cell(recipe, attack, model, eps) for eps in recipe.budgets(attack)]
        if recipe.transfer is not None:
            same = AttackSettings(id=recipe.transfer.attack, options=recipe.transfer.options)
            for source, target in recipe.transfers():
                crafted = same.model_copy(update={"source": source.name})
                cells += [_cell(recipe, crafted, target, eps) for eps in recipe.budgets(recipe.transfer)]
    return subjects, distinct(cells)


def _cell(recipe: Recipe, attack: AttackSettings, model: ModelSettings, eps: float) -> CellSpec:
    return CellSpec(
        model=model.name,
        source=attack.source or model.name,
        attack=attack.id,
        norm=recipe.threat.norm,
        eps=eps,
        seed=recipe.seed,
        options=attack.options,
    )


def _claim_cell(recipe: Recipe, model: ModelSettings) -> CellSpec | None:
    claim = model.claim or recipe.claim
    if claim is None:
        return None
    attack = next(
        a
        for a in recipe.attacks
        if a.id == claim.attack and a.source is None and model in recipe.attacked(a) and claim.eps in recipe.budgets(a)
    )
    return _cell(recipe, attack, model, claim.eps)


def distinct(cells: Iterable[CellSpec]) -> list[CellSpec]:
    """The first of every group that differs in nothing but the role."""
    seen: dict[Any, CellSpec] = {}
    for c in cells:
        options = tuple(sorted(ATTACKS[c.attack].resolve(c.options).items()))
        key = (c.model, c.source, c.attack, c.norm, c.eps, c.seed, c.restart, options, c.gap, c.rows, c.check, c.start)
        seen.setdefault(key, c)
    return list(seen.values())


def run_recipe(
    recipe: Recipe,
    given: Mapping[str, Any],
    out: Path,
    *,
    data_root: str | None = None,
    download: bool = False,
    progress: Progress | None = None,
    claims_only: bool = False,
    level: int | None = None,
    budget: float | None = None,
    executor: Literal["serial", "ray"] = "serial",
    workers: int | None = None,
    address: str | None = None,
) -> Results:
    """Train what has no checkpoint, attack, verify, diagnose, and write the records into ``out``.

    What is finished there already is used again. A failed cell is a row with its error.

    :param claims_only: put the claims to the test and run no other attack of the recipe.
    :param level: how far the diagnosis goes, 0 to 3; by default as far as what it finds asks for.
    :param budget: gradient evaluations per image that it may spend.
    :param executor: where cells are computed: in this process, or by ``workers`` processes of a Ray cluster, the one at
        ``address`` or one that is started here. The records are the same.
    :return: the records, as in ``results.json``; ``status`` is ``"error"`` where a cell failed.
    :raises InputError: also where ``out`` holds another recipe's results or another run is writing there.
    """
    if executor == "serial" and (workers is not None or address is not None):
        raise InputError("workers and an address are for the executor 'ray'; add --executor ray")
    progress = progress or Progress()
    train_data = load(recipe.data.name, "train", root=data_root, download=download)
    test_data = load(recipe.data.name, "test", root=data_root, download=download)
    test = test_data if recipe.data.limit is None else test_data.take(recipe.data.limit, seed=recipe.data.seed)
    subjects, cells = plan(recipe, claims_only=claims_only)
    if claims_only and not any(subject.claim for subject in subjects):
        raise InputError(f"recipe {recipe.name!r} claims nothing; add [claim] with an attack and an eps")
    store = Store(out)
    with store.alone(recipe.name), _threads(recipe.threads):
        device = _device()
        draft = Results(
            status="started",
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            spec={"given": dict(given), "resolved": recipe.model_dump(mode="json")},
            data=_data_record(test, test_data),
            environment=environment(device, recipe.threads),
            models=[],
            cells=[],
        )
        if not store.has_results:
            store.write_results(draft)  # finished records stay until this run has something to say
        work = None
        try:
            checkpoints = store.folder / "checkpoints"
            modules = build_models(recipe, train_data, checkpoints, device=device, progress=progress.training)
            estimators = {m.name: estimator_for(m, modules[m.name], train_data) for m in recipe.models}
            bench = Evaluator(estimators, test.x(), test.y(), test.ids, recipe.batch_size, recipe.shard)
            data = test_data.sha256, data_root
            with _executor(executor, recipe, modules, checkpoints, data, workers, address) as chosen:
                work = Work(bench, store, progress, chosen, grid=recipe.grid)
                store.write_results(draft)
                claims = [s.claim for s in subjects if s.claim is not None]
                work.run_attacks(cells, claims=claims, strategy=recipe.strategy, budget=recipe.budget)
                others = [m.name for m in recipe.models if not m.stochastic]
                wanted = recipe.diagnose or claims_only
                models = [work.diagnose(s, others, level=level, budget=budget, climb=wanted) for s in subjects]
        except BaseException as error:
            if work is not None or not isinstance(error, InputError):
                _record_end(error, work, draft, store)
            raise
        status = "success" if all(o.ok for o in work.outcomes) else "error"
        results = draft.model_copy(update={"status": status, "models": models, "cells": work.cells})
        store.write_samples(work.outcomes)
        store.write_results(results)
        return results


@contextlib.contextmanager
def _executor(
    kind: str,
    recipe: Recipe,
    modules: Mapping[str, nn.Module],
    checkpoints: Path,
    data: tuple[str, str | None],
    workers: int | None,
    address: str | None,
) -> Iterator[Executor | None]:
    """:param data: SHA-256 of the test split, and the folder that it came from."""
    if kind == "serial":
        yield None
        return
    from art_qplugins.evaluation.ray import Job, RayExecutor

    job = Job.of(recipe, modules, checkpoints, *data)
    with RayExecutor(job, workers=workers, address=address, threads=recipe.threads) as ray:
        yield ray


def _record_end(error: BaseException, work: Work | None, draft: Results, store: Store) -> None:
    """What a run that ends early has. A disk that takes no records either does not hide why it ended."""
    status = "cancelled" if isinstance(error, KeyboardInterrupt) else "error"
    found = [] if work is None else work.cells
    if work is not None:
        with contextlib.suppress(OSError, InputError):
            store.write_samples(work.outcomes)
    with contextlib.suppress(OSError):
        store.write_results(draft.model_copy(update={"status": status, "cells": found}))


def train_recipe(
    recipe: Recipe,
    out: Path,
    *,
    data_root: str | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> None:
    """Only the first part of :func:`run_recipe`: its checkpoints."""
    data = load(recipe.data.name, "train", root=data_root, download=download)
    report = (progress or Progress()).training
    with _threads(recipe.threads):
        build_models(recipe, data, Store(out).folder / "checkpoints", device=_device(), progress=report)


@dataclass
class Work:
    """The cells of a run as they are done, and what is said of the models from them."""

    bench: Evaluator
    store: CellStore
    progress: Progress
    executor: Executor | None = None  # None: in this process
    grid: int | None = None  # judge every cell also on this many levels of a pixel
    total: int = 0
    _order: dict[str, Cell | None] = field(default_factory=dict)  # by id, as asked for; None until it is done
    _skipped: dict[str, Cell] = field(default_factory=dict)  # by id, what a budget did not allow
    _left: dict[str, list[Left]] = field(default_factory=lambda: defaultdict(list))  # by model, for cascades
    _asked: set[tuple[str, str, float]] = field(default_factory=set)  # (model, norm, eps) that a cascade went through
    _shared: SharedImages = field(default_factory=SharedImages)

    @property
    def done(self) -> list[Cell]:
        """What is done, in the order in which it was asked for, whoever was ready first."""
        return [cell for cell in self._order.values() if cell is not None]

    @property
    def cells(self) -> list[Cell]:
        """What is done, and then what was skipped."""
        return [*self.done, *(cell for name, cell in self._skipped.items() if self._order.get(name) is None)]

    @property
    def outcomes(self) -> Finished:
        """The same with the images' records, which stay in the store until they are asked for."""
        return Finished(self.done, self.store)

    def run_attacks(
        self,
        specs: Sequence[CellSpec],
        *,
        claims: Sequence[CellSpec] = (),
        strategy: Literal["matrix", "cascade"] = "matrix",
        budget: Budget = Budget(),
    ) -> None:
        """The cells of a recipe, in one of two ways: all of them, or each on the images that those before it have left.

        :param claims: those of ``specs`` that attack every image and keep to no budget.
        """
        limited = budget != Budget()
        if strategy == "matrix" and not limited:
            self.run(specs)
            return
        if limited:  # first what is run in any case, so that the rest knows what is left
            self.run([spec for spec in specs if spec.role == "clean" or spec in claims])
        for group in ordered(specs) if strategy == "cascade" else [[spec] for spec in specs]:
            wanted = narrowed(group, self._left, claims) if strategy == "cascade" else group
            free = [spec for spec in wanted if spec.role == "clean" or spec in claims]
            chosen = [spec for spec in wanted if spec in free or not self._skip(spec, budget)]
            self.run(chosen)
            gone = [(s.model, s.norm, s.eps) for s in wanted if s not in chosen or self._cell_of(s).status != "success"]
            self._asked |= {key for s in group if s.role != "clean" if (key := (s.model, s.norm, s.eps)) not in gone}

    def _skip(self, spec: CellSpec, budget: Budget) -> bool:
        """Whether a cell may exceed the budget; it is put down as skipped then."""
        name, n = self.bench.id_of(spec), len(self.bench.ids)
        module, reason = self.bench.estimators[spec.source].model, None
        passes: Callable[[bool], int] = getattr(module, "passes", lambda requires_grad: 1)  # a random model's draws
        if not self._shared.holds(self.bench, spec, self.store):
            reason = exceeds(
                spec,
                n if spec.rows is None else len(spec.rows),
                n,
                passes=passes(True),
                spent=self.spent(spec.model),
                **budget.model_dump(),
            )
        if reason is not None:
            self._skipped[name] = skipped(name, spec, reason)
        return reason is not None

    def spent(self, model: str) -> Cost:
        """What the attacks on a model took so far, per image of the whole set."""
        mine = [cell for cell in self.done if cell.model == model and cell.role != "clean"]
        n = len(self.bench.ids)
        return Cost(sum(c.backward_samples for c in mine) / n, sum(c.forward_samples for c in mine) / n)

    def run(self, specs: Iterable[CellSpec]) -> None:
        """A cell that this run has already is not run again, whoever asks for it."""
        new = {self.bench.id_of(spec): spec for spec in specs}
        new = {name: spec for name, spec in new.items() if self._order.get(name) is None}
        self._order |= dict.fromkeys(new)
        self.total += len(new)
        self.progress.cells(self.total)
        crafted, waiting = self._shared.split(new)
        self._run(crafted)
        missing = {}
        for name, spec in waiting.items():
            if (outcome := self._shared.judged(self.bench, spec, self.store)) is None:
                missing[name] = spec  # finished in an earlier run, or its images could not be had
            else:
                self._finish(spec, outcome, reused=False)
        self._run(missing)

    def _run(self, specs: Mapping[str, CellSpec]) -> None:
        executor = self.executor or Serial(self.bench)
        for spec, outcome, reused in run_cells(self.bench, specs.values(), self.store, executor):
            self._finish(spec, outcome, reused=reused)

    def _finish(self, spec: CellSpec, outcome: Outcome, *, reused: bool) -> None:
        outcome = judged_on_grid(self.bench, spec, outcome, self.store, self.grid)
        self._order[outcome.cell.id] = outcome.cell
        self._left[spec.model].append(Left.by(outcome))
        self._shared.add(spec, outcome)
        self.progress.cell(outcome, reused)

    def _probe(self, spec: CellSpec) -> Outcome:
        self.run([spec])
        return Finished([self._cell_of(spec)], self.store)[0]

    def _cell_of(self, spec: CellSpec) -> Cell:
        """Of a spec that was run."""
        cell = self._order[self.bench.id_of(spec)]
        assert cell is not None
        return cell

    def diagnose(
        self,
        subject: ModelUnderTest,
        others: Sequence[str],
        *,
        level: int | None = None,
        budget: float | None = None,
        climb: bool = True,
    ) -> ModelResult:
        """What the diagnostics say of one model, from all the outcomes of its run.

        :param others: models to transfer from.
        :param climb: run the ladder; else judge what the run has.
        """
        mine, claimed = self._of(subject), None
        if subject.claim is not None:
            wanted = self.bench.id_of(subject.claim)
            claimed = next(o for o in mine if o.cell.id == wanted)
        steps: list[Step] = []
        clean = next(o for o in mine if o.cell.role == "clean")
        if climb and claimed is not None and subject.claim is not None and claimed.ok and clean.ok:
            mine, steps = diagnostics.run_steps(
                subject.claim, claimed, mine, self._probe, others=others, level=level, budget=budget
            )
        result = diagnostics.assess(
            subject.name,
            mine,
            claimed=claimed,
            claimed_accuracy=subject.claimed_accuracy,
            description=subject.description,
            stochastic=subject.stochastic,
            steps=steps,
        )
        spent = self.spent(subject.name)
        result = result.model_copy(
            update={
                "spent": Spent(gradients=spent.gradients, queries=spent.queries),
                "robust": self._with_asked(subject.name, result.robust, mine),
            }
        )
        if claimed is None or not claimed.ok or not isinstance(self.store, Store):
            return result
        return result.model_copy(update={"evidence": self._keep_evidence(subject.name, mine, claimed)})

    def _with_asked(self, model: str, robust: Sequence[Robust], outcomes: Sequence[Outcome]) -> list[Robust]:
        """With every budget that a cascade went through, though no cell at it may have been on every image."""
        if not robust and any(not o.ok for o in outcomes):  # nothing can be said of this model
            return list(robust)
        there = {(r.norm, r.eps) for r in robust}
        asked = {(norm, eps) for name, norm, eps in self._asked if name == model} - there
        found = [*robust, *(robust_at(outcomes, norm, eps) for norm, eps in asked)]
        return sorted(found, key=lambda r: (r.norm, r.eps))

    def _of(self, subject: ModelUnderTest) -> list[Outcome]:
        return [o for o in self.outcomes if o.cell.model == subject.name]

    def _keep_evidence(self, name: str, outcomes: Sequence[Outcome], claimed: Outcome) -> str | None:
        """The images that break the model, for anyone to ask it again: ``x``, ``x_adv``, ``y``, ``ids``."""
        legal = legal_at(outcomes, claimed.cell.norm, claimed.cell.eps)
        rows, x_adv = worst_images(legal, self.store, self.bench.x.numpy())
        broken = np.flatnonzero(worst_case(legal) < 0.5)
        assert isinstance(self.store, Store)
        return self.store.write_evidence(
            name,
            x=self.bench.x.numpy()[broken],
            x_adv=x_adv[broken],
            y=self.bench.y.numpy()[broken],
            ids=np.array(self.bench.ids)[broken],
            norm=np.array(claimed.cell.norm),
            eps=np.array(claimed.cell.eps),
            cells=np.array([legal[r].cell.id for r in rows])[broken],
        )


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _data_record(used: Dataset, whole: Dataset) -> dict[str, Any]:
    return {
        "name": used.name,
        "split": used.split,
        "n": len(used),
        "of": len(whole),
        "sha256": whole.sha256,
        "classes": list(used.classes),
        "shape": list(used.shape),
    }


def environment(device: torch.device, threads: int | None = None) -> Environment:
    """What a number depends on besides its recipe."""
    names = (
        "art_qplugins",
        "torch",
        "adversarial-robustness-toolbox",
        "torchattacks",
        "pyautoattack",
        "numpy",
        "scipy",
    )
    packages = {}
    for name in names:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {threads or torch.get_num_threads()} threads"
    )
    return Environment(
        packages=packages,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=name,
        git=_git(),
    )


def _git() -> dict[str, Any] | None:
    """The commit that the package was run from, if it was run from a checkout."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
