"""Matplotlib figures as SVG text that is the same every time and safe inside a page."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Text stays text: it is small, can be found and copied, and is set in the reader's own font. DejaVu Sans, which
# Matplotlib ships and measures with, is wider than those, so that nothing that fits there overflows here.
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.parse_math": False,  # a "$" in a model's name is a dollar
    "text.color": "#22252a",
    "axes.labelcolor": "#4a4f57",
    "axes.edgecolor": "#9aa0a8",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e1e3e6",
    "grid.linewidth": 0.7,
    "xtick.color": "#9aa0a8",
    "ytick.color": "#9aa0a8",
    "xtick.labelcolor": "#4a4f57",
    "ytick.labelcolor": "#4a4f57",
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "art_qplugins",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Give ``draw`` the report's style, and leave the caller's Matplotlib as it was."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def to_svg(figure: Figure, *, alt: str, prefix: str) -> str:
    """A whole SVG file. ``prefix`` goes before every id, so that several figures can share one page."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # The browser has the glyphs of a name in another script even where the measuring font does not.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = out.getvalue()
    text = re.sub(r"(style=\"[^\"]*?)'DejaVu Sans'[^;\"]*", lambda match: match[1] + FONTS, text)
    text = re.sub(r'(<[^<>]*?\s)id="', rf'\1id="{prefix}', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)
    label = f'<svg role="img" aria-label="{escape(alt)}" '
    return text.replace("<svg ", label, 1)


def cut(text: str, length: int) -> str:
    """At most so many characters, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def inline(svg: str) -> str:
    """The ``<svg>`` element alone, without a size of its own: the page decides how wide it is."""
    start = svg.index("<svg ")
    end = svg.index(">", start)
    opening = re.sub(r' (?:width|height)="[^"]*"', "", svg[start:end])
    return opening + svg[end:].rstrip()
