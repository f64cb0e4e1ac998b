"""The layers of the house: a lower one never imports a higher one, and heavy packages stand inside functions.

    L0  errors, registry                                  standard library only
    L1  core/config, core/backend, core/isolation, algorithms
    L2  data, grading, rewards (without training), eval, utils
    L3  core/* (the life of a run)
    L4  backends
    L5  core/backend_factory
    L6  rewards/training, compare, diagnosis, report, preflight
    L7  cli, recipes, quickstart

Imports are read from the source, those inside functions and under TYPE_CHECKING too. Lazy "module:attribute" strings
are not imports.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
LAYERS = {
    "aligntune": 7,  # the root names everything, lazily
    "aligntune.errors": 0,
    "aligntune.registry": 0,
    "aligntune.core": 3,
    "aligntune.core.config": 1,
    "aligntune.core.backend": 1,
    "aligntune.core.isolation": 1,
    "aligntune.core.fingerprint": 1,
    "aligntune.algorithms": 1,
    "aligntune.data": 2,
    "aligntune.grading": 2,
    "aligntune.rewards": 2,
    "aligntune.eval": 2,
    "aligntune.utils": 2,
    "aligntune.backends": 4,
    "aligntune.core.backend_factory": 5,
    "aligntune.core.rl.meta_es": 5,  # trains through worker processes
    "aligntune.core.process": 5,  # the factory, reached through a worker process
    "aligntune.rewards.training": 6,
    "aligntune.compare": 6,
    "aligntune.diagnosis": 6,
    "aligntune.report": 6,
    "aligntune.preflight": 6,
    "aligntune.stages": 6,
    "aligntune.cli": 7,
    "aligntune.recipes": 7,
    "aligntune.quickstart": 7,
}
HEAVY = {
    "torch", "transformers", "trl", "datasets", "peft", "accelerate", "unsloth", "unsloth_zoo", "bitsandbytes", "numpy",
    "pandas", "pyarrow", "math_verify", "safetensors", "tokenizers", "huggingface_hub", "sympy",
}  # fmt: skip
SANDBOX_SCRIPTS = ("aligntune.grading.sandbox.zygote", "aligntune.grading.sandbox.grader")
LIGHT_L1 = {"aligntune", "pydantic", "yaml", "annotated_types", "typing_extensions"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    """The layer of the longest known prefix of a module's name."""
    parts = module.split(".")
    return next(LAYERS[p] for i in range(len(parts), 0, -1) if (p := ".".join(parts[:i])) in LAYERS)


MODULES = {module_name(p): p for p in sorted(SOURCE.rglob("*.py"))}


def imports(tree: ast.AST, module: str, *, top_level: bool) -> Iterator[str]:
    """Names of imported modules; with `top_level` only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if top_level and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if top_level and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield from imports(ast.Module([other], []), module, top_level=True)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in MODULES else base
        else:
            yield from imports(node, module, top_level=top_level)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def test_no_layer_imports_a_higher_one(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for name, tree in trees.items():
        for target in set(imports(tree, name, top_level=False)):
            if target.split(".")[0] == "aligntune" and target != "aligntune" and layer(target) > layer(name):
                wrong.append(f"{name} (L{layer(name)}) imports {target} (L{layer(target)})")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_inside_functions(trees: dict[str, ast.Module]) -> None:
    wrong = [
        f"{name}: {target}"
        for name, tree in trees.items()
        for target in imports(tree, name, top_level=True)
        if target.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_the_lowest_layers_need_almost_nothing(trees: dict[str, ast.Module]) -> None:
    wrong = []
    for name, tree in trees.items():
        if layer(name) > 1:
            continue
        allowed = {"aligntune"} if layer(name) == 0 else LIGHT_L1
        for target in imports(tree, name, top_level=True):
            root = target.split(".")[0]
            if root not in allowed and root not in sys.stdlib_module_names:
                wrong.append(f"{name}: {target}")
    assert not wrong, "\n".join(wrong)


def test_no_library_is_caught_whole(trees: dict[str, ast.Module]) -> None:
    """`except Exception` stands in at most three places, and each says why on its line.

    The sandbox's interpreters are none of the house: what a program under test raises, they must answer for.
    """
    found = []
    for name, tree in trees.items():
        if name in SANDBOX_SCRIPTS:
            continue
        lines = MODULES[name].read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None
                or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
            ):
                reraises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
                if not reraises:
                    found.append((f"{name}:{node.lineno}", lines[node.lineno - 1]))
    assert len(found) <= 3, found
    assert all("#" in line for _, line in found), found


def test_files_are_small() -> None:
    """No file over 500 lines: what grows beyond that is two things."""
    long = {name: n for name, p in MODULES.items() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 500}
    assert long == {}


def test_every_module_says_what_it_is(trees: dict[str, ast.Module]) -> None:
    assert [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []
