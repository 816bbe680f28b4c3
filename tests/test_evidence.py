"""Replaying evidence, on linear models for which the nearest adversarial point is known in closed form."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from art_qplugins.cli import main
from art_qplugins.errors import InputError
from art_qplugins.evidence import Replay, replay
from art_qplugins.threat import Threat

N, EPS = 12, 0.1


class Linear(nn.Module):
    """z = (sum of the pixels - 2, 0) on (1, 2, 2) images: class 0 above a mean of 0.5, else class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        score = x.flatten(1) @ self.weight - 2
        return torch.stack([score, torch.zeros_like(score)], dim=1)


class Coin(Linear):
    """The same with noise in [-5, 5] on the score, drawn from the global generator."""

    def forward(self, x):
        logits = super().forward(x)
        logits[:, 0] += 10.0 * (torch.rand(1).item() - 0.5)
        return logits


class Narrow(Linear):
    """Noise in [-1, 1] on the score."""

    def forward(self, x):
        logits = super().forward(x)
        logits[:, 0] += 2.0 * (torch.rand(1).item() - 0.5)
        return logits


def make():
    return Linear()


def make_robust():
    module = Linear()
    nn.init.constant_(module.weight, 10.0)
    return module


def evidence(path: Path, **changes) -> Path:
    """Images at mean 0.55 (class 0), and the same with eps off every pixel: mean 0.45, class 1."""
    x = np.full((N, 1, 2, 2), 0.55, dtype=np.float32)
    arrays = {
        "x": x,
        "x_adv": x - np.float32(EPS),
        "y": np.zeros(N, dtype=np.int64),
        "ids": np.array([f"toy-{i}" for i in range(N)]),
        "cells": np.array(["a"] * N),
        "norm": np.array("Linf"),
        "eps": np.array(EPS),
    }
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez_compressed(path, **arrays)
    return path


def test_images_across_the_boundary_break_it(tmp_path):
    found = replay(evidence(tmp_path / "e.npz"), Linear())
    assert (found.n, found.broken, found.legal, found.holds, found.stochastic) == (N, N, True, True, False)
    assert found.threat == Threat("Linf", EPS) and found.ids[3] == "toy-3"
    np.testing.assert_allclose(found.distance, EPS, atol=1e-6)
    assert found.before.sum() == 0 and found.share == 1.0
    assert str(found).startswith("12 of 12 images are misclassified; of their clean images, 0 are")


def test_images_on_this_side_do_not(tmp_path):
    x_adv = np.full((N, 1, 2, 2), 0.45, dtype=np.float32)
    x_adv[:5] = 0.51
    found = replay(evidence(tmp_path / "e.npz", x_adv=x_adv), Linear())
    assert (found.broken, found.legal, found.holds) == (N - 5, True, False)
    assert found.wrong.tolist() == [0.0] * 5 + [1.0] * (N - 5)


@pytest.mark.parametrize(
    ("norm", "eps", "legal"),
    [("Linf", 0.099, False), ("Linf", 0.1, True), ("L2", 0.2, True), ("L2", 0.19, False), ("L1", 0.39, False)],
)
def test_distances_are_measured_again(norm, eps, legal, tmp_path):
    found = replay(evidence(tmp_path / "e.npz", norm=np.array(norm), eps=np.array(eps)), Linear())
    assert found.legal is legal and found.holds is legal and found.broken == N
    assert ("NOT LEGAL: image" in str(found)) is not legal


@pytest.mark.parametrize("value", [-0.01, 1.5, np.nan, np.inf])
@pytest.mark.parametrize("which", ["x", "x_adv"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_pixels_out_of_bounds_are_not_legal(dtype, which, value, tmp_path):
    """Also those of the clean images: a distance from NaN is no distance, and exceeds no eps."""
    images = np.full((N, 1, 2, 2), {"x": 0.55, "x_adv": 0.45}[which], dtype=dtype)
    images[2, 0, 1, 1] = value
    found = replay(evidence(tmp_path / "e.npz", **{which: images}), Linear())
    assert not found.legal and not found.holds and found.distance is None
    assert ("clean" in str(found).splitlines()[-1]) == (which == "x")


def test_a_number_that_no_float32_holds_is_not_legal(tmp_path):
    found = replay(evidence(tmp_path / "e.npz", x=np.full((N, 1, 2, 2), 1e300)), Linear())
    assert not found.legal and "12 clean images are not finite" in str(found)


def test_clean_images_of_nan_prove_nothing(artq, tmp_path):
    x = np.full((N, 1, 2, 2), np.nan, np.float32)
    path = evidence(tmp_path / "e.npz", x=x, x_adv=np.zeros((N, 1, 2, 2), np.float32))
    status, out, _ = artq("replay", path, "--model", "test_evidence:make")
    assert status == 1 and "NOT LEGAL: 12 clean images are not finite" in out


def test_a_random_model_is_asked_twenty_times(tmp_path):
    """At mean 0.45 the score is -0.2 plus uniform noise in [-5, 5]: wrong in 52 % of the draws."""
    found = replay(evidence(tmp_path / "e.npz"), Coin())
    assert found.stochastic and 0.2 < found.share < 0.8
    np.testing.assert_allclose(found.wrong * 20, np.round(found.wrong * 20), atol=1e-9)
    assert f"over 20 draws {100 * found.share:.1f} % of the predictions are wrong" in str(found)


def test_a_coin_flip_does_not_refute_a_random_model_but_a_clear_answer_does(tmp_path):
    found = replay(evidence(tmp_path / "e.npz"), Coin())
    assert found.holds and "; 0 images withstand most" in str(found)
    # A mean of 1 is a score of 2, which this noise never turns; one of 0.45 is a score of -0.2, wrong in 60 % of the draws.
    x = np.full((N, 1, 2, 2), 1.0, dtype=np.float32)
    x[: N // 2] = 0.45
    found = replay(evidence(tmp_path / "e.npz", x=x, x_adv=x), Narrow())
    assert found.stochastic and found.legal and not found.holds
    assert found.wrong[N // 2 :].max() == 0 and f"; {N // 2} images withstand most" in str(found)


@pytest.mark.parametrize(
    ("wrong", "stochastic", "broken", "holds"),
    [
        (5 / 20, True, 0, True),
        (4 / 20, True, 0, False),
        (10 / 20, True, 0, True),
        (11 / 20, True, 1, True),
        (1.0, False, 1, True),
        (0.0, False, 0, False),
    ],
)
@pytest.mark.parametrize("illegal", [None, "image 0 is too far"])
def test_an_image_is_refuted_below_five_of_twenty_draws_and_counts_as_broken_above_ten(
    wrong, stochastic, broken, holds, illegal
):
    found = Replay(
        wrong=np.array([wrong, 1.0]),
        before=np.zeros(2),
        ids=["a", "b"],
        threat=None,
        distance=None,
        illegal=illegal,
        stochastic=stochastic,
    )
    assert (found.broken, found.holds) == (broken + 1, holds and illegal is None)
    assert found.share == pytest.approx((wrong + 1) / 2)
    few = 1 if wrong < 0.25 else 0
    assert (f"; {few} images withstand most" in str(found)) is stochastic


def test_everything_is_as_it_was(tmp_path):
    module = Coin().train()
    other = nn.Sequential(module, nn.Linear(3, 2)).train()
    path = evidence(tmp_path / "e.npz")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    replay(path, module)
    with pytest.raises(InputError):
        replay(path, other)
    assert module.training and module.weight.requires_grad and module.weight.grad is None
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_adv": None}, "has no x_adv"),
        ({"x": None, "y": None}, "has no x, y"),
        ({"eps": None}, "has no eps"),
        ({"norm": None, "eps": None}, "has no norm, eps"),
        ({"eps": np.array(np.nan)}, "threat: eps"),
        ({"eps": np.array(np.inf)}, "threat: eps"),
        ({"eps": np.array(-0.1)}, "threat: eps"),
        ({"eps": np.array("0.1")}, "give a text and a number"),
        ({"eps": np.array(8.0)}, "eps = 8 in Linf excludes no image"),
        ({"norm": np.array("L1"), "eps": np.array(4.5)}, "eps = 4.5 in L1 excludes no image"),
        ({"norm": np.array(5)}, "give a text and a number"),
        ({"norm": np.array(["Linf"])}, "give a text and a number"),
        ({"ids": np.array(["a"] * N)}, "each needs a text of its own"),
        ({"ids": np.arange(N)}, "each needs a text of its own"),
        ({"y": np.full(N, 2)}, "label 2 is none of the 2 classes of Linear"),
        ({"y": np.full(N, 2**63, np.uint64)}, "classes count from 0"),
        ({"y": np.zeros(N, bool)}, "do not belong together"),
        ({"y": np.zeros(N, np.float32)}, "do not belong together"),
        ({"x": np.zeros((N, 1, 2, 2), np.uint8)}, r"images are \(N, C, H, W\)"),
        ({"x_adv": np.zeros((N, 1, 2, 3), np.float32)}, "do not belong together"),
        ({"y": np.zeros(N - 1, np.int64)}, "do not belong together"),
        ({"y": np.full(N, -1)}, "labels go from -1"),
        ({"y": np.full(N, 7)}, "label 7 is none of the 2 classes of Linear"),
        ({"x": np.zeros(N, np.float32)}, r"images are \(N, C, H, W\)"),
        ({"ids": np.array(["one"])}, "1 ids <U3 for 12 images"),
        ({"norm": np.array("Loo")}, "norm: it is 'Loo'"),
        ({"eps": np.array([0.1, 0.2])}, "give a text and a number"),
        ({"ids": np.array([{}] * N, dtype=object)}, "Python objects"),  # would have to be unpickled
        (
            {"x": np.zeros((0, 1, 2, 2), np.float32), "x_adv": np.zeros((0, 1, 2, 2), np.float32)}
            | {"y": np.zeros(0, int)},
            "no attack broke the model",
        ),
    ],
)
def test_what_is_no_evidence_is_said_in_one_line(changes, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        replay(evidence(tmp_path / "e.npz", **changes), Linear())
    assert "\n" not in str(caught.value) and "e.npz" in str(caught.value)


@pytest.mark.parametrize("raised", [KeyError("a"), SystemExit(0), AttributeError("b"), NotImplementedError()], ids=repr)
def test_a_module_that_raises_or_exits_is_one_line(raised, tmp_path):
    class Raises(torch.nn.Module):
        def forward(self, x):
            raise raised

    with pytest.raises(
        InputError, match=rf"Raises cannot take its images .*{type(raised).__name__}.*test_evidence.py:\d+"
    ):
        replay(evidence(tmp_path / "e.npz"), Raises())


_DTYPES = ("f2", "f4", "f8", "g", "i1", "i8", "u8", "?", "U3", "S3", "c8", "M8[s]")
_SHAPES = ((), (0,), (1,), (N,), (N, 1), (N, 1, 2, 2), (N, 0, 2, 2), (0, 1, 2, 2), (N, 1, 2, 3), (1, 1, 1, 1))
_VALUES = (0, 1, -1, 0.5, 0.55, 2, 255, 1e38, 1e300, np.nan, np.inf, -np.inf)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from(["x", "x_adv", "y", "ids", "norm", "eps"]),
    dtype=st.sampled_from(_DTYPES),
    shape=st.sampled_from(_SHAPES),
    value=st.sampled_from(_VALUES),
)
def test_any_array_in_the_place_of_another_is_read_or_refused(which, dtype, shape, value, tmp_path):
    """What holds is legal by distances that are measured here; all else is refused, or is not legal."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            odd = np.full(shape, value).astype(dtype)
        except (ValueError, TypeError, OverflowError):
            return
    path = evidence(tmp_path / "e.npz", **{which: odd})
    try:
        found = replay(path, Linear())
    except InputError as error:
        assert "e.npz" in str(error) and len(str(error)) <= 300  # noqa: PT017
        return
    if found.legal:
        assert found.n == N and (found.distance <= found.threat.eps + 1e-6).all() and 0 <= found.threat.eps <= 1
    assert found.holds <= found.legal


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip", b"\x80\x04}.", npy()])
def test_files_that_cannot_be_read(content, tmp_path, capsys):
    path = tmp_path / "e.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["replay", str(path), "--model", "test_evidence:make"])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith(f"artq: {path}: ") and err.count("\n") == 1


def test_a_damaged_member_is_one_line(tmp_path):
    path = evidence(tmp_path / "e.npz")
    content = bytearray(path.read_bytes())
    for at in range(60, 120):
        content[at] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"e\.npz"):
        replay(path, Linear())


# --- artq replay


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)


def test_status_0_where_all_break_and_1_where_one_does_not(artq, tmp_path):
    path = evidence(tmp_path / "e.npz")
    status, out, err = artq("replay", path, "--model", "test_evidence:make")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "12 of 12 images are misclassified; of their clean images, 0 are",
        "legal: at most 0.1 away in Linf, eps = 0.1",
    ]
    status, out, err = artq("replay", path, "--model", "test_evidence:make_robust")
    assert (status, err) == (1, "") and out.startswith("0 of 12 images are misclassified")


def test_weights_of_a_checkpoint_are_used(artq, tmp_path):
    from art_qplugins.checkpoint import save_checkpoint

    path = evidence(tmp_path / "e.npz")
    save_checkpoint(tmp_path / "w.safetensors", make_robust(), {})
    status, out, _ = artq("replay", path, "--model", "test_evidence:make", "--checkpoint", tmp_path / "w.safetensors")
    assert status == 1 and out.startswith("0 of 12")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "test_evidence:mak"], "did you mean 'make'?"),
        (["--model", "test_evidence"], "MODULE:FACTORY"),
        (["--model", "test_evidence:make", "--checkpoint", "no.safetensors"], "no.safetensors"),
        ([], "--model"),
    ],
)
def test_mistakes_are_one_line(arguments, message, artq, tmp_path):
    status, out, err = artq("replay", evidence(tmp_path / "e.npz"), *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("artq: ") and err.count("\n") == 1 and message in err
