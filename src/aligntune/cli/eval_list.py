"""`aligntune eval list`: the tasks of the library and the kinds of evaluation."""

from __future__ import annotations

import inspect

import click

from aligntune.cli.console import Output, Settings, shared, table


@click.command(short_help="List the tasks of the library and the kinds.")
@shared
def command(settings: Settings) -> Output:
    """List the tasks that --tasks can name, and the kinds that a task of an evaluation file can have."""
    from aligntune.eval import EvalRegistry
    from aligntune.eval.library import names, read_task

    tasks = [{"name": name, **read_task(name)} for name in names()]
    kinds = [
        {"name": name, "about": (inspect.getdoc(EvalRegistry.get(name)) or "").partition("\n")[0]}
        for name in EvalRegistry.names()
    ]
    text = "\n\n".join(
        [
            table([[t["name"], t["kind"], t["about"]] for t in tasks], ["task", "kind", "what it is"]),
            table([[k["name"], k["about"]] for k in kinds], ["kind", "what it gives"]),
        ]
    )
    return Output({"tasks": tasks, "kinds": kinds}, text)
