"""Small faults put into a right program, one at a time: another operator, constant, comparison, or what it returns.

mutants("def f(x):\n    return x + 1")
# [("line 2: Add to Sub", "def f(x):\n    return x - 1"), ("line 2: 1 to 2", ...), ("line 2: return None", ...)]
"""

from __future__ import annotations

import ast
from collections.abc import Callable

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}  # fmt: skip


def _faults(node: ast.AST) -> list[tuple[str, Callable[[], Callable[[], None]]]]:
    """Faults of one node: a description, and what makes it and gives back what undoes it."""

    def swap(holder: ast.AST, name: str, value: object) -> Callable[[], Callable[[], None]]:
        def make() -> Callable[[], None]:
            before = getattr(holder, name)
            setattr(holder, name, value)
            return lambda: setattr(holder, name, before)

        return make

    found: list[tuple[str, Callable[[], Callable[[], None]]]] = []
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)) and type(node.op) in SWAPS:
        new = SWAPS[type(node.op)]
        found.append((f"{type(node.op).__name__} to {new.__name__}", swap(node, "op", new())))
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        new = SWAPS[type(node.ops[0])]
        found.append((f"{type(node.ops[0]).__name__} to {new.__name__}", swap(node, "ops", [new(), *node.ops[1:]])))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        found.append((f"{node.value} to {node.value + 1}", swap(node, "value", node.value + 1)))
    if isinstance(node, ast.Constant) and type(node.value) is bool:
        found.append((f"{node.value} to {not node.value}", swap(node, "value", not node.value)))
    if isinstance(node, ast.Return) and node.value is not None:
        found.append(("return None", swap(node, "value", ast.Constant(None))))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        found.append(("not left out", swap(node, "op", ast.UAdd())))
    return found


def mutants(source: str) -> list[tuple[str, str]]:
    """Each single fault of `source` with what it changes, in the order of the text."""
    tree = ast.parse(source)
    made = []
    for node in ast.walk(tree):
        for words, make in _faults(node):
            undo = make()
            made.append((getattr(node, "lineno", 0), words, ast.unparse(ast.fix_missing_locations(tree))))
            undo()
    plain = ast.unparse(tree)
    return [(f"line {line}: {words}", text) for line, words, text in sorted(made) if text != plain]
