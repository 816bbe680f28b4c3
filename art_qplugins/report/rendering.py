"""The templates of the page, and what all of them may use."""

from __future__ import annotations

import functools
import json
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from art_qplugins.report import reproduction, select, words
from art_qplugins.report.figures.svg import inline

__all__ = ["own", "template"]

_PACKAGE = "art_qplugins.report"


def template(name: str) -> Template:
    """One of ``templates``. Every string that it is given is escaped."""
    return _environment().get_template(name)


def own(name: str) -> str:
    """The text of a file of ``templates``."""
    return files(_PACKAGE).joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    """The templates. They are compiled once in a process."""
    environment = Environment(
        loader=PackageLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(json=_json, svg=lambda drawing: Markup(inline(drawing.svg)))
    environment.globals.update(sizes=reproduction.sizes, follows=reproduction.follows)
    environment.globals.update(words=words, kind=select.kind, robust_at=select.robust_at, has_threat=select.has_threat)
    return environment


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
