"""What the report tells of training: a line for each model, and its curves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made import EVIL, Page, build_run, make_curve, plain, with_training, write_results

from art_qplugins.evaluation.network_records import TrainedEpoch
from art_qplugins.evaluation.records import Results
from art_qplugins.report import words, write_report
from art_qplugins.report.figures import learning
from art_qplugins.report.figures.svg import to_svg
from art_qplugins.report.training import ATTACK, Training, training


def epoch(number: int, loss: float, **more: float | None) -> TrainedEpoch:
    return TrainedEpoch(epoch=number, loss=loss, **{"learning_rate": 0.1, "images_per_second": 9.0} | more)


def losses(*values: float, **more: float) -> Training:
    return Training(curve=[epoch(i, loss, **more) for i, loss in enumerate(values, 1)], best=None)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a report on models with 20 epochs, 20 epochs under attack, one epoch and none."""
    folder = tmp_path_factory.mktemp("trained")
    write_results(folder, with_training(build_run(folder)))
    texts = [path for path in write_report(folder) if path.suffix != ".parquet"]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in texts}


def sections(written: dict[str, str]) -> list[str]:
    return [part.split("</section>")[0] for part in re.split(r'<h2 id="model-\d">', written["report.html"])[1:]]


LINES = [
    "Trained 20 epochs, loss 0.02, validation 97.5 %",
    "Trained 20 epochs, loss 0.02, validation 97.5 %, under PGD-10 40 %",
    "Trained 1 epoch, loss 0.02, validation 97.5 %",
]


def test_each_trained_model_has_a_line(written: dict[str, str]) -> None:
    texts = [plain(Page(section).text) for section in sections(written)]
    for text, line in zip(texts, LINES, strict=False):
        assert text.count("Trained") == 1 and line in text
    assert "Trained" not in texts[3] and "images/s" not in texts[3]
    models = [plain(part) for part in written["results.md"].split("\n## ")[2:6]]
    assert [line in model for line, model in zip(LINES, models, strict=False)] == [True] * 3
    assert [model.count("2,346 images/s") for model in models] == [1, 1, 1, 0]


def test_curves_have_more_than_one_epoch(written: dict[str, str]) -> None:
    drawn = [name for name in written if name.startswith("figures/training-")]
    assert drawn == ["figures/training-fp32.svg", "figures/training-dq-2bit.svg"]
    shown = [section.count('aria-label="Training of') for section in sections(written)]
    assert shown == [1, 1, 0, 0]
    assert "2,346 images/s." in plain(Page(sections(written)[2]).text), "the pace is in the line where no caption is"


def test_a_caption_says_where_the_curves_end(written: dict[str, str]) -> None:
    clean, robust = (
        plain(Page(section.split("<figcaption>")[-1].split("</figcaption>")[0]).text)
        for section in sections(written)[:2]
    )
    assert "The last epoch: loss 0.02, validation 97.5 %; 2,346 images/s." in clean and "PGD" not in clean
    assert "validation 97.5 %, under PGD-10 40 %; 2,346 images/s." in robust
    svg = plain(written["figures/training-dq-2bit.svg"])
    assert "loss from 1.59 to 0.02, accuracy on validation images from 4.9 % to 97.5 %, under PGD-10 from 2 %" in svg


def test_the_attack_is_the_one_that_validates() -> None:
    from art_qplugins.training import validation

    assert f"PGD-{validation._STEPS}" == ATTACK
    caption = Training(curve=make_curve(2, robust=True), best=None).caption
    assert f"{ATTACK} attacks at most {validation._ATTACKED:,} of them" in caption


def with_settings(curve: list[TrainedEpoch], **settings: object) -> Training:
    resolved = {"models": ["other", {"name": "net", **settings}]}
    known = {"spec": {"resolved": resolved}, "training": {"net": curve, "other": curve, "empty": []}}
    results = Results.model_construct(**known)
    assert training("nobody", results) is training("empty", results) is None
    found = training("net", results)
    assert found is not None
    return found


def test_where_the_best_epoch_is_kept_the_line_has_its_numbers() -> None:
    clean, robust = (0.8, 0.9, 0.95), (0.4, 0.5, 0.5)
    pairs = enumerate(zip(clean, robust, strict=True), 1)
    curve = [epoch(i, 1 / i, validation_accuracy=c, robust_validation_accuracy=r) for i, (c, r) in pairs]
    found = with_settings(curve, train={"keep": "best"})
    assert found.best is curve[1], "the first of those that are best under attack"
    line = "Trained 3 epochs, weights of epoch 2 kept, loss 0.5, validation 90 %, under PGD-10 50 %"
    assert plain(str(found)) == line
    assert "The last epoch: loss 0.333" in found.caption and "dotted line" in found.caption
    (panel, *_) = learning.training_curves(found).axes
    assert [list(line.get_xdata()) for line in panel.lines if line.get_linestyle() == ":"] == [[2, 2]]
    unattacked = [told.model_copy(update={"robust_validation_accuracy": None}) for told in curve]
    assert with_settings(unattacked, train={"keep": "best"}).best is unattacked[2]


@pytest.mark.parametrize(
    "settings",
    [{}, {"train": {}}, {"train": None}, {"train": {"keep": "last"}}, {"train": {"keep": "best"}, "checkpoint": "a"}],
)
def test_otherwise_the_last_epoch_is_the_model(settings: dict[str, object]) -> None:
    found = with_settings(make_curve(3), **settings)
    assert found.best is None and "kept" not in str(found) + found.caption


def test_a_long_training_is_thinned_out() -> None:
    found = Training(curve=make_curve(1000, robust=True), best=None)
    epochs = [told.epoch for told in found.drawn]
    assert len(epochs) <= 120 and epochs == list(range(1, 1001, 9))
    assert "One of 9 epochs is drawn." in found.caption and str(found).startswith("Trained 1,000 epochs")
    whole = [len(drawing(found)), len(drawing(Training(curve=make_curve(100, robust=True), best=None)))]
    assert whole[0] < 1.5 * whole[1]


def drawing(found: Training) -> str:
    return to_svg(learning.training_curves(found), alt=learning.training_alt("net", found), prefix="a-")


ODD = {
    "constant": losses(1.0, 1.0),
    "zero": losses(1.0, 0.0),
    "negative": losses(-1.0, -2.5, -3.0),
    "of both signs": losses(1e30, -1e30),
    "of one ten": losses(2.0, 0.2),
    "of ten tens": losses(100.0, 1e-8, 3.0),
    "large": losses(1e30, 1e19, 3e29),
    "of sixty tens": losses(1e30, 1e-29, 1.0),
    "below all floats": losses(5e-324, 1e-300, 0.0, learning_rate=5e-324),
    "large rate": losses(1.0, 0.5, learning_rate=1e30),
    "no rate": losses(1.0, 0.5, learning_rate=0.0),
    "gaps": Training(curve=[epoch(1, 1.0), epoch(2, 0.5, validation_accuracy=0.5), epoch(3, 0.1)], best=None),
    "robust alone": losses(1.0, 0.5, robust_validation_accuracy=0.5),
}


@pytest.mark.parametrize("found", ODD.values(), ids=ODD)
def test_odd_curves_are_drawn(found: Training) -> None:
    svg = drawing(found)
    assert "nan" not in svg.lower() and "$" not in svg
    for axes in learning.training_curves(found).axes:
        assert axes.get_ylim()[0] < axes.get_ylim()[1] and axes.get_xlim() == (1, len(found.curve))
        low, high = axes.get_ylim()
        assert sum(low <= tick <= high for tick in axes.get_yticks()) in range(1, 7)


@pytest.mark.parametrize(("values", "scale"), [((2.0, 0.2), "log"), ((2.0, 0.3), "linear"), ((2.0, 0.0), "linear")])
def test_losses_of_different_sizes_have_a_logarithmic_axis(values: tuple[float, float], scale: str) -> None:
    axes = learning.training_curves(losses(*values)).axes[0]
    assert axes.get_yscale() == scale and ("logarithmic" in axes.get_title(loc="left")) == (scale == "log")


def test_records_without_training_are_reported_as_before(tmp_path: Path) -> None:
    build_run(tmp_path)
    before = {path: path.read_bytes() for path in write_report(tmp_path)}
    path = tmp_path / "results.json"
    old = json.loads(path.read_text(encoding="utf-8"))
    assert old.pop("training") == {}
    path.write_text(json.dumps(old), encoding="utf-8")
    assert {path: path.read_bytes() for path in write_report(tmp_path)} == before
    assert b"Trained" not in before[tmp_path / "report.html"]


def test_names_of_trained_models_are_escaped(tmp_path: Path) -> None:
    write_results(tmp_path, with_training(build_run(tmp_path, rename={"fp32": EVIL})))
    page = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1 and len(set(page.ids)) == len(page.ids)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0123456, "0.0123"), (2.0, "2"), (12.345, "12.3"), (1e30, "1e+30"), (-0.5, "-0.5")]
)
def test_losses_in_words(value: float, shown: str) -> None:
    assert words.loss(value) == shown


def rounds(*means: float | None) -> dict[str, object]:
    """Rounds of feedback learning with a class of each level; the low one has half the mean."""
    return {
        "feedback_learning": [
            {
                "epochs": epochs,
                "mean": mean,
                "classes": [
                    {"level": level, "mean": None if mean is None else factor * mean}
                    for level, factor in (("high", 1.5), ("medium", 1.0), ("low", 0.5))
                ],
            }
            for epochs, mean in enumerate(means)
        ]
    }


def test_rounds_of_feedback_learning_have_a_panel() -> None:
    curve = [epoch(i, 1 / i, measured=rounds(*(2.0 + j / 10 for j in range(i + 1)))) for i in (1, 2)]
    trained = Training(curve=curve, best=None)
    assert [told.mean for told in trained.rounds] == [2.0, 2.1, 2.2]
    figure = learning.training_curves(trained)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    (panel,) = (axes for axes in figure.axes if "Margins" in axes.get_title(loc="left"))
    assert len(titles) == 3
    lines = [(list(line.get_xdata()), list(line.get_ydata()), line.get_color()) for line in panel.get_lines()]
    assert [x for x, _, _ in lines] == [[0, 1, 2]] * 4
    assert [y[0] for _, y, _ in lines] == [3.0, 2.0, 1.0, 2.0]
    assert len({colour for *_, colour in lines}) == 4, "levels and the mean have looks of their own"
    assert "mean margin from 2 to 2.2" in learning.training_alt("fl", trained)
    assert to_svg(figure, alt="", prefix="a-")
    plain_curve = learning.training_curves(losses(1.0, 0.5))
    assert not any("Margins" in axes.get_title(loc="left") for axes in plain_curve.axes)


def test_rounds_without_a_margin_are_gaps() -> None:
    trained = Training(curve=[epoch(1, 1.0, measured=rounds(None, 1.0))], best=None)
    assert to_svg(learning.training_curves(trained), alt="", prefix="a-")
    assert "mean margin from none to 1" in learning.training_alt("fl", trained)
