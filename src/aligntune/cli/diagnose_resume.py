"""`aligntune diagnose resume`: whether a stopped and resumed run ends as one that was never stopped."""

from __future__ import annotations

import click

from aligntune.cli.console import Output, Settings, shared, split_arguments


@click.command("resume", short_help="Try whether a configuration resumes exactly.")
@click.argument("arguments", nargs=-1, required=True, metavar="FILE [KEY=VALUE]...")
@click.option("--keep", is_flag=True, help="Keep the folders of the short runs.")
@shared
def command(settings: Settings, arguments: tuple[str, ...], keep: bool) -> Output:
    """Train FILE for a few steps straight, and again with a stop and a resume half way; compare to the last bit.

    Ends with 1 where something differs, and says which state.
    """
    from aligntune.cli.train import build
    from aligntune.diagnosis.resume import prove_resume

    file, overrides = split_arguments(arguments)
    proof = prove_resume(build(file, overrides, {}), keep=keep)
    return Output(proof.to_dict(), str(proof), exit_code=int(not proof.exact))
