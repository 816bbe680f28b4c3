"""Rows of another package, announced as if it were installed."""

from __future__ import annotations

import another_package
import pytest

from art_qplugins import plugins
from art_qplugins.quantizers import QUANTIZERS


@pytest.fixture
def foreign(monkeypatch):
    """Announces these rows; the row "power-of-two" is announced already."""

    def announce(*rows):
        package = plugins.Plugin("another-package", "1.0")
        monkeypatch.setattr(plugins, "entries", lambda group, row: [(package, one) for one in rows])
        monkeypatch.setattr(QUANTIZERS, "_found", None)

    announce(another_package.ROW)
    yield announce
    monkeypatch.undo()
    QUANTIZERS._found = None
