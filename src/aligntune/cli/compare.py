"""`aligntune compare`: arms and seeds from one file, each run in a fresh process, verdicts with a margin.

aligntune compare dpo.yaml --backends trl,unsloth --seeds 3 --margin 0.02 --output-dir runs/backends
aligntune compare grpo.yaml 'algo.beta=[0,0.04]' train.max_steps=50 --output-dir runs/beta
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aligntune.cli.console import Output, Settings, shared
from aligntune.errors import AlignTuneError, ConfigurationError

if TYPE_CHECKING:
    from aligntune.compare.plan import Arm, Plan


@click.command(short_help="Compare backends, algorithms or any setting over seeds.")
@click.argument("file", metavar="FILE")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE]... [KEY=[A,B]]...")
@click.option("--backends", metavar="A,B", help="An axis of backends: trl,unsloth.")
@click.option("--algorithms", metavar="A,B", help="An axis of algorithms, for a file with `algo`.")
@click.option("--seeds", default="3", show_default=True, metavar="N|A,B", help="How many training seeds, or which.")
@click.option(
    "--margin",
    multiple=True,
    metavar="X|NAME=X",
    help="Largest difference that does not matter, for held-out values, or for one of them.",
)
@click.option("--ratio-margin", type=float, default=0.05, show_default=True, help="The same for times and memory.")
@click.option("--output-dir", metavar="DIR", required=True, help="Folder of the comparison.")
@click.option("--resume", is_flag=True, help="Go on with the comparison in this folder, or read its results again.")
@click.option("--dry-run", is_flag=True, help="Check every arm and show the runs; make none.")
@click.option(
    "--probe",
    is_flag=True,
    help="First hold the backends against each other on one batch for each algorithm; stop if they differ.",
)
@shared
def command(
    settings: Settings,
    file: str,
    arguments: tuple[str, ...],
    backends: str | None,
    algorithms: str | None,
    seeds: str,
    margin: tuple[str, ...],
    ratio_margin: float,
    output_dir: str,
    resume: bool,
    dry_run: bool,
    probe: bool,
) -> Output:
    """Train each arm of FILE once per seed, each run in a process of its own, and compare the arms with the first one.

    KEY=[A,B] makes an axis of any setting; KEY=VALUE changes all arms. Every arm is checked before any is run. The exit
    code is 1 where no run of an arm finished.
    """
    from aligntune.compare.execution import compare
    from aligntune.compare.page import told
    from aligntune.compare.plan import make_plan

    axes: dict[str, list[Any]] = {}
    for option, key, names in (("--backends", "backend", backends), ("--algorithms", "algo.name", algorithms)):
        if names is not None:
            axes[key] = read_names(option, names)
    chosen = read_seeds(seeds)
    stated = read_margins(margin)
    if dry_run:
        plan = make_plan(file, arguments, axes=axes, seeds=chosen, output_dir=output_dir)
        runs = [{"arm": arm.name, "seed": seed, "folder": str(plan.folder(arm, seed))} for arm, seed in plan.order()]
        lines = [f"{len(plan.arms)} arms, {len(plan.seeds)} seeds: {len(runs)} runs"]
        lines += [f"  {r['arm']}, seed {r['seed']}" for r in runs]
        notes = []
        if probe:
            compared, arms = _to_probe(plan)
            notes = [f"the probe of {', '.join(arms)} on {', '.join(compared)} is not run by --dry-run"]
            notes += _unprobed(plan, arms)
        return Output({"runs": runs, "notes": notes}, "\n".join([*lines, *(f"note: {note}" for note in notes)]))
    if probe:
        plan = make_plan(file, arguments, axes=axes, seeds=chosen, output_dir=output_dir)
        if (refused := _probe(plan)) is not None:
            return refused
    found = compare(
        file,
        arguments,
        axes=axes,
        seeds=chosen,
        output_dir=output_dir,
        margin=stated,
        ratio_margin=ratio_margin,
        resume=resume,
    )
    text = f"{told(found)}\npage  {output_dir}/comparison.html"
    return Output(found.to_dict(), text, exit_code=int(bool(found.empty)))


def _to_probe(plan: Plan) -> tuple[list[str], dict[str, Arm]]:
    """The backends that are compared, and for each algorithm the first arm that trains it.

    Raises:
        ConfigurationError: backends are not what is compared.
    """
    backends = list(dict.fromkeys(arm.choices["backend"] for arm in plan.arms if "backend" in arm.choices))
    if len(backends) < 2:
        raise ConfigurationError(
            "--probe holds backends against each other", hint="compare some: --backends trl,unsloth"
        )
    arms: dict[str, Arm] = {}
    for arm in plan.arms:
        arms.setdefault(plan.config(arm, plan.seeds[0]).algorithm.key, arm)
    return backends, arms


def _unprobed(plan: Plan, arms: dict[str, Arm]) -> list[str]:
    """A sentence for each algorithm whose other arms differ by more than the backend from the one that is probed."""
    settings = {arm.name: " ".join(o for o in arm.overrides if not o.startswith("backend=")) for arm in plan.arms}
    others: dict[str, list[str]] = {}
    for arm in plan.arms:
        key = plan.config(arm, plan.seeds[0]).algorithm.key
        named = others.setdefault(key, [])
        if settings[arm.name] not in (settings[arms[key].name], *named):
            named.append(settings[arm.name])
    return [
        f"{key} is probed with {settings[arms[key].name]}, not with {'; '.join(named)}"
        for key, named in others.items()
        if named
    ]


def _probe(plan: Plan) -> Output | None:
    """The parity probe of each algorithm on the backends that are compared; its outcome as output where they differ.

    Raises:
        ConfigurationError: backends are not what is compared, or an algorithm cannot be probed.
    """
    from aligntune.compare.probe import probe

    backends, arms = _to_probe(plan)
    found = []
    for key, arm in arms.items():
        try:
            found.append(probe(plan.config(arm, plan.seeds[0]), backends))
        except AlignTuneError as e:
            raise type(e)(f"the probe of {key}: {e.message}", hint=e.hint, context=e.context) from e
        click.echo(str(found[-1]), err=True)
    for note in _unprobed(plan, arms):
        click.echo(f"note: {note}", err=True)
    if all(result.ok for result in found):
        return None
    different = ", ".join(key for key, result in zip(arms, found, strict=True) if not result.ok)
    text = f"the backends differ in {different}; nothing was trained"
    return Output({"probes": [result.to_dict() for result in found]}, text, 1)


def read_names(option: str, text: str) -> list[Any]:
    """`trl, unsloth` as names, without the spaces around them.

    Raises:
        ConfigurationError: a name is empty.
    """
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise ConfigurationError(f"{option} is '{text}', and a name in it is empty", hint=f"write {option} A,B")
    return names


def read_seeds(text: str) -> int | list[int]:
    """`3` as a number of seeds, `1,2,3` (or `7,`) as the seeds themselves.

    Raises:
        ConfigurationError: neither, or a seed is empty.
    """
    parts = text.strip().removesuffix(",").split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or ("," not in text and numbers[0] < 1):
        raise ConfigurationError(f"--seeds is '{text}'", hint="write how many (3), or which (1,2,3)")
    return numbers if "," in text else numbers[0]


def read_margins(given: tuple[str, ...]) -> float | dict[str, float] | None:
    """`0.02` for all held-out values, or `name=0.02` for each.

    Raises:
        ConfigurationError: a margin that is no positive number, or both forms at once.
    """
    named: dict[str, float] = {}
    plain: list[float] = []
    for item in given:
        name, equals, value = item.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not number > 0:
            raise ConfigurationError(f"--margin is '{item}'", hint="write a positive number, or name=number")
        if equals:
            named[name] = number
        else:
            plain.append(number)
    if len(plain) > 1 or (plain and named):
        raise ConfigurationError(
            "--margin is given twice", hint="one number for all held-out values, or name=number each"
        )
    return named or (plain[0] if plain else None)
