"""`aligntune diagnose run`: what a run's files say went wrong. Exit code 1 where that is graver than a warning."""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command("run", short_help="Say what went wrong in a run, from its files.")
@click.argument("run")
@shared
def command(settings: Settings, run: str) -> Output:
    """Read the run folder RUN: how it ended, what its health rules find, and what to do."""
    from aligntune.diagnosis import diagnose_run

    found = diagnose_run(run)
    return Output(found.to_dict(), str(found), exit_code=int(found.failed))
