"""Sections that other packages add to the page."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made import Page, build_run, plain

from art_qplugins.report import write_report
from art_qplugins.report.fragment import Refused, checked
from art_qplugins.report.sections import SECTIONS, Section

# A package whose entry point names a list of sections. Each function is one that a package might have.
MODULE = """
from art_qplugins.report.sections import Section

def good(run):
    names = ", ".join(model.name for model in run.results.models)
    return f'<p id="section-fake-good-names">Models: {names} &amp; no more</p><table class="sortable"><tr><td>1</td></tr></table>'

def nothing(run):
    return None

def raises(run):
    raise RuntimeError("no <such>\\nluck")

def leaves(run):
    raise SystemExit(3)

def number(run):
    return 17

def script(run):
    return "<p>before</p><script>document.body.remove()</script>"

def drawing(run):
    from matplotlib.figure import Figure
    from art_qplugins.report.figures.style import styled
    from art_qplugins.report.figures.svg import inline, to_svg

    @styled
    def draw():
        figure = Figure(figsize=(4.6, 2))
        figure.add_subplot().plot([0, 1], [1, 0], label="<line>")
        return figure

    svg = inline(to_svg(draw(), alt="A line that falls", prefix="section-fake-drawing-"))
    return f'<figure class="plot"><div class="panel">{svg}</div></figure>'

def section(name, target=None):
    target = target or f"fake_sections:{name}"
    return Section(name=f"fake-{name}", target=target, help="", title=f"Fake <{name}>")

ROWS = [section(name) for name in ("good", "nothing", "raises", "leaves", "number", "script", "drawing")]
ROWS.append(section("gone", "fake_sections:missing"))
"""


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The page and the log of a report where that package is installed, as Python's import system sees it."""
    folder = tmp_path_factory.mktemp("sections")
    site = folder / "site"
    info = site / "fake_package-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "fake_sections.py").write_text(MODULE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-package\nVersion: 1.2\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[art_qplugins.report]\nfake = fake_sections:ROWS\n", encoding="utf-8")
    build_run(folder / "run")
    logged = Lines()
    logger = logging.getLogger("art_qplugins.report.sections")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setattr(SECTIONS, "_found", None)  # ask the installed packages again
        logger.addHandler(logged)
        page = write_report(folder / "run")[-1].read_text(encoding="utf-8")
        logger.removeHandler(logged)
        sys.modules.pop("fake_sections")
    return page, logged.lines


@pytest.fixture
def page(written: tuple[str, list[str]]) -> str:
    return written[0]


def section_of(page: str, name: str) -> str:
    return page.split(f'aria-labelledby="section-fake-{name}"')[1].split("</section>")[0]


def test_a_section_stands_after_the_models_under_its_title_with_its_package(page: str) -> None:
    good = section_of(page, "good")
    text = plain(Page(good).text)
    assert "Fake <good> from fake-package 1.2" in text
    assert "Models: fp32, dq-2bit, mu-law-3bit, sq-ensemble & no more" in text
    assert '<table class="sortable">' in good, "it may use the page's classes"
    assert page.index('id="model-4"') < page.index('id="section-fake-good"') < page.index('id="cells"')


def test_a_section_that_has_nothing_to_say_is_left_out(page: str) -> None:
    assert "fake-nothing" not in page and "Fake &lt;nothing&gt;" not in page


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raises", "RuntimeError: no <such> luck"),
        ("leaves", "SystemExit: 3"),
        ("number", "TypeError: it returned a value of type int; it must return HTML as a string, or None"),
        ("script", "Refused: <script> is not allowed in a section"),
        ("gone", "InputError: fake-gone: fake-package 1.2 names 'fake_sections:missing', which cannot be loaded"),
    ],
)
def test_a_section_that_fails_is_one_line(written: tuple[str, list[str]], name: str, why: str) -> None:
    page, logged = written
    failed = section_of(page, name)
    assert f"The section fake-{name} of fake-package 1.2 failed: {why}" in Page(failed).text
    assert failed.count("<p") == 1 and "before" not in failed
    assert any(line.startswith(f"WARNING report section 'fake-{name}' of fake-package 1.2: {why}") for line in logged)
    assert len(logged) == 5, "one line for each section that fails"


def test_the_rest_of_the_page_is_complete_and_as_strict_as_before(page: str, html: str) -> None:
    whole = Page(page)
    assert whole.tags.count("script") == 1 and whole.tags[-1] == "script"
    assert sorted(set(whole.ids)) == sorted(whole.ids)
    assert [link for link in whole.links if not link.startswith(("#", "data:"))] == ["evidence/mu%20law.npz"]
    kept, first = (re.split('<section aria-labelledby="(?:section-|cells")', text)[0] for text in (page, html))
    assert kept == first, "what comes before the sections is the same, its policy included"
    assert page.split('<section aria-labelledby="cells"')[1] == html.split('<section aria-labelledby="cells"')[1]


def test_a_figure_of_matplotlib_is_a_section(page: str) -> None:
    drawing = section_of(page, "drawing")
    assert 'role="img" aria-label="A line that falls"' in drawing and drawing.count("<path") > 2
    assert "<style" not in drawing and 'style="stroke-linejoin: round; stroke-linecap: butt"' in drawing


def test_without_packages_nothing_is_added(html: str) -> None:
    assert {name for name in Page(html).ids if name.startswith("section-")} <= {f"section-{name}" for name in SECTIONS}


def test_a_section_of_this_package_says_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Section(name="own", target=f"{__name__}:own_section", help="", title="Our own")
    monkeypatch.setattr(SECTIONS, "_found", {"own": row})
    build_run(tmp_path)
    page = Page(write_report(tmp_path)[-1].read_text(encoding="utf-8"))
    assert "Our own" in page.text and "from art_qplugins" not in page.text


def own_section(run: object) -> str:
    return "<p>Ours.</p>"


@pytest.mark.parametrize(
    ("html", "why"),
    [
        ("<SCRIPT>1</SCRIPT>", "<script> is not allowed"),
        ("<script src='data:,1'></script>", "<script> is not allowed"),
        ("<svg><script>1</script></svg>", "<script> is not allowed"),
        ("<style>main { display: none }</style>", "<style> is not allowed"),
        ("<iframe src='data:text/html,x'></iframe>", "<iframe> is not allowed"),
        ("<meta http-equiv='refresh' content='0'>", "<meta> is not allowed"),
        ("<base href='#'>", "<base> is not allowed"),
        ("<form><button>send</button></form>", "<form> is not allowed"),
        ("<p onclick='1'>", "onclick of <p> is not allowed"),
        ("<img src='data:,' OnError=1>", "onerror of <img> is not allowed"),
        ("<img srcset='data:,'>", "srcset of <img> is not allowed"),
        ("<img src=other.png>", "src='other.png' of <img> leads out of the page"),
        ("<img src='https://example.org/x.png'>", "leads out of the page"),
        ("<a href='//example.org'>x</a>", "leads out of the page"),
        ("<a href=' java&#115;cript:alert(1)'>x</a>", "leads out of the page"),
        ("<svg><use xlink:href='other.svg#x'/></svg>", "leads out of the page"),
        ("<p style='background: URL( \"x.png\" )'></p>", "leads out of the page"),
        ("<svg><rect fill='url(x.svg#a)'/></svg>", "leads out of the page"),
        ("<video poster='x.png'></video>", "leads out of the page"),
        ("<p>never closed", "<p> is not closed"),
        ("<div><p></div></p>", "<p> is not closed"),
        ("</section></main>", "</section> closes what is not open"),
        ("<p id='cells'></p>", "an id must begin with mine-"),
        ("<p id></p>", "an id must begin with mine-"),
        ("<p a\"b='1'></p>", "is not allowed"),
    ],
)
def test_html_that_would_run_fetch_or_break_is_refused(html: str, why: str) -> None:
    with pytest.raises(Refused) as caught:
        checked(html, "mine-")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("html", "written"),
    [
        ("plain & <b>bold</b>", "plain &amp; <b>bold</b>"),
        ("<p class=\"x\" title='a \"b\" &lt;c>'>1<br>2<br/>3</p>", '<p class="x" title="a &quot;b&quot; &lt;c&gt;">1<br>2<br>3</p>'),
        ("<!-- a note --><?xml version='1.0'?><!doctype html>x", "x"),
        ("<div/>after", "<div></div>after"),
        ("<a href='#model-1'>up</a><img src='DATA:image/png;base64,AA' alt=''>",
         '<a href="#model-1">up</a><img src="DATA:image/png;base64,AA" alt="">'),
        ("<svg viewBox='0 0 1 1'><g id='mine-g' style=\"clip-path: url('#mine-c')\"/></svg>",
         '<svg viewbox="0 0 1 1"><g id="mine-g" style="clip-path: url(&#x27;#mine-c&#x27;)"></g></svg>'),
        ("<p hidden>x</p>", '<p hidden="">x</p>'),
        ("1 < 2 and <!-- never closed", None),
    ],
)  # fmt: skip
def test_what_goes_into_the_page_is_what_was_checked(html: str, written: str | None) -> None:
    shown = checked(html, "mine-")
    assert "<!--" not in shown
    assert written is None or shown == written
    assert checked(shown, "mine-") == shown


def test_a_row_is_a_name_a_target_and_a_title() -> None:
    row = Section(name="own", target="made:plain", help="one line", title="Title")
    loaded: Callable[[str], str] = row.load()
    assert loaded("\N{NO-BREAK SPACE}") == " "
