"""`aligntune diff`: why two runs differ.

    aligntune diff runs/a runs/b
    aligntune diff runs/a runs/b --tolerance 0.01 --exit-code --json

Exit code 0 once the runs are compared; with --exit-code 1 unless they are identical or equal within the tolerance.
"""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command(short_help="Say why two runs differ, most likely cause first.")
@click.argument("a")
@click.argument("b")
@click.option(
    "--tolerance", type=click.FloatRange(min=0), metavar="X", help="Relative difference that is rounding: 1e-4."
)
@click.option("--exit-code", is_flag=True, help="Exit with 1 where they differ by more than the tolerance.")
@shared
def command(settings: Settings, a: str, b: str, tolerance: float | None, exit_code: bool) -> Output:
    """Compare the run folders A and B: what differs, where their curves part, and how they ended."""
    from aligntune.diagnosis import diff_runs
    from aligntune.diagnosis.curves import TOLERANCE
    from aligntune.diagnosis.telling import told

    found = diff_runs(a, b, tolerance=TOLERANCE if tolerance is None else tolerance)
    close = found.verdict in ("identical", "equal within tolerance")
    return Output(found.to_dict(), told(found), exit_code=int(exit_code and not close))
