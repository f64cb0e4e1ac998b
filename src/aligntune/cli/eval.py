"""`aligntune eval`: measure a model on tasks, from an evaluation file or on one data set.

    aligntune eval eval.yaml model.name_or_path=runs/sft
    aligntune eval --model runs/sft --dataset test.jsonl --kind exact_match --max-new-tokens 64

Precedence and paths are those of `aligntune train`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared, split_arguments
from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

if TYPE_CHECKING:
    from aligntune.eval import EvalConfig

FLAGS = {"model": "model.name_or_path", "output_dir": "output_dir", "seed": "seed"}
TASK_FLAGS = {
    "kind": "tasks.0.kind",
    "dataset": "tasks.0.dataset.name",
    "preset": "tasks.0.dataset.preset",
    "split": "tasks.0.dataset.split",
    "reward": "tasks.0.rewards",
    "max_samples": "tasks.0.max_samples",
    "max_new_tokens": "tasks.0.max_new_tokens",
}
"""Flags that describe the one task of an evaluation without a file."""


@click.command(short_help="Measure a model on tasks, with intervals.")
@click.argument("arguments", nargs=-1, metavar="[FILE] [KEY=VALUE]...")
@click.option("--model", metavar="NAME", help="Folder or hub id of the model to measure.")
@click.option("--tasks", metavar="NAME,NAME", help="Only these tasks of FILE.")
@click.option("--kind", metavar="KIND", help="Without FILE: exact_match, perplexity, reward or preference.")
@click.option("--dataset", metavar="NAME", help="Without FILE: hub id, file or folder of the items.")
@click.option("--preset", metavar="NAME", help="Without FILE: known data set's columns and template.")
@click.option("--split", metavar="NAME", help="Without FILE: split of the data set.")
@click.option("--reward", metavar="NAME", multiple=True, help="Without FILE: reward, for the kind reward.")
@click.option("--max-samples", type=int, help="Without FILE: draw this many items.")
@click.option("--max-new-tokens", type=int, help="Without FILE: longest answer in tokens.")
@click.option("--output-dir", metavar="DIR", help="Folder for the results and every item.")
@click.option("--seed", type=int, help="Seed of the draw of items and of sampling.")
@shared
def command(settings: Settings, arguments: tuple[str, ...], tasks: str | None, **flags: Any) -> Output:
    """Measure a model on the tasks of FILE, changed by flags and KEY=VALUE, or on one data set.

    Every value comes with its interval. KEY is a dotted path: tasks.0.max_samples=100.
    """
    from aligntune.eval import EvalRunner

    file, overrides = split_arguments(arguments)
    given = {k: list(v) if k == "reward" else v for k, v in flags.items() if v not in (None, ())}
    config = build(file, overrides, given, tasks.split(",") if tasks else None)
    result = EvalRunner(config).run()
    told = logging.getLogger("aligntune").isEnabledFor(logging.INFO)  # notes and values were shown as they came
    notes = [*result.notes, *(f"{t.name}: {note}" for t in result.tasks.values() for note in t.notes)]
    lines = [f"model  {result.model}", *(f"- {note}" for note in notes if not told)]
    lines += [f"{t.name}  {metric}" for t in result.tasks.values() for metric in t.metrics.values()]
    if config.output_dir:
        lines.append(f"items  {config.output_dir}")
    return Output(result.to_dict(), "\n".join(lines))


def build(file: str | None, overrides: list[str], flags: dict[str, Any], names: list[str] | None) -> EvalConfig:
    """The checked configuration of a command line.

    Raises:
        ConfigurationError: with every fault in one message.
    """
    from aligntune.core.config.io import parse_section
    from aligntune.core.config.reading import apply_overrides, read_yaml, set_key
    from aligntune.eval.config import KEYS, EvalConfig, check_eval_config

    raw = read_yaml(file) if file else _one_task(flags)
    table = FLAGS if file else {**FLAGS, **TASK_FLAGS}
    for flag, value in flags.items():
        if flag not in table:
            raise ConfigurationError(
                f"--{flag.replace('_', '-')} describes an evaluation without a file",
                hint=f"change the file's task: {TASK_FLAGS[flag]}=...",
            )
        set_key(raw, table[flag], value)
    if names is not None:
        raw["tasks"] = _chosen(raw, names)
    config = parse_section(EvalConfig, apply_overrides(raw, overrides), file or "", hint=KEYS)
    check_eval_config(config, file or "")
    return config


def _one_task(flags: dict[str, Any]) -> dict[str, Any]:
    missing = [f"--{key}" for key in ("model", "kind", "dataset") if key not in flags]
    if missing:
        raise ConfigurationError(
            f"nothing says what to evaluate: {', '.join(missing)} missing",
            hint="give an evaluation file, or --model, --kind and --dataset",
        )
    return {"model": {}, "tasks": [{"name": flags["kind"], "dataset": {}}]}


def _chosen(raw: dict[str, Any], names: list[str]) -> list[Any]:
    """The tasks of the file that are called `names`, in the file's order."""
    listed = raw.get("tasks")
    tasks = [t for t in listed if isinstance(t, dict)] if isinstance(listed, list) else []
    known = [str(t.get("name")) for t in tasks]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"no task '{name}' in the file", hint=nearest(name, known))
    return [t for t in tasks if t.get("name") in names]
