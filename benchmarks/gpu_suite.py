"""Everything that only a machine with an NVIDIA GPU can show, in one command, in parts of at most eight minutes.

    python benchmarks/gpu_suite.py                          # all parts in order; finished ones are skipped
    python benchmarks/gpu_suite.py --part smoke --part isolation
    python benchmarks/gpu_suite.py --list                   # the parts, and what each result file says
    python benchmarks/gpu_suite.py --tiny --cpu --out /tmp/o   # the same code on tiny models, without a GPU
    python benchmarks/gpu_suite.py --page                   # the table of docs/gpu.md, from the result files

Each part writes `OUT/PART.json` after every case. A part that reaches its time, or is killed, keeps what it has, and
the same command goes on with the rest; `--again` begins anew. The exit code is 0 where all parts asked for are
finished and nothing in them failed, 1 otherwise, 3 where a package or the GPU is missing. docs/gpu.md says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import signal
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)] if str(HERE) not in sys.path else []

from gpu import child, device, experiments, isolation, memory, page, parity, smoke, speed  # noqa: E402
from gpu.record import Part, Settings, read_result, run_part, say  # noqa: E402

PARTS: list[Part] = [
    *smoke.PARTS, *isolation.PARTS, *parity.PARTS, *experiments.PARTS, *speed.PARTS, *memory.PARTS,
]  # fmt: skip


def chosen(names: list[str]) -> list[Part]:
    """The parts of these names; a name that stands before a dash takes the whole group."""
    if not names:
        return PARTS
    found = [part for part in PARTS if any(part.name == n or part.name.startswith(f"{n}-") for n in names)]
    for name in names:
        if not any(part.name == name or part.name.startswith(f"{name}-") for part in PARTS):
            sys.exit(f"there is no part '{name}'; there are: {', '.join(part.name for part in PARTS)}")
    return found


def missing(settings: Settings) -> str | None:
    """What the machine lacks; None where it has all."""
    for package in ("aligntune", "trl", "unsloth"):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed (docs/gpu.md says how)"
    if not settings.cpu:
        import torch

        if not torch.cuda.is_available():
            return f"PyTorch {torch.__version__} finds no NVIDIA GPU (--tiny --cpu runs the same code without one)"
    return None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", default=[], metavar="NAME", help="this part or group; repeatable")
    parser.add_argument("--list", action="store_true", help="name the parts and the state of their results")
    parser.add_argument("--page", action="store_true", help="write the table of docs/gpu.md from the result files")
    parser.add_argument("--again", action="store_true", help="begin the parts anew")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps")
    parser.add_argument("--cpu", action="store_true", help="use no GPU (with --tiny)")
    parser.add_argument("--limit", type=float, default=480, metavar="SECONDS", help="of one part (480)")
    parser.add_argument("--jobs", type=int, metavar="N", help="cases side by side where no time is measured")
    parser.add_argument("--seeds", type=int, default=3, help="of the two experiments (3)")
    parser.add_argument("--hub", action="append", default=[], metavar="ARCHITECTURE=ID", help="a model of the hub")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu", help="folder of the result files")
    parser.add_argument("--work", type=Path, help="folder of models and runs (in the system's temporary folder)")
    parser.add_argument(
        "--case", metavar="TEXT", help="only cases whose name contains this (the part stays unfinished)"
    )
    return parser.parse_args(arguments)


def settings_of(args: argparse.Namespace) -> Settings:
    """The command line as settings.

    Raises:
        SystemExit: --cpu without --tiny, or a hub model of an architecture that there is not.
    """
    if args.cpu and not args.tiny:
        sys.exit("--cpu needs --tiny: the full sizes take a GPU")
    hub = dict(pair.partition("=")[::2] for pair in args.hub)
    if unknown := set(hub) - set(experiments.models.ARCHITECTURES):
        sys.exit(f"--hub {sorted(unknown)[0]}: the architectures are {', '.join(experiments.models.ARCHITECTURES)}")
    base = args.work or Path(tempfile.gettempdir()) / "aligntune-gpu-suite"
    jobs = args.jobs or (1 if args.cpu else max(1, min(4, (os.cpu_count() or 1) // 4)))
    settings = Settings(args.out, base, args.tiny, args.cpu, args.limit, jobs, hub, args.seeds)
    return dataclasses.replace(settings, work=(base / settings.form.replace(", ", "-")).absolute())


def show(settings: Settings) -> None:
    """Every part with its state."""
    for part in PARTS:
        result = read_result(settings.out / f"{part.name}.json")
        state = (
            "not run yet" if result is None else f"{result['status']} ({result['form']}, {len(result['cases'])} cases)"
        )
        print(f"{part.name:<26}{state:<44}{part.what}")


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    settings = settings_of(args)
    if args.list:
        show(settings)
        return 0
    if args.page:
        page.write(settings.out, PARTS, HERE.parent / "docs" / "gpu.md")
        return 0
    if lack := missing(settings):
        say(lack)
        return 3
    settings.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run_parts(args, settings)
    finally:
        child.end_all()


def run_parts(args: argparse.Namespace, settings: Settings) -> int:
    """Run what was asked for; the exit code."""
    described, bad = device.describe(settings), []
    for part in chosen(args.part):
        before = read_result(settings.out / f"{part.name}.json")
        if before and before["status"] == "finished" and before["form"] == settings.form and not args.again:
            print(f"{part.name}: finished already (--again begins it anew)", flush=True)
        else:
            print(f"{part.name}: {part.what}", flush=True)
            if args.again and "-" in part.name:
                experiments.forget(settings, *part.name.split("-")[:2])
            before = run_part(_only(part, args.case), settings, described, again=args.again)
        if before["failed"] or before["left"]:
            bad.append(f"{part.name}: {len(before['failed'])} failed, {len(before['left'])} left")
    for line in bad:
        print(line, flush=True)
    return 1 if bad else 0


def _only(part: Part, text: str | None) -> Part:
    """The part with the cases whose names contain `text`."""
    if text is None:
        return part
    return dataclasses.replace(part, cases=lambda s: [c for c in part.cases(s) if text in c.name])


if __name__ == "__main__":
    sys.exit(main())
