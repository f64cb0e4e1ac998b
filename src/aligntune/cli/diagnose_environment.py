"""`aligntune diagnose`: whether this machine can run AlignTune, and what to do about each thing that it lacks.

Exit code 0 where nothing fails, 3 where something does. No network is touched with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared, table


@click.command("environment", short_help="Check this machine: versions, device, memory, disk, hub, sandbox.")
@click.option("--dir", "folder", default=".", metavar="DIR", help="Where runs would be written.")
@shared
def command(settings: Settings, folder: str) -> Output:
    """Check versions, device, memory, disk, hub, permissions, threads, sandbox and isolation, with fixes."""
    from aligntune.diagnosis import check_environment

    checks = check_environment(folder)
    counts = {status: sum(c.status == status for c in checks) for status in ("ok", "note", "warn", "fail")}
    shown = checks if settings.verbose else [c for c in checks if c.status != "ok" or not c.name.startswith("package")]
    lines = [table([(c.status, c.name, c.found) for c in shown], ("", "check", "found")), ""]
    lines += [f"{c.name}: {c.fix}" for c in checks if c.fix and c.status in ("warn", "fail")]
    lines.append(", ".join(f"{count} {status}" for status, count in counts.items()))
    data = {"checks": [c.to_dict() for c in checks], "counts": counts}
    return Output(data, "\n".join(lines), exit_code=3 if counts["fail"] else 0)
