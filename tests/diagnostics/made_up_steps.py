"""A made-up model to diagnose: what each step breaks of it is chosen, and no cell is really run."""

from __future__ import annotations

import dataclasses

import numpy as np

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics import STEPS, clean_cell, run_steps
from art_qplugins.evaluation.cell import CellSpec, cell_id
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample

N = 60
CLAIM = CellSpec(model="m", source="m", attack="art:mifgsm", norm="Linf", eps=0.1, seed=0, options={"max_iter": 10})
COST = {step.id: step.cost for step in STEPS}

#: A model on which every step has something to do.
EVERYTHING = {
    "measures": {"gradient": 0.1, "gradient_start": 0.1, "fidelity": 0.9, "fidelity_eps": 0.9, "coherence": 0.1},
    "facts": {
        "quantizers": 1,
        "random": True,
        "reaches_pixels": True,
        "pixels": 64,
        "blocking": None,
        "saturates": {"layer": "a", "op": "tanh"},
        "opaque": True,
    },
    "margin": 30.0,
}
#: Nothing to undo, to average or to repair.
PLAIN = {
    "measures": {"gradient": 0.1, "gradient_start": 0.1, "fidelity": 0.9, "fidelity_eps": 0.9, "alignment": 0.9},
    "facts": {"quantizers": 0, "random": False, "reaches_pixels": True, "pixels": 64, "blocking": None},
    "margin": 3.0,
}


def step_of(spec: CellSpec) -> str:
    """The step that a cell belongs to, by what it asks for."""
    options = spec.options
    if (
        spec == dataclasses.replace(CLAIM, attack=spec.attack, norm=spec.norm, options=options)
        and spec.role == "attack"
    ):
        return "claim"
    if spec.check:
        return "binarization"
    if spec.gap or spec.gradient_scale:
        return "scale"
    if spec.restart:
        return "restart"
    if spec.source != spec.model:
        return "transfer"
    if spec.eps > CLAIM.eps and spec.attack != "artq:apgd-margin":
        return "power"
    if spec.attack == "artq:apgd-margin":
        return "unbounded" if spec.eps > CLAIM.eps else "doubling" if options else "margin"
    if spec.attack == CLAIM.attack:
        return "defaults"
    names = {
        "artq:multi-targeted": "targeted",
        "artq:search": "search-on",
        "artq:worst-case": "closing",
        "art:fgsm": "one-step",
        "art:pgd": "cross-entropy",
        "artq:eot": "averaging",
        "autoattack:square": "search",
    }
    return names.get(spec.attack, spec.attack.removeprefix("artq:"))


class MadeUp:
    """Runs cells of a made-up model, and keeps what it was asked for.

    :param breaks: positions of the images that break, by the step that breaks them.
    """

    def __init__(self, breaks, *, n=N, measures, facts, margin, clean=1.0):
        self.breaks, self.n, self.asked = breaks, n, []
        self.measures, self.facts, self.margin, self.clean = measures, facts, margin, clean

    def __call__(self, spec):
        self.asked.append(spec)
        return self.outcome(spec, step_of(spec))

    def outcome(self, spec, step):
        rows = range(self.n) if spec.rows is None else spec.rows
        # At a larger eps every attack works, unless a test says otherwise.
        broken = self.breaks.get(step, range(self.n) if step in ("unbounded", "power") else ())
        correct = [0.0 if i in broken else float(np.broadcast_to(self.clean, self.n)[i]) for i in rows]
        name = self.id_of(spec)
        samples = [
            Sample(
                cell=name,
                sample=str(i),
                label=i % 10,
                prediction=0,
                correct=c,
                selection=c,
                distance=spec.eps,
                margin=self.margin,
                loss=0.1,
                measures=self.measures if step == "clean" else {},
            )
            for i, c in zip(rows, correct, strict=True)
        ]
        params = ATTACKS[spec.attack].resolve(spec.options)
        params |= {"temperature": 9.0} if spec.gap else {}
        params |= {"gradient_scale": spec.gradient_scale} if spec.gradient_scale else {}
        params |= {"restart": spec.restart} if spec.restart else {}
        params |= {"check": spec.check} if spec.check else {}
        cost = round(COST.get(step, 0) * len(samples))
        cell = Cell(
            id=name,
            model=spec.model,
            source=spec.source,
            attack=spec.attack,
            knowledge=ATTACKS[spec.attack].knowledge,
            role=spec.role,
            params=params,
            norm=spec.norm,
            eps=spec.eps,
            seed=spec.seed,
            n=len(samples),
            accuracy=sum(correct) / len(correct),
            interval=(0.0, 1.0),
            forward_samples=2 * cost,
            backward_samples=cost,
            seconds=0.0,
            status="success",
            rows=None if spec.rows is None else list(spec.rows),
            of=None if spec.rows is None else self.n,
            facts=self.facts if step == "clean" else {"used": 32, "success": 1.0, "random": 0.0} if spec.check else {},
        )
        return Outcome.from_samples(cell, samples)

    def id_of(self, spec):
        return cell_id(spec, target="t", source=f"s-{spec.source}", data="d", batch_size=250)

    def begin(self, claim=CLAIM):
        """The claimed outcome, and all that a run has before its diagnosis."""
        claimed = self.outcome(claim, "claim")
        clean = self.outcome(clean_cell(claim.model, norm=claim.norm, seed=0, eps=claim.eps), "clean")
        return claimed, [clean, claimed]

    def diagnose(self, claim=CLAIM, **settings):
        claimed, outcomes = self.begin(claim)
        return run_steps(claim, claimed, outcomes, self, others=("m", "o"), **settings)


def everything(**more):
    """The claim and each step break two images of their own."""
    steps = ["claim", *(step.id for step in STEPS)]
    # Two searches together break enough for a control experiment to fire. Then nothing would be open.
    breaks = {step: set() if step == "substitute" else {2 * i, 2 * i + 1} for i, step in enumerate(steps)}
    return MadeUp(breaks, **{**EVERYTHING, **more})
