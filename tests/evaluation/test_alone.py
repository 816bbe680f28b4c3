"""Images of a model whose answers depend on the batch are scored alone too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.defences.postprocessor import ClassLabels
from torch import nn

from art_qplugins.estimators import QuantizedClassifier
from art_qplugins.evaluation.alone import correct_alone
from art_qplugins.evaluation.cell import CellSpec
from art_qplugins.evaluation.evaluator import Evaluator
from art_qplugins.evaluation.executor import Serial, run_cells
from art_qplugins.evaluation.store import Memory
from art_qplugins.quantizers import quantize

X = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(16, 3)

    def forward(self, x):
        return self.layer(x.flatten(1) - 0.5)


class Shared(Linear):
    """In a batch of several, each image gets the class of the first one; alone, its own."""

    def forward(self, x):
        logits = super().forward(x)
        return logits[:1].expand(len(x), -1) + 0.0 * logits


class Paired(Shared):
    """It refuses a single image, as batch norm does."""

    def forward(self, x):
        if len(x) == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        return super().forward(x)


class Squeezed(Shared):
    def forward(self, x):
        return super().forward(x).squeeze(0)


class Noisy(Linear):
    def forward(self, x):
        logits = super().forward(x)
        return logits + torch.randn_like(logits)


Y = Linear()(X).argmax(1)
CLEAN = CellSpec(
    model="a", source="a", attack="artq:clean", norm="Linf", eps=0.0, seed=0, role="clean", options={"radius": 0.01}
)
FGSM = CellSpec(model="a", source="a", attack="art:fgsm", norm="Linf", eps=0.1, seed=0)


def outcome(module, spec, shard=9, **around):
    estimator = QuantizedClassifier(module, nn.CrossEntropyLoss(), (1, 4, 4), 3, device_type="cpu", **around)
    here = Evaluator({"a": estimator}, X, Y, [str(i) for i in range(9)], batch_size=shard, shard=shard)
    ((_, found, _),) = run_cells(here, [spec], Memory(), Serial(here))
    return found


@pytest.mark.parametrize("make", [Shared, Paired, Squeezed])
def test_each_image_is_asked_by_itself(make):
    assert len(set(Y.tolist())) > 1
    np.testing.assert_array_equal(correct_alone(make(), X, Y, seed=0), np.ones(9))
    np.testing.assert_array_equal(correct_alone(make(), X, (Y + 1) % 3, seed=0), np.zeros(9))


@pytest.mark.parametrize(
    "make", [Linear, Noisy, lambda: quantize(nn.Sequential(Linear(), nn.ReLU()), activation_bits=2, alpha=2.0)]
)
def test_nothing_is_asked_where_the_batch_does_not_count_or_draws_differ(make):
    assert correct_alone(make(), X, Y, seed=0) is None


@pytest.mark.parametrize("shard", [9, 4])
def test_a_cell_has_both_numbers(shard):
    """Also one of several shards, of which the last has one image and cannot tell."""
    found = outcome(Shared(), CLEAN, shard)
    assert found.cell.accuracy < 1
    alone = found.column("alone")
    assert np.nanmean(alone) == 1 and np.isnan(alone).sum() == (1 if shard == 4 else 0)
    assert [sample.measures["alone"] for sample in found.samples()][:8] == [1.0] * 8
    assert np.isfinite(outcome(Shared(), FGSM, shard).column("alone")[:8]).all()
    assert np.isnan(outcome(Linear(), CLEAN, shard).column("alone")).all()


def test_a_postprocessor_of_the_whole_batch_is_seen_through():
    """ART's ClassLabels marks the classes of all images of a batch for each of them."""
    found = outcome(Linear(), CLEAN, postprocessing_defences=ClassLabels())
    assert found.cell.accuracy < 1 and found.column("alone").mean() == 1
