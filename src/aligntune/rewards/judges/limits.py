"""How often an endpoint is asked: even spacing, waits that the endpoint demands, and growing waits between attempts.

    pace = Pace(requests_per_minute=60)
    pace.turn(stop)                     # returns at once, then every second
    pace.pause(30)                      # the endpoint answered 429 with Retry-After: 30; every thread waits
    backoff(2, random.Random(0))        # 2 s x a factor in [0.5, 1.5)

Waits: 0.5 x 2^attempt seconds, at most 30, times a random factor, so that many clients do not come back at once
(exponential backoff with jitter, RFC 9110 section 10.2.3 for Retry-After). The limit holds in one process.
"""

from __future__ import annotations

import email.utils
import random
import threading
import time

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
LONGEST_RETRY_AFTER = 600.0
"""Seconds that an endpoint may make us wait; more is a failure, not a wait."""


class Pace:
    """Turns for requests, shared by all threads of a judge.

    Args:
        requests_per_minute: turns are this evenly spaced; None gives them at once.
    """

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def turn(self, stop: threading.Event) -> bool:
        """Wait for the next turn; False where `stop` was set meanwhile."""
        with self._lock:
            mine = max(self._next, time.monotonic())
            self._next = mine + self._interval
        while (left := mine - time.monotonic()) > 0:
            if stop.wait(left):
                return False
        return not stop.is_set()

    def pause(self, seconds: float) -> None:
        """Give no turn for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def backoff(attempt: int, chance: random.Random, first: float = FIRST_WAIT) -> float:
    """Seconds to wait after failed attempt number `attempt` (0 is the first)."""
    return min(LONGEST_WAIT, first * 2.0 ** min(attempt, 16)) * chance.uniform(0.5, 1.5)


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date; None where it says neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds == seconds else None
