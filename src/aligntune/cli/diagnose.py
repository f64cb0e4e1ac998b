"""`aligntune diagnose`: what is wrong with this machine, an installation or a run. Each file `diagnose_<name>.py` adds
one command."""

from __future__ import annotations

import click

from aligntune.cli.console import Family


@click.group("diagnose", cls=Family, short_help="Find out what is wrong with an installation or a run.")
def command() -> None:
    """Find out what is wrong with an installation or a run."""
