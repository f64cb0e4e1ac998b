"""`aligntune diagnose isolation`: what a backend replaces in the training libraries, and who does it."""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command("isolation", short_help="Show what a backend replaces in the training libraries.")
@click.option(
    "--backend",
    default="trl",
    show_default=True,
    metavar="NAME",
    help="trl, unsloth, or gpu_shaped: what Unsloth replaces on a GPU, forced on this machine.",
)
@click.option("--full", is_flag=True, help="Compare every symbol with an untouched process (half a minute).")
@shared
def command(settings: Settings, backend: str, full: bool) -> Output:
    """Prepare a backend in a fresh process, load its trainers, and show what of the training code is replaced, by whom.

    Ends with 1 where the backend trl finds anything replaced.
    """
    from aligntune.diagnosis.isolation import isolation_report

    report = isolation_report(backend, full=full)
    return Output(report.to_dict(), str(report), exit_code=int(backend == "trl" and not report.clean))
