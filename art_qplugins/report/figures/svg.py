"""Matplotlib figures as SVG text. The same figure gives the same text, and the text is safe inside a page."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from art_qplugins.report.figures.style import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawing", "drawn", "inline", "to_svg"]

_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
#: Matplotlib's own style sheet. Inside a page it would apply to every element of every figure.
_SHEET = re.compile(r"<style type=\"text/css\">\*\{([^{}]*)\}</style>")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure. ``svg`` is the whole file, and ``alt`` says in words what it shows."""

    name: str  # of the file, without ending
    svg: str
    alt: str


def drawn(name: str, alt: str, figure: Figure) -> Drawing:
    """The figure as SVG. Its ids begin with ``name``."""
    return Drawing(name=name, svg=to_svg(figure, alt=alt, prefix=f"{name}-"), alt=alt)


def to_svg(figure: Figure, *, alt: str, prefix: str) -> str:
    """A whole SVG file.

    :param alt: alternative text.
    :param prefix: prefix of every id, so that several figures can share one page.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The browser has the glyphs of a name in another script even where the measuring font does not.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = re.sub(r"(style=\"[^\"]*?)'DejaVu Sans'[^;\"]*", lambda match: match[1] + _FONTS, text)
    text = re.sub(r'(<[^<>]*?\s)id="', rf'\1id="{prefix}', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)


def inline(svg: str) -> str:
    """The ``<svg>`` element alone, for a page.

    It has no size, because the page sets its width. It has no style sheet: the settings of Matplotlib's sheet are put
    into the style of the element.
    """
    start = svg.index("<svg ")
    end = svg.index(">", start)
    opening = re.sub(r' (?:width|height)="[^"]*"', "", svg[start:end])
    rest = svg[end:].rstrip()
    sheet = _SHEET.search(rest)
    return f'{opening} style="{sheet[1]}"{_SHEET.sub("", rest)}' if sheet else opening + rest
