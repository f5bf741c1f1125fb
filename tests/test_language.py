"""Docstrings stand alone: they start with a verb or a noun and are sentences."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vla_rl"

# A docstring that starts with one of these is the rest of a sentence whose beginning is only in the code.
FRAGMENTS = {"As", "From", "How", "If", "In", "Of", "To"} | {"What", "When", "Where", "Whether", "Which", "Who", "Why"}


def docstrings(source: str) -> Iterator[tuple[str, str, bool]]:
    """Name, docstring and whether it is public, of a module and everything that it defines."""
    module = ast.parse(source)
    if text := ast.get_docstring(module):
        yield "module", text, True
    nodes: list[tuple[ast.AST, str, bool]] = [(module, "", True)]
    while nodes:
        parent, prefix, public = nodes.pop()
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                nodes.append((node, prefix, public))
                continue
            name, is_public = prefix + node.name, public and not node.name.startswith("_")
            if text := ast.get_docstring(node):
                yield name, text, is_public
            nodes.append((node, f"{name}.", is_public and isinstance(node, ast.ClassDef)))


def faults(source: str) -> list[str]:
    """What is wrong with the docstrings of a module, one line each."""
    found = []
    for name, text, public in docstrings(source):
        if text.split()[0].rstrip(",:;") in FRAGMENTS:
            found.append(f"{name}: starts with {text.split()[0]!r}; start with a verb or a noun")
        summary = text.split("\n\n")[0]
        if public and not summary.endswith((".", ":")):
            found.append(f"{name}: its summary does not end with a period")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_start_with_a_verb_or_a_noun_and_end_their_summary_with_a_period(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Whether it works."""\n', ["module: starts with 'Whether'; start with a verb or a noun"]),
        ('def _f():\n    """Of a token."""\n', ["_f: starts with 'Of'; start with a verb or a noun"]),
        ('class A:\n    def f(self):\n        """Return it"""\n', ["A.f: its summary does not end with a period"]),
        ('class _A:\n    def f(self):\n        """Return it"""\n', []),
        ('def f():\n    """Return it.\n\n    When asked\n    """\n', []),
        ('"""Whatever is left."""\n', []),
    ],
)
def test_fragments_and_missing_periods_are_found_at_any_depth(source, expected):
    assert faults(source) == expected
