"""`aligntune report`: draw the HTML report of runs and evaluations."""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command(short_help="Draw the HTML report of runs and evaluations.")
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@click.option("--out", metavar="FILE", help="Where to write it; in the run's folder, or beside several, if left out.")
@shared
def command(settings: Settings, folders: tuple[str, ...], out: str | None) -> Output:
    """Draw the HTML report of run folders and of folders that `aligntune eval` wrote, in one file: curves, values with
    intervals, items, rewards, answers over time, settings and notes. Of several, each is set beside the first.
    """
    from aligntune.report import build_report

    path = build_report(list(folders), out)
    return Output({"report": str(path)}, str(path))
