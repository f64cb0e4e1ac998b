"""`aligntune report`: draw the HTML report of a run folder."""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command(short_help="Draw the HTML report of a run.")
@click.argument("run")
@click.option("--out", metavar="FILE", help="Where to write it; report.html in the run folder if left out.")
@shared
def command(settings: Settings, run: str, out: str | None) -> Output:
    """Draw the HTML report of the run folder RUN: its curves, settings, samples and notes, in one file."""
    from aligntune.report import build_report

    path = build_report(run, out)
    return Output({"report": str(path)}, str(path))
