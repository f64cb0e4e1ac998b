"""`aligntune reproduce`: run a finished run again, and say whether it came out the same.

    aligntune reproduce runs/a
    aligntune reproduce runs/a --check-only
    aligntune reproduce runs/a --output-dir runs/a-again --tolerance 0.01

Exit code 0 where it came out identical or equal within the tolerance (--check-only: where nothing differs that could
change the result), 1 where not, 2 where RUN cannot be repeated, 3 where what it was made of is gone.
"""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command(short_help="Run a run again and compare: curves, metrics, weights.")
@click.argument("run")
@click.option("--output-dir", metavar="DIR", help="Folder of the second run; RUN-reproduced if left out.")
@click.option("--check-only", is_flag=True, help="Compare the environment with the manifest; train nothing.")
@click.option(
    "--tolerance", type=click.FloatRange(min=0), metavar="X", help="Relative difference that is rounding: 1e-4."
)
@shared
def command(settings: Settings, run: str, output_dir: str | None, check_only: bool, tolerance: float | None) -> Output:
    """Check this environment against RUN's manifest, run it again from its resolved configuration, and compare."""
    from aligntune.diagnosis import reproduce
    from aligntune.diagnosis.curves import TOLERANCE
    from aligntune.diagnosis.telling import causes, told
    from aligntune.errors import ConfigurationError

    if check_only and output_dir is not None:
        raise ConfigurationError("--output-dir has no effect with --check-only", hint="leave one of the two out")
    found = reproduce(
        run, output_dir=output_dir, check_only=check_only, tolerance=TOLERANCE if tolerance is None else tolerance
    )
    lines = ["this environment has all that the run was made of"]
    if found.before:
        lines = ["this environment differs from the run's, what can matter most first", *causes(found.before)]
    if found.comparison is not None:
        lines += ["", told(found.comparison)]
    return Output(found.to_dict(), "\n".join(lines), exit_code=int(not found.passed))
