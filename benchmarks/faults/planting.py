"""The mutants of a source file: mutmut's operators at every place where they apply and a number may hang on it.

mutmut itself plants mutants in functions alone and leaves out those with a decorator. So its operators are used here, and
the walk over the syntax tree (libcst) is ours. Left out are annotations, imports, decorators, errors, warnings, casts and
strings: their slips change what is said and not what is computed.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

_OPERATORS = [(kind, operator) for kind, operator in mutation_operators if operator is not operator_string]
_SKIPPED = (cst.Annotation, cst.Import, cst.ImportFrom, cst.Decorator, cst.Raise, cst.BaseString)
_SKIPPED_CALLS = {"len", "isinstance", "cast", "warn", "debug", "info", "warning", "TypeVar", "getLogger", "InputError"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file. ``first`` and ``last`` are the lines, from 1, of the statement that holds it, without its body."""

    path: str
    line: int
    first: int
    last: int
    in_function: bool
    operator: str
    start: int
    stop: int
    text: str

    def plant(self, source: str) -> str:
        """The source with the change."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.stop :]).decode()

    def change(self, source: str) -> tuple[str, str]:
        """The lines that change, before and after, without their indentation and joined by spaces."""
        lines = list(difflib.unified_diff(source.splitlines(), self.plant(source).splitlines(), n=0))[3:]
        before, after = (" ".join(x[1:].strip() for x in lines if x[0] == sign) for sign in "-+")
        return before, after

    def is_python(self, source: str) -> bool:
        """Whether the changed file parses."""
        try:
            ast.parse(self.plant(source))
        except SyntaxError:
            return False
        return True


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """All mutants of a file, from its first line to its last."""
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    lines, spans = wrapper.resolve(PositionProvider), wrapper.resolve(ByteSpanPositionProvider)
    data = source.encode()

    def at(node: cst.CSTNode, statement: tuple[int, int], in_function: bool) -> Iterator[Mutant]:
        start, stop = spans[node].start, spans[node].start + spans[node].length
        text = data[start:stop].decode()
        for kind, operator in _OPERATORS:
            for mutated in operator(node) if isinstance(node, kind) else ():
                if _loses_words(node, mutated):
                    continue
                changed = text.replace(text.strip(), wrapper.module.code_for_node(mutated).strip())
                name = operator.__name__.removeprefix("operator_")
                yield Mutant(path, lines[node].start.line, *statement, in_function, name, start, stop, changed)

    def walk(node: cst.CSTNode, statement: tuple[int, int], in_function: bool) -> Iterator[Mutant]:
        if _is_skipped(node):
            return
        if isinstance(node, cst.BaseCompoundStatement):
            inside = node.cases[0] if isinstance(node, cst.Match) else node.body.body[0]
            statement = (lines[node].start.line, max(lines[node].start.line, lines[inside].start.line - 1))
        elif isinstance(node, cst.SimpleStatementLine):
            statement = (lines[node].start.line, lines[node].end.line)
        if node in spans and node in lines:
            yield from at(node, statement, in_function)
        for child in node.children:
            is_body = isinstance(node, cst.FunctionDef) and child is node.body
            yield from walk(child, statement, in_function or is_body)

    return walk(wrapper.module, (1, 1), False)


def _is_skipped(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Call):
        return _name(node.func) in _SKIPPED_CALLS
    if isinstance(node, cst.If):
        return _name(node.test) == "TYPE_CHECKING"
    if isinstance(node, cst.Assign):
        return any(_name(target.target) == "__all__" for target in node.targets)
    return isinstance(node, _SKIPPED)


def _loses_words(node: cst.CSTNode, mutated: cst.CSTNode) -> bool:
    """Whether a call loses an argument that is a string."""
    if not (isinstance(node, cst.Call) and isinstance(mutated, cst.Call)):
        return False
    kept = {id(argument) for argument in mutated.args}
    return any(id(a) not in kept and isinstance(a.value, cst.BaseString) for a in node.args)


def _name(node: cst.CSTNode) -> str:
    """``warn`` of both ``warn`` and ``warnings.warn``; empty of what is no name."""
    if isinstance(node, cst.Attribute):
        node = node.attr
    return node.value if isinstance(node, cst.Name) else ""
