"""Checkpoints that are whole or are not used: sealed with checksums, put in place by one rename, verified before use.

    out/.saving/checkpoint-8/     while it is written
    out/checkpoint-8/             the training library's files, and checkpoint.json, which is written last
    out/abandoned/checkpoint-12/  of a course that a resume from an older checkpoint has left

`checkpoint.json` lists size and SHA-256 of every file, and its own digest. A folder without it is a part; one whose
files differ from it is damaged; neither is resumed from. Every file and folder is synced before the rename, so what
carries its final name is on the disk.

>>> manager = CheckpointManager("out", limit=2)
>>> folder = manager.begin(8)                       # out/.saving/checkpoint-8
>>> (folder / "trainer_state.json").write_text('{"global_step": 8}')
>>> manager.commit(8)
PosixPath('out/checkpoint-8')
>>> manager.latest().step
8

Source: write, sync, rename, sync the folder, the order that POSIX needs for a replacement that is whole after a crash;
SHA-256 (FIPS 180-4). It does not protect from a disk that loses what it has confirmed, and does not sign anything:
who can write the folder can seal other files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError
from aligntune.utils.files import disk_errors, sync_folder, write_atomic

MARKER = "checkpoint.json"
"""Written last, so that its presence says that the rest is there."""
STAGING = ".saving"
"""Folder of a checkpoint that is being written."""
ABANDONED = "abandoned"
"""Folder of checkpoints that lie after the one that a run was resumed from."""
BEST = "best"
"""Folder of the weights of the best evaluation, which belong to no checkpoint."""
STATE = "trainer_state.json"
"""The library's own record of its step."""
NAME = re.compile(r"checkpoint-(\d+)")
PATTERNS = (
    "round-*",
    "checkpoint-*",
    "round-*/checkpoint-*",
    f"{STAGING}/checkpoint-*",
    f"round-*/{STAGING}/checkpoint-*",
)
"""Where a run's checkpoints are; algorithms of several rounds keep each in a folder of its own."""
LOADED = (".safetensors", ".json", ".pt", ".pth", ".bin")
"""Suffixes of files that a library would load if they lay in a checkpoint."""
ENTRIES = ("config.json", "adapter_config.json", "model.safetensors.index.json")
"""Files without which a folder loads as no model."""
CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A folder to resume from.

    Attributes:
        path: the folder.
        step: optimizer steps done, those of earlier rounds included.
        skipped: one sentence for each newer checkpoint that is not whole.
    """

    path: str
    step: int
    skipped: tuple[str, ...] = ()


def seal(folder: Path, step: int) -> None:
    """Sync every file below `folder`, and write `checkpoint.json` with their checksums.

    Folders of other checkpoints inside it and hidden files are left out.

    Raises:
        ConfigurationError: the disk is full or writing is not permitted.
    """
    with disk_errors(folder):
        (folder / MARKER).unlink(missing_ok=True)
        files = {}
        for file in _files(folder):
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            files[file.relative_to(folder).as_posix()] = {"size": file.stat().st_size, "sha256": _digest(file)}
        for inner in {file.parent for file in _files(folder)} | {folder}:
            sync_folder(inner)
        write_atomic(folder / MARKER, _marker(step, files))


def fault(folder: Path) -> str | None:
    """Why a checkpoint must not be used, or None if it is whole.

    Every file is read. A file that was added, and that a library would load, is a fault too.
    """
    try:
        raw = (folder / MARKER).read_bytes()
    except OSError:
        return f"it was not written to its end ({MARKER} is missing)"
    try:
        marker = json.loads(raw)
        step, files = marker["step"], marker["files"]
        if raw != _marker(step, files):
            return f"{MARKER} is damaged"
        for name, known in files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != known["size"]:
                return f"{name} has {file.stat().st_size} bytes, and {known['size']} were written"
            if _digest(file) != known["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} is damaged"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    added = [f.relative_to(folder).as_posix() for f in _files(folder) if f.suffix in LOADED]
    added = [name for name in added if name not in files and name != MARKER]
    return f"{added[0]} was not written with it" if added else None


def publish(staged: Path, folder: Path) -> None:
    """Move every file below `staged` into `folder`, synced, and what makes a model loadable last.

    Weights of a model that was there before and are not among the new files are removed.
    """
    names = [f.relative_to(staged) for f in _files(staged)]
    for name in names:
        with open(staged / name, "rb") as stream:
            os.fsync(stream.fileno())
    last = [name for name in names if name.name in ENTRIES]
    for name in last:
        (folder / name).unlink(missing_ok=True)
    for old in folder.glob("model*.safetensors*"):
        if old.relative_to(folder) not in names:
            old.unlink()
    for name in sorted(names, key=last.__contains__):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged / name, folder / name)
    sync_folder(folder)


def step_of(folder: Path) -> int | None:
    """The step of a checkpoint, those of earlier rounds included; None where its state cannot be read."""
    try:
        step = int(json.loads((folder / STATE).read_text(encoding="utf-8"))["global_step"])
        before = (folder.parent.parent if folder.parent.name == STAGING else folder.parent) / "round.json"
        return step + (int(json.loads(before.read_text(encoding="utf-8"))["first_step"]) if before.exists() else 0)
    except (OSError, KeyError, TypeError, ValueError):
        return None


class CheckpointManager:
    """The checkpoints of one run folder.

    Args:
        folder: the run's `output_dir`, or the folder of one of its rounds.
        limit: whole checkpoints that `rotate` leaves; None leaves all.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.limit = limit

    # ---- writing -------------------------------------------------------------------------------------------

    @property
    def staging(self) -> Path:
        """The folder in which a checkpoint is written."""
        return self.folder / STAGING

    def begin(self, step: int) -> Path:
        """An empty folder for the files of a checkpoint.

        Raises:
            ConfigurationError: writing is not permitted.
        """
        with disk_errors(self.folder):
            if self.staging.exists():
                shutil.rmtree(self.staging)
            made = self.staging / f"checkpoint-{step}"
            made.mkdir(parents=True)
        return made

    def commit(self, step: int, *, keep: Collection[int] = ()) -> Path:
        """Seal what lies in the staging folder, put it in its place, and remove what `limit` does not leave.

        Killed anywhere in between, the sealed folder is found again by `latest`.

        Args:
            step: as given to `begin`.
            keep: steps of checkpoints that must stay, such as the best one's.

        Raises:
            ConfigurationError: the disk is full or writing is not permitted; older checkpoints stay as they are.
        """
        name = f"checkpoint-{step}"
        seal(self.staging / name, step)
        with disk_errors(self.folder):
            self._place(self.staging / name)
            shutil.rmtree(self.staging, ignore_errors=True)
            shutil.rmtree(self.folder / ABANDONED / name, ignore_errors=True)
            self.rotate(keep=keep)
        return self.folder / name

    def discard(self) -> None:
        """Remove what was begun and not committed, so that a full disk has its room back."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def _place(self, sealed: Path) -> None:
        target = self.folder / sealed.name
        if target.exists():
            os.replace(target, self.staging / f"old-{sealed.name}")
        os.replace(sealed, target)
        sync_folder(self.folder)

    def rotate(self, *, keep: Collection[int] = ()) -> list[Path]:
        """Remove old checkpoints beyond `limit`; the newest whole one and those of `keep` always stay.

        Returns:
            what was removed.
        """
        if self.limit is None:
            return []
        found = sorted(self._steps(), reverse=True)
        sealed = [step for step in found if (self.folder / f"checkpoint-{step}" / MARKER).is_file()]
        stay = {*sealed[: max(self.limit, 1)], *keep}
        newest = max(sealed, default=-1)
        gone = [self.folder / f"checkpoint-{step}" for step in found if step not in stay and step < newest]
        for folder in gone:
            # The marker goes first: a removal that is cut short leaves a part, and not a damaged whole.
            (folder / MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        return gone

    def _steps(self) -> Iterator[int]:
        for folder in self.folder.glob("checkpoint-*"):
            if match := NAME.fullmatch(folder.name):
                yield int(match[1])

    # ---- reading -------------------------------------------------------------------------------------------

    def candidates(self) -> list[Path]:
        """Every folder with the name of a checkpoint, whole or not."""
        return [p for kind in PATTERNS for p in sorted(self.folder.glob(kind)) if p.is_dir()]

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, and why newer ones were skipped; None if there is no folder with such a name.

        Raises:
            ConfigurationError: there are checkpoints, and none is whole.
        """
        found, skipped = self.candidates(), []
        unread = [p for p in found if step_of(p) is None]
        for path in unread:
            if path.parent.name == STAGING or (path.name.startswith("round-") and not (path / MARKER).exists()):
                continue  # one that was being written, and a round that goes on
            skipped.append(f"{path} is skipped: {fault(path) or 'its step cannot be read'}")
        for path in sorted(set(found) - set(unread), key=lambda p: step_of(p) or 0, reverse=True):
            why = fault(path)
            if why is None:
                newer = [sentence for sentence in skipped if not sentence.startswith(_removed(path, unread))]
                return Checkpoint(str(path), step_of(path) or 0, tuple(newer))
            if path.parent.name != STAGING:
                skipped.append(f"{path} is skipped: {why}")
        if skipped:
            raise ConfigurationError(
                f"no checkpoint in {self.folder} is whole: " + "; ".join(s.replace(" is skipped", "") for s in skipped),
                hint="bring one back from a copy, or start again in another output_dir",
                context={"skipped": skipped},
            )
        return None

    # ---- going on ------------------------------------------------------------------------------------------

    def settle(self, chosen: Checkpoint | None) -> tuple[Checkpoint | None, list[str]]:
        """Make the folder ready to go on from `chosen`: end a commit that was cut short, set later checkpoints aside.

        Later ones belong to a course that is left: a next `latest` must not find them.

        Args:
            chosen: what the run goes on from; None goes on from the beginning.

        Returns:
            `chosen` with the path that it has now, and a sentence for each folder that was set aside.
        """
        notes = []
        with disk_errors(self.folder):
            if chosen is not None and (sealed := Path(chosen.path)).parent.name == STAGING:
                place = CheckpointManager(sealed.parent.parent)
                place._place(sealed)
                chosen = Checkpoint(str(place.folder / sealed.name), chosen.step, chosen.skipped)
            for staging in (self.staging, *self.folder.glob(f"round-*/{STAGING}")):
                shutil.rmtree(staging, ignore_errors=True)
            limit = chosen.step if chosen else -1
            for path in self.candidates():
                step = step_of(path)
                if not path.exists() or self._belongs(path, chosen) or (step is not None and step <= limit):
                    continue
                aside = path.parent / ABANDONED / path.name
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                os.replace(path, aside)
                notes.append(f"{path.name} lies after step {max(limit, 0)} or is not whole; it is in {aside.parent}")
        return chosen, notes

    @staticmethod
    def _belongs(path: Path, chosen: Checkpoint | None) -> bool:
        """Whether `path` holds the chosen checkpoint, or is a round that is not finished."""
        if chosen is not None and (Path(chosen.path) == path or path in Path(chosen.path).parents):
            return True
        return path.name.startswith("round-") and step_of(path) is None


def _removed(chosen: Path, parts: Collection[Path]) -> tuple[str, ...]:
    """How sentences about older parts beside `chosen` begin: rotation was removing them when the run was killed."""
    own = NAME.fullmatch(chosen.name)
    older = [
        part
        for part in parts
        if own and part.parent == chosen.parent and (m := NAME.fullmatch(part.name)) and int(m[1]) < int(own[1])
    ]
    return tuple(f"{part} is skipped" for part in older)


def _marker(step: Any, files: dict[str, Any]) -> bytes:
    """The bytes of `checkpoint.json`: one form only, so that no change of a byte goes unseen."""
    body = {"version": 1, "step": step, "files": files}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint, without its marker."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        foreign = any(p.startswith(".") or p in (ABANDONED, BEST) or NAME.fullmatch(p) for p in parts)
        if path.is_file() and not foreign and path != folder / MARKER:
            found.append(path)
    return found


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        made = hashlib.sha256()
        while part := stream.read(CHUNK):
            made.update(part)
        return made.hexdigest()
