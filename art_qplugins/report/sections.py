"""Sections of the page that are functions of a run: rows of ``SECTIONS``, of this package and of others.

A package adds a :class:`Section` by an entry point of the group ``art_qplugins.report``. Its target is a function that
takes the :class:`~art_qplugins.report.files.Run` and returns HTML, or ``None`` for no section. The section appears after the
models and before the cells. If it fails, the page shows the error in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from markupsafe import Markup

from art_qplugins.files import short_name
from art_qplugins.registry import Entry, Registry
from art_qplugins.report.files import Run
from art_qplugins.report.fragment import checked

__all__ = ["SECTIONS", "Section", "ShownSection", "sections"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Section(Entry):
    """A section of the page: ``target`` is ``"module:function"``, and the function is a ``Callable[[Run], str | None]``.

    The HTML may use the classes of the page: ``<table class="sortable">`` can be sorted, and ``<figure
    class="plot"><div class="panel">`` has a light background also in dark mode.
    :func:`~art_qplugins.report.figures.svg.inline` makes such figures with Matplotlib. Scripts and style sheets are not
    allowed. Each ``href`` and ``src`` must start with ``#`` or ``data:``. Each element must be closed. Each id must
    begin with ``section-NAME-``.

    :ivar title: the heading of the section.
    """

    title: str


SECTIONS: Registry[Section] = Registry(
    "report section",
    [
        Section(
            name="baselines",
            title="Against the baseline",
            target="art_qplugins.report.baselines:section",
            help="paired tests of models that name a baseline",
        ),
        Section(
            name="bits",
            title="Accuracy against bits",
            target="art_qplugins.report.bits:section",
            help="clean and worst-case accuracy over bits, where models of the run differ in them alone",
        ),
        Section(
            name="deployment",
            title="Files beside their networks",
            target="art_qplugins.report.deployment:section",
            help="what models that are files cost, and where they differ from the networks that they were exported from",
        ),
        Section(
            name="randomness",
            title="Models that draw afresh",
            target="art_qplugins.report.randomness:section",
            help="what attackers know of the noise of random models, and what is left after several tries",
        ),
        Section(
            name="sensitivity",
            title="How far a change is carried",
            target="art_qplugins.report.sensitivity:section",
            help="distances of activations under attack, and norms of layers, where the recipe has sensitivity",
        ),
        Section(
            name="information",
            title="What codes tell of images",
            target="art_qplugins.report.information:section",
            help="the information plane of stochastic models and a detector's ROC curves, where the recipe has information",
        ),
        Section(
            name="answers",
            title="The same images, model by model",
            target="art_qplugins.report.answers:section",
            help="what two to six models answer to the images of the claimed attack",
        ),
    ],
    group="art_qplugins.report",
    row=Section,
)


@dataclass(frozen=True, kw_only=True)
class ShownSection:
    """A section as the page shows it: its ``html``, or the error message ``failure``."""

    name: str
    title: str
    anchor: str
    package: str  # name and version; "" for this package
    html: Markup | None
    failure: str


def sections(run: Run) -> list[ShownSection]:
    """The registered sections for ``run``, in the order of the registry. A section that returns ``None`` is left out."""
    return [shown for section in SECTIONS.values() if (shown := _show(section, run)) is not None]


def _show(section: Section, run: Run) -> ShownSection | None:
    anchor = f"section-{short_name(section.name)}"
    package = "" if section.plugin is None else str(section.plugin)
    html, failure = None, ""
    try:
        function = cast("Callable[[Run], object]", section.load())
        made = function(run)
        if made is None:
            return None
        if not isinstance(made, str):
            raise TypeError(
                f"it returned a value of type {type(made).__name__}; it must return HTML as a string, or None"
            )
        html = checked(made, f"{anchor}-")
    except (Exception, SystemExit) as error:  # code of another package may raise anything
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        logger.warning("report section %r of %s: %s", section.name, package or "art_qplugins", failure)
    return ShownSection(
        name=section.name, title=section.title, anchor=anchor, package=package, html=html, failure=failure
    )
