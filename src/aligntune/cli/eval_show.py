"""`aligntune eval show`: a task of the library, or the values of a result folder."""

from __future__ import annotations

from pathlib import Path

import click

from aligntune.cli.console import Output, Settings, shared


@click.command(short_help="Show a task of the library, or a result folder.")
@click.argument("name")
@shared
def command(settings: Settings, name: str) -> Output:
    """Show the task NAME as it stands in an evaluation file, or the values of the result folder NAME."""
    from aligntune.eval import EvalResult
    from aligntune.eval.library import read_task
    from aligntune.eval.result import RESULTS

    if (Path(name) / RESULTS).is_file():
        result = EvalResult.load(name)
        lines = [f"model  {result.model}"]
        lines += [f"{t.name}  {metric}" for t in result.tasks.values() for metric in t.metrics.values()]
        lines += [f"- {t.name}: {note}" for t in result.tasks.values() for note in t.notes]
        return Output(result.to_dict(), "\n".join(lines))
    import yaml

    task = read_task(name)
    about = task.pop("about", None)
    text = yaml.safe_dump({"tasks": [task]}, sort_keys=False, allow_unicode=True).rstrip()
    return Output({"about": about, **task}, f"# {about}\n{text}" if about else text)
