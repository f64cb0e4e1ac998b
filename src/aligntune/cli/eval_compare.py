"""`aligntune eval compare`: two or more result folders, item by item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared

if TYPE_CHECKING:
    from aligntune.eval import EvalResult

EXCERPT = 160
"""Characters of a prompt or an answer in the list of items that changed."""


@click.command(short_help="Compare result folders item by item.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER FOLDER...")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only this task (several times for several).")
@click.option("--margin", type=float, metavar="X", help="Differences up to X do not matter: say which are equivalent.")
@click.option("--changed", type=int, default=5, show_default=True, metavar="N", help="Show N items that changed.")
@shared
def command(
    settings: Settings, folders: tuple[str, ...], tasks: tuple[str, ...], margin: float | None, changed: int
) -> Output:
    """Compare the results in the FOLDERs with those in the first one: paired differences with intervals and tests,
    and the items whose score changed."""
    from aligntune.eval import EvalResult

    return compared([EvalResult.load(folder) for folder in folders], list(tasks), margin, changed)


def compared(results: list[EvalResult], tasks: list[str], margin: float | None, changed: int) -> Output:
    """The comparison of results as output.

    Raises:
        ValidationError: fewer than two results, or no task in common.
        ConfigurationError: a task that no result has, or a margin that is not positive.
    """
    import dataclasses

    from aligntune.errors import ConfigurationError
    from aligntune.eval.comparing import changed_items, compare_all
    from aligntune.registry import nearest

    if margin is not None and margin <= 0:
        raise ConfigurationError(f"--margin is {margin:g}", hint="state the largest difference that does not matter")
    known = list(results[0].tasks)
    for name in tasks:
        if name not in known:
            raise ConfigurationError(f"{results[0].model} has no task '{name}'", hint=nearest(name, known))
    if tasks:
        results = [dataclasses.replace(r, tasks={k: t for k, t in r.tasks.items() if k in tasks}) for r in results]
    rows = compare_all(results, margin=margin)
    lines: list[str] = []
    items: list[dict[str, Any]] = []
    for other in results[1:]:
        lines.append(f"{other.model} - {results[0].model}")
        lines += [f"  {row}" for row in rows if row.model == other.model]
        for task in [t for t in other.tasks if t in results[0].tasks][: None if changed else 0]:
            found = changed_items(other, results[0], task)
            items += [{"model": other.model, "task": task, **item} for item in found]
            lines += _shown(task, found, changed)
    return Output({"rows": [row.to_dict() for row in rows], "changed": items}, "\n".join(lines))


def _shown(task: str, found: list[dict[str, Any]], count: int) -> list[str]:
    lines = [f"  {task}: {len(found)} items changed" + (f", the first {count}:" if len(found) > count else "")]
    for item in found[:count]:
        lines += [
            f"    {_short(item['prompt'])}  (reference: {_short(item['reference'])})",
            f"      {item['before']:g}: {_short(item['before_output'])}",
            f"      {item['after']:g}: {_short(item['after_output'])}",
        ]
    return lines


def _short(value: Any) -> str:
    if isinstance(value, list):  # a conversation: its last turn
        value = value[-1].get("content", "") if value and isinstance(value[-1], dict) else value
    text = " ".join(str(value).split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"
