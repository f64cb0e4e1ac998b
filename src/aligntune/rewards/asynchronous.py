"""Asynchronous rewards: `async def` functions on one event loop of the process, many texts at once.

    async def polite(text: str) -> float:
        return await ask("https://judge.example", text)       # 16 texts wait at the same time

The loop runs in a thread of its own and lives as long as the process, so it works inside a notebook, whose own loop is
running, and a client that a reward keeps between batches stays with its loop. Each text has its own deadline, from the
moment its call begins; a call that overruns is cancelled. Results come back in the order of the texts.

A coroutine that blocks (`time.sleep`, a plain HTTP library) stops all others too. When even the time that all calls
may take together has passed, the loop is given up and the next batch gets a new one. Source: PEP 492; asyncio. It does
not retry anything.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import TimeoutError as NotReady
from contextlib import ExitStack
from typing import Any

from aligntune.rewards.deadline import MAX_ABANDONED, DeadlineExceeded

CONCURRENCY = 16
"""Calls of one reward that wait at the same time, unless it says otherwise. Ours: what endpoints with a rate limit
usually stand; a text costs about 1/16 of its latency."""
GRACE = 1.0
"""Seconds beyond all deadlines before a loop counts as blocked."""
Call = Callable[[], Coroutine[Any, Any, Any]]


class _Loop(threading.Thread):
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        super().__init__(name="aligntune-async-rewards", daemon=True)
        self.loop = asyncio.new_event_loop()
        self.pid = os.getpid()
        self.start()

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()  # until it is given up
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.close()


_lock = threading.Lock()
_current: _Loop | None = None
_blocked: list[_Loop] = []


def _loop() -> _Loop:
    """The process's loop; a new one after a fork, or where the last one was given up.

    Raises:
        DeadlineExceeded: too many loops are still blocked.
    """
    global _current, _blocked
    with _lock:
        if _current is not None and _current.pid != os.getpid():
            _current, _blocked = None, []
        _blocked = [loop for loop in _blocked if loop.is_alive()]
        if len(_blocked) >= MAX_ABANDONED:
            raise DeadlineExceeded(f"{len(_blocked)} earlier calls block their event loops and are still running")
        if _current is None:
            _current = _Loop()
        return _current


def _give_up(loop: _Loop) -> None:
    global _current
    with _lock:
        if _current is loop:
            _current = None
            _blocked.append(loop)
    loop.loop.call_soon_threadsafe(loop.loop.stop)  # it ends as soon as the blocking call returns


def gather(calls: Sequence[Call], deadline: float | None, concurrency: int = CONCURRENCY) -> list[Any]:
    """Run the calls and wait for all of them.

    Args:
        calls: N functions without arguments that give a coroutine.
        deadline: seconds for each call, from its beginning; None waits.
        concurrency: calls under way at the same time.

    Returns:
        N values; in the place of a value stands the exception that its call raised, `DeadlineExceeded` where it
        overran.
    """
    if not calls:
        return []
    runner = _loop()
    waves = math.ceil(len(calls) / concurrency)
    future = asyncio.run_coroutine_threadsafe(_all(calls, deadline, concurrency), runner.loop)
    with ExitStack() as stack:
        stack.callback(future.cancel)  # without effect on one that is done
        try:
            return future.result(None if deadline is None else waves * deadline + GRACE)
        except NotReady:
            stack.pop_all()  # a loop that is blocked cannot cancel
            _give_up(runner)
        overran = DeadlineExceeded(
            f"no result after {waves * deadline:g} s: it blocks the event loop; "  # type: ignore[operator]
            "await an asynchronous library, or write `def` in place of `async def`"
        )
        return [overran] * len(calls)


async def _all(calls: Sequence[Call], deadline: float | None, concurrency: int) -> list[Any]:
    free = asyncio.Semaphore(concurrency)

    async def one(call: Call) -> Any:
        async with free:
            task = asyncio.ensure_future(call())
            done, _ = await asyncio.wait({task}, timeout=deadline)
            if not done:  # not awaited: it may take its time to end, or refuse
                task.cancel()
                return DeadlineExceeded(f"no result after {deadline:g} s")
            if task.cancelled():
                return asyncio.CancelledError("it was cancelled")
            return task.exception() or task.result()

    return list(await asyncio.gather(*(one(call) for call in calls)))
