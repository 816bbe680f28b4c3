"""Feedback learning: its levels, the images that it makes, and a boundary that must move the known way."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from art_qplugins import FeedbackLearning, FeedbackTrainer, InputError, QuantizedClassifier, train
from art_qplugins.defences.feedback import LEVELS, levels
from art_qplugins.training.images import TrainingImages

SIDE = 4


@pytest.mark.parametrize(
    ("classes", "counts"),
    [(2, (0, 1, 1)), (3, (1, 0, 2)), (4, (1, 1, 2)), (10, (2, 3, 5)), (100, (20, 30, 50)), (1000, (200, 300, 500))],
)
def test_the_most_robust_fifth_is_high_and_the_least_robust_half_is_low(classes, counts):
    means = torch.rand(classes)
    found = levels(means)
    assert tuple(sum(level is one for level in found) for one in LEVELS) == counts
    ranks = [LEVELS.index(found[c]) for c in means.argsort(descending=True)]
    assert ranks == sorted(ranks)
    assert [level.samples for level in LEVELS] == [20, 100, 150]


def blobs(n=600):
    """Two narrow clouds at 0.25 and 0.75 of the first pixel; the other pixels are noise."""
    torch.manual_seed(1)
    y = torch.arange(n) % 2
    x = 0.5 + 0.03 * torch.randn(n, SIDE * SIDE)
    x[:, 0] = 0.5 + (2 * y - 1) * 0.25 + 0.02 * torch.randn(n)
    return x.clamp(0, 1).view(n, 1, SIDE, SIDE), y


class Threshold(nn.Module):
    """Class 1 where the first pixel is above ``at``, surely so. Only ``at`` is trained."""

    def __init__(self, at):
        super().__init__()
        self.at = nn.Parameter(torch.tensor(float(at)))

    def forward(self, x):
        z = 300 * (x[:, 0, 0, 0] - self.at)
        return torch.stack([-z, z], 1)


def looked(network, data, **options):
    feedback = FeedbackLearning(**{"directions": 16, "nearest": 8, **options})
    feedback.start(network)
    torch.manual_seed(0)
    said = []
    x, y = data
    feedback.look(network, TrainingImages(x, y, 1), 0, said.append)
    shares = [int(one.removeprefix("margins ").removesuffix("%")) for one in said]
    assert min(shares) >= 0 and max(shares) == shares[-1] == 100
    return feedback


@pytest.mark.parametrize(("at", "low"), [(0.35, 0), (0.65, 1)])
def test_images_start_from_levels_and_end_beyond_their_margins_with_their_label(at, low):
    network, (x, y) = Threshold(at), blobs()
    feedback = looked(network, (x, y))
    (told,) = feedback.rounds
    assert [c["level"] for c in told["classes"]] == (["low", "medium"] if low == 0 else ["medium", "low"])
    assert told["classes"][low]["mean"] < told["classes"][1 - low]["mean"]
    assert told["mean"] == pytest.approx(np.mean([c["mean"] for c in told["classes"]]))
    state = feedback.state()
    labels = state["labels"]
    assert (int((labels == low).sum()), int((labels != low).sum())) == (150, 100)
    # each starts from an image of its own that the network answers right, and from at most 8 directions
    assert len(state["images"].flatten(1).unique(dim=0)) == 250
    assert torch.equal(network(state["images"]).argmax(1), labels)
    assert state["image"].bincount().max() <= 8
    # the margin in closed form: the distance to the threshold by the direction's first pixel
    first = state["directions"].flatten(1)[state["direction"], 0]
    start = state["images"].flatten(1)[state["image"], 0]
    torch.testing.assert_close(state["margin"], (at - start) / first, rtol=0.055, atol=1e-4)
    images, answers = feedback._moved.some(5000)
    assert images.min() >= 0 and images.max() <= 1 and images.shape == (5000, 1, SIDE, SIDE)
    assert (network(images).argmax(1) != answers).float().mean() > 0.95  # clipping brings few back


def test_a_factor_is_drawn_for_each_use():
    network = Threshold(0.35)
    feedback = looked(network, blobs(), directions=16, nearest=1)
    moved = feedback._moved
    one = copy.copy(moved)
    object.__setattr__(one, "image", moved.image[:1])
    object.__setattr__(one, "images", torch.full_like(moved.images, 0.5))
    object.__setattr__(one, "direction", moved.direction[:1])
    object.__setattr__(one, "margin", torch.full((1,), 0.1))
    length = (one.some(4000)[0] - 0.5).flatten(1).norm(dim=1) / 0.1
    assert 1.5 <= length.min() < 1.51 and 1.99 < length.max() <= 2.0001
    assert abs(float(length.mean()) - 1.75) < 0.02


@pytest.mark.parametrize("at", [0.33, 0.67])
def test_the_boundary_moves_to_where_both_classes_have_the_same_margin(at):
    network, feedback = Threshold(at), FeedbackLearning(directions=16, nearest=16, stall=0.0)
    train(
        network,
        blobs(),
        [feedback],
        epochs=16,
        learning_rate=3e-6,
        weight_decay=0.0,
        optimizer=("SGD", {"momentum": 0.0, "nesterov": False}),
        schedule="constant",
    )
    assert abs(float(network.at.detach()) - 0.5) < 0.6 * abs(at - 0.5)
    assert [told["epochs"] for told in feedback.rounds] == list(range(17))


def test_without_weight_it_is_the_training_without_it():
    ends = []
    for defences in ([], [FeedbackLearning(directions=16, nearest=2, weight=0.0, stall=0.0)]):
        network = Threshold(0.45)
        train(network, blobs(100), defences, epochs=2, learning_rate=1e-5)
        ends.append(network.at.detach().clone())
    assert torch.equal(*ends)


def test_training_ends_where_the_mean_margin_stalls():
    told = []
    feedback = FeedbackLearning(directions=16, nearest=4, stall=1.0)  # no round doubles it
    train(Threshold(0.5), blobs(100), [feedback], epochs=5, learning_rate=1e-9, weight_decay=0.0, progress=told.append)
    assert [one.epoch for one in told if one.ends_epoch] == [1]
    assert told[-1].measured["feedback_learning"] == feedback.rounds and len(feedback.rounds) == 2
    json.dumps(told[-1].measured)


def test_rounds_of_several_epochs():
    feedback = FeedbackLearning(epochs=2, directions=16, nearest=4, stall=0.0)
    train(Threshold(0.5), blobs(100), [feedback], epochs=5, learning_rate=1e-9, weight_decay=0.0)
    assert [told["epochs"] for told in feedback.rounds] == [0, 2, 4]


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [(0, 1), (1, 0), (2, 1), (3, 0)])  # epochs and steps that are done
def test_an_interrupted_training_goes_on_with_the_same_bits(at, tmp_path):
    settings = {"epochs": 4, "batch_size": 50, "learning_rate": 1e-6, "weight_decay": 0.0, "save_seconds": 0}

    def ends(state=None, stop=None):
        network = Threshold(0.4)
        feedback = FeedbackLearning(epochs=2, directions=16, nearest=4, stall=0.0)
        seen = []

        class Stopping(FeedbackLearning):
            def term(self, *args):
                if stop is not None and len(seen) == 2 * stop[0] + stop[1]:
                    raise Interrupted
                seen.append(0)
                return super().term(*args)

        feedback.__class__ = Stopping
        try:
            train(network, blobs(100), [feedback], **settings, state=state)
        except Interrupted:
            return None
        return network.at.detach().clone(), feedback.rounds

    whole = ends()
    assert ends(tmp_path / "state", at) is None
    again = ends(tmp_path / "state")
    assert torch.equal(whole[0], again[0]) and whole[1] == again[1]


# --- ART's trainer


def estimator(at=0.4, **more):
    network = Threshold(at)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    shape = (1, SIDE, SIDE)
    return QuantizedClassifier(
        network, nn.CrossEntropyLoss(), shape, 2, optimizer=optimizer, clip_values=(0, 1), **more
    )


def arrays(n=100):
    x, y = blobs(n)
    return x.numpy(), y.numpy()


@pytest.mark.parametrize("one_hot", [False, True])
def test_arts_trainer_trains_an_estimator_in_rounds(one_hot):
    x, y = arrays()
    told = []
    trainer = FeedbackTrainer(estimator(), FeedbackLearning(epochs=2, directions=16, nearest=4, stall=0.0))
    before = float(trainer.get_classifier().model.at.detach())
    trainer.fit(x, np.eye(2, dtype=np.float32)[y] if one_hot else y, batch_size=50, nb_epochs=5, progress=told.append)
    assert [one["epochs"] for one in told] == [0, 2, 4]
    assert told == trainer.feedback.rounds
    assert float(trainer.get_classifier().model.at.detach()) != before
    assert trainer.get_classifier().training_defences == ()


def test_arts_trainer_goes_on_after_the_last_round_that_it_finished(tmp_path):
    x, y = arrays()

    def ends(state=None, rounds=None):
        trainer = FeedbackTrainer(estimator(), FeedbackLearning(directions=16, nearest=4, stall=0.0))

        def stop(told):
            if rounds is not None and told["epochs"] == rounds:
                raise Interrupted

        try:
            trainer.fit(x, y, batch_size=50, nb_epochs=4, state=state, progress=stop)
        except Interrupted:
            return None
        return trainer.get_classifier().model.at.detach().clone(), trainer.feedback.rounds

    whole = ends()
    assert ends(tmp_path / "state", 3) is None
    again = ends(tmp_path / "state")
    assert torch.equal(whole[0], again[0]) and whole[1] == again[1]
    with pytest.raises(InputError, match=r"training state .*state"):
        FeedbackTrainer(estimator()).fit(x, y, batch_size=50, nb_epochs=4, state=tmp_path / "state")


def test_arts_fit_alone_is_no_training_in_rounds():
    x, y = arrays()
    with pytest.raises(
        InputError, match=r"^training_defences: FeedbackLearning looks at all images [^\n]+, or FeedbackTrainer"
    ):
        estimator(training_defences=[FeedbackLearning()]).fit(x, y)


# --- refusals


@pytest.mark.parametrize(
    ("at", "labels", "options", "message"),
    [
        (0.5, lambda y: 2 * y, {}, "class 1 has no image to train on; number the classes without gaps"),
        (
            0.5,
            None,
            {"largest": 1e-3},
            "no image can be moved across the boundary; images of 2 of 2 classes .* largest",
        ),
        (-9.0, None, {}, "no image can be moved across the boundary; images of 1 of 2 classes .* largest"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(at, labels, options, message):
    x, y = blobs(100)
    with pytest.raises(InputError, match=f"^feedback-learning: {message}$"):
        looked(Threshold(at), (x, y if labels is None else labels(y)), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": 0}, "directions: it is 0"),
        ({"directions": 10}, "give at most as many nearest as directions"),
        ({"largest": -1.0}, "largest: it is -1"),
        ({"stall": 2.0}, "stall: it is 2"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        FeedbackLearning(**options)


@pytest.mark.parametrize(("at", "margins"), [(-0.5, [0.0, "some"]), (1.3, ["some", 0.0])])
def test_a_class_that_is_never_answered_right_is_the_least_robust(at, margins):
    (told,) = looked(Threshold(at), blobs()).rounds
    known = [c["mean"] for c in told["classes"]]
    wrong = margins.index(0.0)
    assert known[wrong] == 0 and told["classes"][wrong]["level"] == "low" and known[1 - wrong] > 0


def test_few_images_of_a_class_are_all_taken():
    x, y = blobs(100)
    rows = torch.cat([(y == 0).nonzero().flatten()[:3], (y == 1).nonzero().flatten()])
    feedback = looked(Threshold(0.5), (x[rows], y[rows]))
    assert int((feedback.state()["labels"] == 0).sum()) == 3


def test_what_its_looks_cost_is_about_what_they_take():
    network, data = Threshold(0.45), blobs()
    seen = []
    network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    feedback = FeedbackLearning(directions=16, nearest=8)
    feedback.start(network)
    feedback.look(network, TrainingImages(*data, 1), 0, print)
    told = feedback.look_passes(2, 1) - 20 * 2 * 16 * 12  # without the last look, which only ranks
    assert 0.5 * told < sum(seen) < 1.5 * told
