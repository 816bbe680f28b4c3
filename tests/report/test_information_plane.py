"""The section on what codes tell of images, from made-up records."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import pytest
from made import EPS, build_run, plain, rows_of, write_results

from art_qplugins.evaluation.network_records import ChangedInformation, Information
from art_qplugins.evaluation.records import Results
from art_qplugins.report import read_run, write_report
from art_qplugins.report.figures.information import in_plane, roc_curves
from art_qplugins.report.plane import planes, predictions

CLEAN = 0.9


def made(cell: str | None, eps: float, gained: float, lost: float, auroc: float = 0.75) -> ChangedInformation:
    return ChangedInformation(
        cell=cell,
        norm="Linf",
        eps=eps,
        n=50,
        information=0.6 + gained,
        clean_information=0.6,
        accuracy=CLEAN + lost,
        clean_accuracy=CLEAN,
        auroc=auroc,
        interval=(auroc - 0.1, auroc + 0.1),
        detected=0.3,
        roc=[rate / 100 for rate in range(101)],
    )


def with_information(results: Results, model: str = "sq-ensemble") -> Results:
    """PGD on a line in the plane but for its last strength; noise that changes little."""
    own = [cell for cell in results.cells if (cell.source, cell.model, cell.attack) == (model, model, "art:pgd")]
    cells = {cell.eps: cell.id for cell in own if cell.role == "attack"}
    known = zip(sorted(cells), (-0.1, -0.2, -0.3, -0.4), (-0.15, -0.3, -0.45, -0.8), strict=True)
    record = Information(
        n=50,
        draws=12,
        information=0.6,
        accuracy=CLEAN,
        attacked=[made(cells[eps], eps, gained, lost) for eps, gained, lost in known],
        noisy=[made(None, eps, -0.01, -0.01, 0.5) for eps in sorted(cells)],
        skipped={"cell-x": "RuntimeError: <gone>"},
    )
    return results.model_copy(update={"information": {model: record}})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("told")
    found = with_information(build_run(folder))
    write_results(folder, found)
    write_report(folder)
    return found, folder


def test_weaker_strengths_on_a_line_foretell_the_next_one_exactly(results: tuple[Results, Path]) -> None:
    (plane,) = planes(results[0])
    assert (plane.model, plane.norm, list(plane.attacks)) == ("sq-ensemble", "Linf", ["art:pgd"])
    third, fourth = predictions(plane.attacks["art:pgd"])
    assert (third.eps, fourth.eps) == EPS[2:]
    assert third.predicted == pytest.approx(CLEAN - 0.45) and third.error == pytest.approx(0)
    assert third.last == pytest.approx(CLEAN - 0.3) and third.naive_error == pytest.approx(0.15)
    assert fourth.error == pytest.approx(0.2) and fourth.naive_error == pytest.approx(0.35)


def test_a_prediction_is_an_accuracy_and_needs_information_that_changes(results: tuple[Results, Path]) -> None:
    (plane,) = planes(results[0])
    first, second, third, _ = plane.attacks["art:pgd"]
    assert predictions([first, second]) == []
    still = [first.__class__(**{**vars(point), "gained": 0.0}) for point in (first, second)]
    (unknown,) = predictions([*still, third])
    assert unknown.predicted is None and unknown.error is None and unknown.naive_error == pytest.approx(0.15)
    far = first.__class__(**{**vars(third), "gained": -0.9})
    (clipped,) = predictions([first, second, far])
    assert clipped.predicted == 0


def test_the_section_shows_curves_the_control_and_the_errors(results: tuple[Results, Path]) -> None:
    folder = results[1]
    page = (folder / "report.html").read_text(encoding="utf-8")
    section = page.split('id="section-information"')[1].split("</section>")[0]
    rows = rows_of(section)
    assert (
        "sq-ensemble | art:pgd | Linf, eps 0.2 | 50 | -0.400 | -80 | 0.750 [0.65, 0.85] | 30 % | 0.500 | 30 %" in rows
    )
    assert "sq-ensemble | art:pgd | Linf, eps 0.2 | 10 % | 30 % | +20 | 45 % | +35" in rows
    text = plain(unescape(section))
    assert "Over 2 held-out strengths its mean error is 10 points, and that of the naive prediction 25 points." in text
    assert "cell-x could not be measured (RuntimeError: <gone>)" in text and "fewer than three" not in text
    for name in ("section-information-plane-1", "section-information-roc-1-1"):
        assert f'id="{name}-' in section and (folder / "figures" / f"{name}.svg").exists()
    svg = plain((folder / "figures" / "section-information-roc-1-1.svg").read_text(encoding="utf-8"))
    assert "0.05: 0.75, noise 0.50" in svg


def test_two_strengths_hold_nothing_out(results: tuple[Results, Path], tmp_path: Path) -> None:
    found = with_information(build_run(tmp_path))
    record = found.information["sq-ensemble"]
    few = record.model_copy(update={"attacked": record.attacked[:2]})
    write_results(tmp_path, found.model_copy(update={"information": {"sq-ensemble": few}}))
    write_report(tmp_path)
    page = unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "With fewer than three strengths nothing can be held out: art:pgd on sq-ensemble." in page
    assert "Do weak attacks foretell" not in page


def test_seeds_of_a_model_are_one_curve(results: tuple[Results, Path]) -> None:
    found = with_information(results[0], "dq-2bit")
    both = {**results[0].information, **found.information}
    models = [{"name": name, "replicate_of": "both"} for name in both]
    changed = {"information": both, "spec": {"resolved": {"models": models}}}
    record = both["dq-2bit"]
    stronger = [one.model_copy(update={"accuracy": 0.0, "auroc": 0.95}) for one in record.attacked]
    both["dq-2bit"] = record.model_copy(update={"attacked": stronger})
    (plane,) = planes(results[0].model_copy(update=changed))
    first = plane.attacks["art:pgd"][0]
    assert (plane.model, first.n) == ("both", 50)
    assert first.lost == pytest.approx((-0.15 - CLEAN) / 2) and first.auroc == pytest.approx(0.85)


def test_figures_show_the_attacks_noise_and_at_most_five_strengths(results: tuple[Results, Path]) -> None:
    (plane,) = planes(results[0])
    assert [line.get_label() for line in in_plane(plane).axes[0].lines if line.get_label()[0] != "_"] == [
        "art:pgd",
        "random noise",
    ]
    point = plane.attacks["art:pgd"][0]
    many = [point.__class__(**{**vars(point), "eps": eps / 100}) for eps in range(1, 10)]
    named = [line.get_label() for line in roc_curves(plane, many).axes[0].lines if line.get_label()[0] != "_"]
    assert [name.partition(":")[0] for name in named] == ["0.01", "0.03", "0.05", "0.07", "0.09"]


def test_a_run_without_information_has_no_section(folder: Path, html: str) -> None:
    assert read_run(folder).results.information == {} and 'id="section-information"' not in html
