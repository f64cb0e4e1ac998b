"""Checkpoints: sealed, verified, rotated, recovered; and no damage of any file goes unseen."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aligntune.errors import ConfigurationError
from aligntune.utils import CheckpointManager
from aligntune.utils.checkpoints import ABANDONED, MARKER, Checkpoint, fault, publish, seal, step_of

MUTATIONS = 240


def write(manager: CheckpointManager, step: int, size: int = 3000) -> Path:
    """A checkpoint with the files that a library writes."""
    folder = manager.begin(step)
    draw = random.Random(step)
    (folder / "model.safetensors").write_bytes(draw.randbytes(size))
    (folder / "optimizer.pt").write_bytes(draw.randbytes(size))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    (folder / "window-0.json").write_text('{"loss": 1.5}')
    (folder / "ref").mkdir()
    (folder / "ref" / "adapter_model.safetensors").write_bytes(draw.randbytes(size))
    return manager.commit(step)


def steps(folder: Path) -> list[int]:
    return sorted(int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*"))


def test_a_committed_checkpoint_is_whole_and_alone(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    assert manager.latest() is None
    made = write(manager, 4)
    assert made == tmp_path / "checkpoint-4"
    assert fault(made) is None
    marker = json.loads((made / MARKER).read_text())
    assert marker["step"] == 4
    assert set(marker["files"]) == {
        "model.safetensors", "optimizer.pt", "trainer_state.json", "window-0.json", "ref/adapter_model.safetensors",
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]
    assert manager.latest() == Checkpoint(str(made), 4)
    assert steps(tmp_path) == [4]


def mutate(folder: Path, draw: random.Random) -> str:
    """Damage one file of a checkpoint; says how."""
    file = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    raw, kind = file.read_bytes(), draw.choice(["cut", "flip", "remove", "grow", "zero", "swap", "empty"])
    if kind == "cut":
        file.write_bytes(raw[: draw.randrange(len(raw))])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "flip":
        at = draw.randrange(len(raw))
        file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :])
    elif kind == "remove":
        file.unlink()
    elif kind == "grow":
        file.write_bytes(raw + draw.randbytes(draw.randint(1, 9)))
    elif kind == "zero":  # a block that the disk never wrote
        at = draw.randrange(len(raw))
        file.write_bytes(raw[:at] + bytes(len(raw) - at))
    else:  # the file of another checkpoint under this name
        file.write_bytes(draw.randbytes(len(raw)))
    return f"{kind} {file.relative_to(folder)}"


def test_no_damage_is_loaded_and_the_older_whole_one_is_found(tmp_path: Path) -> None:
    """240 mutations: each is refused, named, and recovered from by the older checkpoint."""
    manager = CheckpointManager(tmp_path / "run")
    write(manager, 2)
    newest = write(manager, 4)
    kept, draw = tmp_path / "kept", random.Random(5)
    shutil.copytree(newest, kept)
    for _ in range(MUTATIONS):
        how = mutate(newest, draw)
        why = fault(newest)
        assert why is not None, how
        found = manager.latest()
        assert found is not None
        assert (found.step, Path(found.path).name) == (2, "checkpoint-2"), how
        assert len(found.skipped) == 1
        assert found.skipped[0].startswith(f"{newest} is skipped: "), how
        shutil.rmtree(newest)
        shutil.copytree(kept, newest)
        assert fault(newest) is None
    mutate(tmp_path / "run" / "checkpoint-2", draw)
    mutate(newest, draw)
    with pytest.raises(ConfigurationError, match=r"no checkpoint in .* is whole: .*checkpoint-4: .*checkpoint-2: "):
        manager.latest()


def test_a_file_that_was_added_and_would_be_loaded_is_a_fault(tmp_path: Path) -> None:
    made = write(CheckpointManager(tmp_path), 1)
    (made / "notes.txt").write_text("mine")
    (made / ".DS_Store").write_text("")
    assert fault(made) is None
    (made / "model.safetensors.index.json").write_text("{}")
    assert fault(made) == "model.safetensors.index.json was not written with it"


def test_rotation_keeps_the_newest_whole_ones_and_the_best(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, limit=2)
    for step in (1, 2, 3, 4):
        write(manager, step)
    assert steps(tmp_path) == [3, 4]
    # Parts do not count as checkpoints, so they push no whole one out.
    for part in (5, 6):
        (tmp_path / f"checkpoint-{part}").mkdir()
    assert manager.rotate() == []
    assert steps(tmp_path) == [3, 4, 5, 6]
    # A clock that jumps back changes nothing: the order is that of the steps.
    os.utime(tmp_path / "checkpoint-4", (0, 0))
    folder = manager.begin(7)
    (folder / "trainer_state.json").write_text('{"global_step": 7}')
    manager.commit(7, keep=(3,))
    assert steps(tmp_path) == [3, 4, 7]
    one = CheckpointManager(tmp_path, limit=1)
    assert [p.name for p in one.rotate()] == ["checkpoint-4", "checkpoint-3"]
    assert steps(tmp_path) == [7]


def test_what_rotation_was_removing_is_not_told_as_damage(tmp_path: Path) -> None:
    """Killed while it removed checkpoint-1; a part that is newer than the whole ones is told."""
    manager = CheckpointManager(tmp_path)
    for step in (1, 2, 4):
        write(manager, step)
    for name in (MARKER, "trainer_state.json"):
        (tmp_path / "checkpoint-1" / name).unlink()
    assert manager.latest().skipped == ()
    for name in (MARKER, "trainer_state.json"):
        (tmp_path / "checkpoint-4" / name).unlink()
    found = manager.latest()
    assert found.step == 2
    (told,) = found.skipped
    assert told.startswith(f"{tmp_path / 'checkpoint-4'} is skipped: it was not written to its end")


def test_a_commit_that_was_cut_short_is_ended(tmp_path: Path) -> None:
    """Killed between the seal and the rename: the sealed folder is the newest checkpoint."""
    manager = CheckpointManager(tmp_path)
    write(manager, 2)
    folder = manager.begin(4)
    (folder / "trainer_state.json").write_text('{"global_step": 4}')
    assert (manager.latest() or Checkpoint("", 0)).step == 2  # not sealed
    seal(folder, 4)
    found = manager.latest()
    assert found == Checkpoint(str(folder), 4)
    settled, notes = manager.settle(found)
    assert settled == Checkpoint(str(tmp_path / "checkpoint-4"), 4)
    assert notes == []
    assert fault(tmp_path / "checkpoint-4") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_checkpoints_of_an_abandoned_course_are_set_aside(tmp_path: Path) -> None:
    """A run that goes on from step 2 must not find the old step 6 when it is killed at step 4."""
    manager = CheckpointManager(tmp_path)
    for step in (2, 4, 6):
        write(manager, step)
    (tmp_path / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    settled, notes = manager.settle(Checkpoint(str(tmp_path / "checkpoint-2"), 2))
    assert settled is not None
    assert steps(tmp_path) == [2]
    assert sorted(p.name for p in (tmp_path / ABANDONED).iterdir()) == ["checkpoint-4", "checkpoint-6"]
    assert len(notes) == 2
    assert all("lies after step 2" in note for note in notes)
    write(manager, 4)
    assert [p.name for p in (tmp_path / ABANDONED).iterdir()] == ["checkpoint-6"]
    assert (manager.latest() or Checkpoint("", 0)).step == 4


def test_rounds_count_their_steps_together(tmp_path: Path) -> None:
    """A finished round is a checkpoint; one that goes on is found through the checkpoints inside it."""
    first = tmp_path / "round-1"
    inner = CheckpointManager(first)
    first.mkdir()
    (first / "round.json").write_text('{"first_step": 0}')
    write(inner, 3)
    (first / "trainer_state.json").write_text('{"global_step": 5}')
    manager = CheckpointManager(tmp_path)
    assert (manager.latest() or Checkpoint("", 0)).path.endswith("round-1/checkpoint-3")
    seal(first, 5)
    assert manager.latest() == Checkpoint(str(first), 5)
    second = tmp_path / "round-2"
    second.mkdir()
    (second / "round.json").write_text('{"first_step": 5}')
    write(CheckpointManager(second), 2)
    assert step_of(second / "checkpoint-2") == 7
    assert manager.latest() == Checkpoint(str(second / "checkpoint-2"), 7)
    settled, notes = manager.settle(manager.latest())
    assert settled is not None
    assert notes == []
    assert (second / "checkpoint-2").is_dir()


def full_at(call: int, name: str, patch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
    """Let the `call`-th call of `os.<name>` fail as on a full disk."""
    real, count = getattr(os, name), [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == call:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    patch.setattr(os, name, failing)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("name", ["fsync", "replace", "mkdir"])
def test_a_fault_at_any_write_leaves_the_older_checkpoint(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of fsync, rename and mkdir in turn fails; the older checkpoint stays whole, and a retry succeeds."""
    manager, told = CheckpointManager(tmp_path, limit=1), []
    write(manager, 2)
    for call in range(1, 40):
        with monkeypatch.context() as patch:
            full_at(call, name, patch, code)
            try:
                write(manager, 4)
            except ConfigurationError as error:
                told.append(error.message)
            except OSError:  # from the test's own files
                pass
            else:
                break
        found = manager.latest()
        assert found is not None
        assert found.step in (2, 4)
        assert fault(Path(found.path)) is None
        manager.settle(found)
        shutil.rmtree(tmp_path / "checkpoint-4", ignore_errors=True)
        if not (tmp_path / "checkpoint-2").is_dir():
            write(manager, 2)
    else:
        pytest.fail("no call went through")
    assert told
    assert all(("no space left" if code == errno.ENOSPC else "no permission") in message for message in told)
    assert steps(tmp_path) == [4]


def test_publishing_a_model_is_whole_or_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each rename that fails, the folder has no config.json, or has every file."""
    names = ("model.safetensors", "config.json", "tokenizer.json", "value_model/value.safetensors")
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    (target / "model-00001-of-00002.safetensors").write_text("old")
    for call in (1, 2, 3, 4, 99):
        staged = tmp_path / f"staged-{call}"
        for name in names:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            (staged / name).write_text("new")
        with monkeypatch.context() as patch:
            full_at(call, "replace", patch)
            if call == 99:
                publish(staged, target)
            else:
                with pytest.raises(OSError, match="No space left"):
                    publish(staged, target)
                assert not (target / "config.json").exists()
    assert all((target / name).read_text() == "new" for name in names)
    assert not list(target.glob("model-0*"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw.replace(b'"step": 4', b'"step": 5'), f"{MARKER} is damaged"),
        (lambda raw: raw[:-1], f"{MARKER} is damaged"),
        (lambda raw: b"[]", f"{MARKER} is damaged"),
        (lambda raw: b"\xff\xfe", f"{MARKER} is damaged"),
        (lambda raw: b'{"files": {}, "step": 4, "sha256": "", "version": 1}', f"{MARKER} is damaged"),
    ],
)
def test_a_damaged_marker_is_seen(damage: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    made = write(CheckpointManager(tmp_path), 4)
    (made / MARKER).write_bytes(damage((made / MARKER).read_bytes()))
    assert fault(made) == said
