"""`aligntune run`: stages from one file, each in a fresh process, gone on with where they were left.

aligntune run assistant.yaml values.data=support.csv
aligntune run assistant.yaml --dry-run
aligntune run assistant.yaml --from sft
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared, split_arguments, table
from aligntune.errors import ConfigurationError

if TYPE_CHECKING:
    from aligntune.stages import Plan, StagesResult


SHOWN = 3
"""Numbers of a stage on its line; the report and --json have all."""


@click.command(short_help="Run the stages of a file, from data to report.")
@click.argument("arguments", nargs=-1, metavar="FILE [KEY=VALUE]...")
@click.option("--from", "start", metavar="STAGE", help="Make this stage again, and every stage that depends on it.")
@click.option("--only", metavar="STAGE,STAGE", help="These stages alone; what they need must be finished.")
@click.option("--plain", is_flag=True, help="Lines in place of the live view of a stage that trains.")
@click.option("--dry-run", is_flag=True, help="Check every stage, and say what it would take; write nothing.")
@shared
def command(
    settings: Settings, arguments: tuple[str, ...], start: str | None, only: str | None, plain: bool, dry_run: bool
) -> Output:
    """Run the stages of FILE that are not finished, each in a process of its own.

    KEY is output_dir, values.NAME, or stages.NAME.KEY for a setting of a stage. All stages are checked before the first
    one starts. The same command goes on after a stop or a failure; finished stages are kept.
    """
    from aligntune.core.config.reading import read_yaml
    from aligntune.stages import make_plan, run_stages
    from aligntune.stages.execution import Execution

    file, overrides = split_arguments(arguments)
    if file is None:
        raise ConfigurationError("nothing says what to run", hint="give a file with `stages`, as docs/stages.md shows")
    raw = read_yaml(file)
    if "stages" not in raw:
        kind = "train" if "algo" in raw or "task" in raw else "eval" if "tasks" in raw else None
        hint = f"it is a file of: aligntune {kind} {file}" if kind else "write `stages:`, as docs/stages.md shows"
        raise ConfigurationError(f"{file} has no stages", hint=hint)
    names = [name.strip() for name in only.split(",") if name.strip()] if only else []
    if dry_run:
        plan = make_plan(file, overrides)
        return _described(plan, Execution(plan, start=start, only=names))
    return _told(run_stages(file, overrides, start=start, only=names, display="plain" if plain else "auto"))


def _described(plan: Plan, execution: Any) -> Output:
    from aligntune.stages.estimate import estimates, free_disk, totals
    from aligntune.stages.story import took

    todo = {stage.name for stage in execution.check()}
    rows = estimates(plan)
    cells = []
    for row in rows:
        time, memory = took(row.seconds, row.memory)
        disk = took(None, row.disk)[1]
        what = row.status if row.name not in todo else {"new": "to do", "finished": "again"}.get(row.status, "go on")
        steps = "" if row.steps is None else row.steps
        cells.append([row.name, row.kind, what, steps, time or "?", memory or "?", disk or "?"])
    ahead = [row for row in rows if row.name in todo]
    found = totals(ahead)
    time, memory = took(found["seconds"], found["memory"])
    known = any(row.seconds is not None for row in ahead)
    lasts = time + _without(found["seconds_unknown"]) if known else "time not known"
    holds = f"{took(None, found['disk'])[1]} of disk{_without(found['disk_unknown'])}"
    if ahead and all(row.disk is None for row in ahead):
        holds = "disk not known"
    lines = [
        table(cells, ["stage", "kind", "state", "steps", "time", "memory", "disk"]),
        "",
        f"to do: {len(todo)} of {len(rows)} stages, {found['steps']} steps{_without(found['steps_unknown'])}; "
        f"{lasts}; {f'at most {memory} of memory' if memory else 'memory not known'}; {holds}, "
        f"{took(None, free_disk(plan))[1]} are free",
        *(f"- {row.name}: {note}" for row in ahead for note in row.notes),
        f"folder  {plan.output_dir}",
        "nothing was written",
    ]
    stages = [
        {**vars(row), "to_do": row.name in todo, "folder": str(s.folder), "needs": list(s.needs)}
        for row, s in zip(rows, plan.stages, strict=True)
    ]
    data = {"output_dir": str(plan.output_dir), "stages": stages, "total": found, "free_disk": free_disk(plan)}
    return Output(data, "\n".join(lines))


def _without(names: list[str]) -> str:
    return f" (without {', '.join(names)}: not known)" if names else ""


def _told(result: StagesResult) -> Output:
    from aligntune.stages.story import took

    rows = []
    for stage in result.stages.values():
        time, memory = took(stage.seconds or None, stage.memory)
        numbers = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in stage.numbers.items()]
        more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
        rows.append([stage.name, stage.kind, stage.status, time, memory, ", ".join(numbers[:SHOWN]) + more])
    text = table(rows, ["stage", "kind", "", "time", "memory", "what came of it"])
    report = f"report  {result.report}" if result.report else "report  none yet"
    return Output(result.to_dict(), f"{text}\n\nfolder  {result.output_dir}\n{report}")
