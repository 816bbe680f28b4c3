"""Hashes that change whenever an answer may: of a module, and of this package's code.

What a module holds is read by its content. Where something cannot be read, such as a session of another runtime or a function of
the user, the answers to a few fixed images enter the hash too.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor, nn

from art_qplugins.contents import Contents

__all__ = ["code_fingerprint", "fingerprint"]

_PACKAGE = Path(__file__).parent


def fingerprint(module: nn.Module, ask: Callable[[], Tensor] | None = None) -> str:
    """SHA-256 of the structure, weights and code of a module, and of the settings of every submodule.

    The settings include those that no repr shows. Equal modules have the same hash in every process.

    :param ask: gives the module's answers to fixed images. It is called, twice, only where the module holds something that
        cannot be read. Answers that differ are random, and do not count.
    """
    contents = Contents()
    found = contents.module(module)
    answers = _answers(ask) if contents.unread and ask is not None else b""
    return hashlib.sha256(found.encode() + answers).hexdigest() if answers else found


def _answers(ask: Callable[[], Tensor]) -> bytes:
    try:
        first, second = (ask().detach().cpu().contiguous().numpy().tobytes() for _ in range(2))
    except (Exception, SystemExit):  # others' code; the clean cell will fail and say why
        return b""
    return first if first == second else b""


def code_fingerprint(parts: Iterable[str], root: Path = _PACKAGE) -> str:
    """SHA-256 of what Python files do. Docstrings, comments and layout do not count; the version of Python does.

    :param parts: files and folders below ``root``.
    """
    digest = hashlib.sha256()
    for part in parts:
        place = root / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            tree = _WithoutText().visit(ast.parse(path.read_bytes()))
            digest.update(f"{path.relative_to(root).as_posix()}{ast.dump(tree)}".encode())
    return digest.hexdigest()


class _WithoutText(ast.NodeTransformer):
    """Takes away the statements that are a constant alone, such as docstrings. They do nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
