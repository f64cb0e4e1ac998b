"""`aligntune diagnose`: what is wrong with this machine, an installation or a run. Each file `diagnose_<name>.py` adds
one command; `aligntune diagnose` alone stands for `aligntune diagnose environment`."""

from __future__ import annotations

import click

from aligntune.cli.console import Family

DEFAULT = "environment"


class Diagnose(Family):
    """A group whose command `environment` may go without its name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group("diagnose", cls=Diagnose, short_help="Find out what is wrong with an installation or a run.")
def command() -> None:
    """Find out what is wrong with this machine (without a command), an installation or a run."""
