"""Dynamic sampling on two processes: the batch is that of one process, though a group spans both of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import policy

REWARDS = [[float(i % 3 == 0), float(i % 2)] for i in range(12)]
"""Groups of two; prompts 0, 2, 6 and 8 ... some differ, some do not."""
PROMPTS = [1, 2, 4, 3, 8]  # five groups of two: the third spans both processes
CHILD = """
import json, sys
sys.path.insert(0, sys.argv[1])
import policy
from accelerate import Accelerator

given = json.loads(sys.argv[2])
accelerator = Accelerator(cpu=True)
world = policy.World(given["rewards"], given["rounds"], accelerator)
out = world.run(given["prompts"])
result = {k: v.tolist() for k, v in out.items()}
result["rounds"] = len(world.asked)
print("@@" + json.dumps(result), flush=True)
accelerator.end_training()
"""


def kept(row: list[float]) -> list[float]:
    """What is not padding."""
    return [v for v in row if v not in (0, policy.PAD)]


def on_two(rounds: int) -> list[dict[str, object]]:
    """What each of two processes gets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = json.dumps({"rewards": REWARDS, "prompts": PROMPTS, "rounds": rounds})
    started = []
    for rank in range(2):
        env = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parents[1]), given]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    found = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        found.append(json.loads(out.rpartition("@@")[2]))
    return found


@pytest.mark.parametrize("rounds", [3])
def test_two_processes_fill_the_batch_that_one_fills(rounds: int) -> None:
    one = policy.World(REWARDS, rounds)
    alone = {k: v.tolist() for k, v in one.run(PROMPTS).items()}
    first, second = on_two(rounds)
    assert first["rounds"] == second["rounds"] == len(one.asked) > 1
    assert first["num_items_in_batch"] == second["num_items_in_batch"] == alone["num_items_in_batch"]
    for name in ("completion_ids", "completion_mask", "advantages", "old_per_token_logps", "prompt_ids", "prompt_mask"):
        joined = [*first[name], *second[name]]
        if name == "advantages":
            assert joined == pytest.approx(alone[name])
        else:  # widths may differ, what is in them may not
            assert [kept(row) for row in joined] == [kept(row) for row in alone[name]], name
