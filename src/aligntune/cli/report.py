"""`aligntune report`: draw the HTML report of one or more run folders."""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command(short_help="Draw the HTML report of a run.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@shared
def command(settings: Settings, runs: tuple[str, ...]) -> Output:
    """Draw the HTML report of the run folder RUN: its curves, settings, samples and notes, in one file.

    Several folders give one report that shows them together.
    """
    from aligntune.report import build_report

    path = build_report(runs[0] if len(runs) == 1 else list(runs))
    return Output({"report": str(path)}, str(path))
