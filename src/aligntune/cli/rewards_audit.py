"""`aligntune rewards audit`: what moved the advantage of a run, and what is wrong with its rewards."""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared


@click.command("audit", short_help="Audit the rewards of a run from its rollouts.")
@click.argument("run")
@click.option(
    "--fail-on",
    type=click.Choice(["critical", "warning", "note"]),
    help="Exit with 1 where there is a finding of this severity or a higher one.",
)
@shared
def command(settings: Settings, run: str, fail_on: str | None) -> Output:
    """Audit the rewards of the run folder RUN: spread, signal, saturation, length, copies, drift, and which component
    moved the advantage. Findings come ranked, each with its threshold, example rows and the key to change.
    """
    from aligntune.rewards.audit import audit_run
    from aligntune.rewards.audit.report import SEVERITIES

    report = audit_run(run)
    worst = report.worst()
    failed = fail_on is not None and worst is not None and SEVERITIES.index(worst) <= SEVERITIES.index(fail_on)
    return Output(report.to_dict(), report.text(), exit_code=int(failed))
