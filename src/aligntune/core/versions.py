"""Which sets of library versions the tests have run with, and what a package says it can be installed beside.

>>> untested("trl")                              # None: a tested set
>>> conflicts("unsloth")
["unsloth 2026.10.9 wants trl !=0.19.0,<=1.15.0,>=0.18.2, and 1.16.0 is installed"]

Source: `constraints.txt` (the first set), `make test-latest` (the second), and the packages' own metadata, which pip
checks at an ordinary installation but not with `--no-deps`, as Unsloth is installed. Nothing is imported.
"""

from __future__ import annotations

import importlib.metadata

TESTED: tuple[dict[str, str], ...] = (
    {"torch": "2.13.0", "trl": "1.14.2", "transformers": "5.17.0", "datasets": "4.8.5", "unsloth": "2026.10.9"},
    {"torch": "2.13.0", "trl": "1.16.0", "transformers": "5.23.0", "datasets": "5.2.0"},
)
"""Sets of versions that the tests run with; the first is `constraints.txt`, the second has no Unsloth."""
SHOWN = ("torch", "trl", "transformers", "datasets")
"""What a set consists of, beside the backend's own package."""
UNTESTED = "the tests have not run with this set of versions"


def installed(name: str) -> str | None:
    """The version of a package without a build's name; None where it is not installed."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def used(backend: str) -> dict[str, str | None]:
    """The versions that a run on this backend is made of."""
    return {name: installed(name) for name in (*SHOWN, *(["unsloth"] if backend == "unsloth" else []))}


def is_tested(backend: str) -> bool:
    """Whether the tests run with the installed versions."""
    found = used(backend)
    return any(all(found[n] == tested.get(n) for n in found) for tested in TESTED)


def describe(versions: dict[str, str | None]) -> str:
    """Versions in one line."""
    return ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())


def tested_sets(backend: str) -> str:
    """The tested sets of a backend in one line."""
    wanted = used(backend)
    return "; ".join(describe({n: t[n] for n in wanted}) for t in TESTED if all(n in t for n in wanted))


def untested(backend: str) -> str | None:
    """One sentence that names an untested set; None for a tested one."""
    if is_tested(backend):
        return None
    return f"{UNTESTED}: {describe(used(backend))} (tested: {tested_sets(backend)})"


def conflicts(package: str) -> list[str]:
    """What the package's metadata asks of other packages that the installed versions are not; empty where it fits.

    Packages that are not installed are left out: a missing one is found at its import.
    """
    from packaging.requirements import Requirement

    found = []
    for line in importlib.metadata.requires(package) or []:
        wanted = Requirement(line)
        if wanted.name.lower() not in (*SHOWN, "peft", "accelerate", "unsloth_zoo", "bitsandbytes"):
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        there = installed(wanted.name)
        if there is not None and not wanted.specifier.contains(there, prereleases=True):
            wish = f"{package} {installed(package)} wants {wanted.name} {wanted.specifier}"
            found.append(f"{wish}, and {there} is installed")
    return found
