"""Made-up cells of a made-up model: what its images answered under each attack is chosen, and nothing is run."""

from __future__ import annotations

import math

import numpy as np

from art_qplugins.attacks.catalogue import ATTACKS
from art_qplugins.diagnostics import assess
from art_qplugins.evaluation.outcome import Outcome
from art_qplugins.evaluation.records import Cell, Sample

#: Images.
N = 200
#: What an honest model shows without an attack: per image, and as a whole.
HEALTHY = {
    **{"gradient": 0.1, "gradient_start": 0.1, "gradient_ratio": 0.5, "gradient_l2": 0.3},
    **{"fidelity": 0.9, "fidelity_eps": 0.9, "instability": 0.1, "alignment": 0.9},
    **{"imbalance": 1.5, "coherence": 0.9},
}
FACTS = {
    **{
        "reaches_pixels": True,
        "ends_at": None,
        "blocking": None,
        "lost": [],
        "opaque": False,
        "saturates": None,
        "quantizers": 0,
    },
    **{"probabilities": False, "dynamic": False, "stateful": [], "batch_dependent": 0.0, "random": False},
    **{"adapted": [], "pixels": 64, "skipped": {}},
}


def cell(
    attack,
    correct,
    *,
    role="probe",
    eps=0.1,
    source="m",
    params=None,
    rows=None,
    n=N,
    facts=None,
    selection=None,
    visited=True,
    undefined=0,
    distance=None,
    **columns,
):
    """A finished cell.

    ``correct``, ``selection`` (by default the same) and the other columns of its samples are one number for all images, or
    one for each image of ``rows``; by default these are all ``n``.
    """
    where = range(n) if rows is None else rows

    def each(values):
        return np.broadcast_to(np.asarray(values, dtype=float), (len(where),))

    correct = each(correct)
    chosen_by = correct if selection is None else each(selection)
    columns = {name: each(values) for name, values in {"margin": 1.0, "loss": 0.1, **columns}.items()}
    name = f"{attack}-{eps}-{source}-{params}"
    samples = [
        Sample(
            cell=name,
            sample=str(row),
            label=row % 10,
            prediction=0,
            correct=correct[i],
            selection=chosen_by[i],
            distance=eps if distance is None else distance,
            margin=finite(columns["margin"][i]),
            loss=finite(columns["loss"][i]),
            measures={k: finite(v[i]) for k, v in columns.items() if k not in ("margin", "loss")},
        )
        for i, row in enumerate(where)
    ]
    record = Cell(
        id=name,
        model="m",
        source=source,
        attack=attack,
        knowledge=ATTACKS[attack].knowledge,
        role=role,
        params={**ATTACKS[attack].resolve({}), **(params or {})},
        norm="Linf",
        eps=eps,
        seed=0,
        n=len(samples),
        accuracy=float(correct.mean()),
        interval=(0.0, 1.0),
        forward_samples=0,
        backward_samples=0,
        seconds=0.0,
        status="success",
        rows=None if rows is None else list(rows),
        of=None if rows is None else n,
        facts=facts or {},
        visited=None if role == "clean" else visited,
        undefined=undefined,
    )
    return Outcome.from_samples(record, samples)


def finite(value):
    return float(value) if math.isfinite(value) else None


def failed(attack, role="probe"):
    """A cell that raised."""
    record = cell(attack, 1.0, role=role).cell
    changes = {"status": "error", "error": "Traceback\nBoom: it failed", "accuracy": None, "interval": None, "n": 0}
    return Outcome(record.model_copy(update=changes))


def first(share, n=N):
    """1 for the first ``share`` of the images, 0 for the others."""
    return (np.arange(n) < share * n).astype(float)


def clean(correct=1.0, *, n=N, facts=None, **columns):
    """The clean cell of an honest model, with these differences."""
    columns = {**HEALTHY, "margin": 3.0, **columns}
    return cell("artq:clean", correct, role="clean", eps=0.0, n=n, facts={**FACTS, **(facts or {})}, **columns)


def judged(
    *,
    claimed=0.5,
    found=0.5,
    scaled=None,
    repaired=None,
    search=None,
    shown=None,
    facts=None,
    params=None,
    extra=(),
    n=N,
    drop=(),
    **more,
):
    """The result of a model whose claim, by PGD, leaves the first ``claimed`` of the images.

    ``found`` is what another loss leaves, ``scaled`` the claimed attack on divided logits, ``repaired`` one along
    surrogate gradients, ``search`` one without gradients; each as much as the claim where not given.

    :param shown: columns of the clean cell that are not an honest model's; ``facts`` of its facts.
    :param drop: names of cells that were not run. ``repaired-power`` and ``square-power`` show at a larger eps that these
        attacks could have found something.
    """
    pgd = {"max_iter": 20, "rel_eps_step": None}

    def robust(share):
        return first(claimed if share is None else share, n)

    cells = {
        "clean": clean(n=n, facts=facts, **{"margin": 9.0, "loss": 0.01, **(shown or {})}),
        "claim": cell("art:pgd", robust(None), role="attack", n=n, params={**pgd, **(params or {})}),
        "scaled": cell("art:pgd", robust(scaled), params={**pgd, "temperature": 3.0}, n=n),
        "margin": cell("artq:apgd-margin", robust(found), n=n, params={"max_iter": 20}),
        "square": cell("autoattack:square", robust(search), n=n),
        "repaired": cell("artq:surrogates", robust(repaired), n=n),
        "fgsm": cell("art:fgsm", first(min(1.0, claimed + 0.1), n), n=n),
        "repaired-power": cell("artq:surrogates", 0.0, eps=0.2, rows=range(20), n=n),
        "square-power": cell("autoattack:square", 0.0, eps=0.2, rows=range(20), n=n),
    }
    kept = [c for name, c in cells.items() if name not in drop]
    return assess("m", [*kept, *extra], claimed=cells["claim"], **more)


def fired(result):
    """Names of the indicators that found something."""
    return {f.id for f in result.findings if f.fired}
