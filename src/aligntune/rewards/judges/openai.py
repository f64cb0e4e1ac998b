"""A judge behind an OpenAI-compatible chat endpoint: `OpenAIJudge`.

    judge = OpenAIJudge(JudgeConfig(url="http://localhost:8000/v1", model="judge", concurrency=16))
    judge.ask([[{"role": "user", "content": "Is it raining?"}]])

Each question is one POST to `<url>/chat/completions`. `concurrency` threads send them; the calling thread collects the
answers, keeps what arrived and watches the clock: an attempt ends after `timeout` seconds even where the endpoint sends
a byte now and then. A status of 429 or 5xx, a timeout and a broken connection are tried again after growing waits
(`limits`), Retry-After is honoured by all threads; any other status is final for its question, and 401, 403 and 404 end
the call, because no question could fare better. Redirects are not followed, so that the key goes nowhere else.

The key is read from the environment when it is sent, and taken out of every message that an endpoint sends back. Its
name alone stands in the configuration.

Source: OpenAI's API reference for chat completions; RFC 6585 and RFC 9110 for 429 and Retry-After. It does not stream
answers, and sends no images.
"""

from __future__ import annotations

import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aligntune import errors
from aligntune.errors import AlignTuneError, ConfigurationError, RewardError
from aligntune.rewards.judges.base import PING, Failure, Judge, Messages, make_judge
from aligntune.rewards.judges.cache import AnswerCache
from aligntune.rewards.judges.limits import FIRST_WAIT, LONGEST_RETRY_AFTER, Pace, backoff, retry_after

if TYPE_CHECKING:
    from aligntune.core.config.sections import JudgeConfig

MAX_BYTES = 8 * 2**20
"""Most bytes of an endpoint's answer; a verdict has some hundred."""
_GRACE = 0.5
_TICK = 0.1
_FINAL = {401: "refuses the key", 403: "refuses the key", 404: "knows no such model or address"}


@dataclass
class _Again:
    """A failure that another attempt may mend."""

    failure: Failure
    wait: float | None = None


class _Call:
    """One call of `ask`: its queues, its end, and the attempts under way.

    Args:
        requests: the questions.
        patient: try again where there is no connection.
    """

    def __init__(self, requests: Sequence[Messages], *, patient: bool = True) -> None:
        self.size, self.patient = len(requests), patient
        self.todo: queue.SimpleQueue[tuple[int, Messages]] = queue.SimpleQueue()
        for i, messages in enumerate(requests):
            self.todo.put((i, messages))
        self.done: queue.SimpleQueue[tuple[int, str | Failure | AlignTuneError]] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.under_way: dict[int, tuple[float, Any]] = {}
        self.lock = threading.Lock()

    def end_overdue(self, timeout: float) -> None:
        """Close the connections of attempts that overran, which ends their reading."""
        with self.lock:
            late = [client for start, client in self.under_way.values() if time.monotonic() - start > timeout + _GRACE]
        for client in late:
            client.close()


class OpenAIJudge(Judge):
    """See this module.

    Args:
        config: the section, with `kind: openai`.
    """

    first_wait = FIRST_WAIT
    """Seconds before the second attempt."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.address = f"{str(config.url).rstrip('/')}/chat/completions"
        try:
            host = urlsplit(self.address).hostname
        except ValueError:
            host = None
        if not host:
            raise ConfigurationError(f"judge.url is no address: {config.url}", hint="as http://localhost:8000/v1")
        try:
            json.dumps(config.extra)
        except (TypeError, ValueError) as e:
            raise ConfigurationError(f"judge.extra cannot be sent as JSON: {e}", hint="put dates in quotes") from e
        self.name = f"{config.model} at {host}"
        self._cache = AnswerCache(config.cache) if config.cache is not None else None
        self._pace = Pace(config.requests_per_minute)
        self._chance = random.Random(0)
        self._count = threading.Lock()
        self._ready = False
        self._tls: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return make_judge, (self.config,)

    def identity(self) -> dict[str, Any]:
        """Address, model and sampling parameters."""
        c = self.config
        own = {"temperature": c.temperature, "max_tokens": c.max_tokens, "extra": c.extra}
        return {"kind": "openai", "address": self.address, "model": c.model, **own}

    def check(self) -> None:
        with self._lock:
            if self._ready:
                return
            answers: list[str | Failure] = []
            self._run(_Call([PING], patient=False), lambda place, answer: answers.append(answer))
            if isinstance(answers[0], Failure):
                raise errors.EnvironmentError(
                    f"the judge {self.name} cannot be asked: {answers[0].sentence}",
                    hint=f"start the endpoint, or mend judge.url ({self.config.url}) and judge.model",
                )
            self._ready = True

    def _key(self) -> str | None:
        """The API key; None where the configuration names no variable."""
        name = self.config.api_key_env
        if name is None:
            return None
        key = os.environ.get(name, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise errors.EnvironmentError(
                f"the judge {self.name} needs an API key, and the environment variable {name} "
                f"{'holds something else' if key else 'is not set'}",
                hint=f"run: export {name}=<the key>",
            )
        return key

    # ---- one call ------------------------------------------------------------------------------------------------

    def _answer(self, requests: Sequence[Messages], settle: Callable[[int, str | Failure], None]) -> None:
        if requests:
            self._run(_Call(requests), settle)

    def _run(self, call: _Call, settle: Callable[[int, str | Failure], None]) -> None:
        key, left = self._key(), call.size
        try:
            for _ in range(min(self.config.concurrency, left)):
                threading.Thread(target=self._work, args=(call, key), name="aligntune-judge", daemon=True).start()
            while left:
                call.end_overdue(self.config.timeout)
                try:
                    place, answer = call.done.get(timeout=_TICK)
                except queue.Empty:
                    continue
                if isinstance(answer, AlignTuneError):
                    raise answer
                settle(place, answer)
                left -= 1
        finally:
            call.stop.set()  # an interrupt or a final error: the others start no further attempt
            call.end_overdue(-_GRACE)

    def _work(self, call: _Call, key: str | None) -> None:
        """A thread: question after question, until there are none or the call ends."""
        while not call.stop.is_set():
            try:
                place, messages = call.todo.get_nowait()
            except queue.Empty:
                return
            answer: str | Failure | AlignTuneError = RewardError(
                f"a thread of the judge {self.name} ended by an error of its own", hint="its traceback stands above"
            )
            try:
                answer = self._question(messages, call, key)
            except AlignTuneError as e:
                answer = e
            finally:  # whatever happened: the calling thread waits for one entry for each question
                call.done.put((place, answer))

    def _question(self, messages: Messages, call: _Call, key: str | None) -> str | Failure:
        """All attempts at one question."""
        for attempt in range(self.config.retries + 1):
            if not self._pace.turn(call.stop):
                return Failure("stopped", "the call was stopped")
            self._check_cost()
            with self._count:
                self.usage.requests += 1
                self.usage.retries += attempt > 0
            found = self._attempt(messages, call, key)
            if not isinstance(found, _Again):
                return found
            last = attempt == self.config.retries or (found.failure.kind == "connection" and not call.patient)
            if last or (found.wait or 0.0) > LONGEST_RETRY_AFTER:
                return found.failure
            with self._count:
                wait = backoff(attempt, self._chance, self.first_wait)
            if found.wait is not None:
                self._pace.pause(found.wait)
                wait = max(wait, found.wait)
            if call.stop.wait(wait):
                break
        return Failure("stopped", "the call was stopped")

    def _attempt(self, messages: Messages, call: _Call, key: str | None) -> str | Failure | _Again:
        """One request, at most `timeout` seconds."""
        import httpx

        limit, me, start = self.config.timeout, threading.get_ident(), time.monotonic()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        client = httpx.Client(timeout=limit, verify=self._context(), follow_redirects=False)
        with call.lock:
            call.under_way[me] = (start, client)
        try:
            body = b""
            with client.stream("POST", self.address, content=self._body(messages), headers=headers) as reply:
                for chunk in reply.iter_bytes():
                    body += chunk
                    if time.monotonic() - start > limit:
                        return _Again(Failure("timeout", f"no whole answer after {limit:g} s"))
                    if len(body) > MAX_BYTES:
                        return Failure("bad_response", f"its answer has more than {MAX_BYTES} bytes")
        except httpx.TimeoutException:
            return _Again(Failure("timeout", f"no answer after {limit:g} s"))
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, RuntimeError, OSError) as e:
            # RuntimeError and OSError: what reading raises once the clock's watcher has closed the connection
            if time.monotonic() - start > limit:
                return _Again(Failure("timeout", f"no whole answer after {limit:g} s"))
            return _Again(Failure("connection", f"no connection ({_told(str(e) or type(e).__name__, key)})"))
        finally:
            with call.lock:
                call.under_way.pop(me, None)
            client.close()
        return self._read(reply.status_code, reply.headers.get("Retry-After"), body, key)

    def _context(self) -> Any:
        """One TLS context for all connections: making one takes longer than a local request."""
        import httpx

        with self._count:
            if self._tls is None:
                self._tls = httpx.create_ssl_context()
            return self._tls

    def _body(self, messages: Messages) -> bytes:
        c = self.config
        fields: dict[str, Any] = {
            "model": c.model, "messages": messages, "temperature": c.temperature, "max_tokens": c.max_tokens, **c.extra
        }  # fmt: skip
        return json.dumps({k: v for k, v in fields.items() if v is not None}).encode()

    # ---- what came back ------------------------------------------------------------------------------------------

    def _read(self, status: int, wait: str | None, body: bytes, key: str | None) -> str | Failure | _Again:
        text = body.decode("utf-8", "replace")
        if status in _FINAL:
            raise errors.EnvironmentError(
                f"the judge {self.name} {_FINAL[status]} (status {status}): {_told(_message(text), key)}",
                hint="mend judge.api_key_env, judge.model or judge.url",
            )
        if status == 429 or status >= 500:
            failure = Failure(f"http_{status}", f"status {status}: {_told(_message(text), key)}")
            return _Again(failure, retry_after(wait))
        if status != 200:
            return Failure(f"http_{status}", f"status {status}: {_told(_message(text), key)}")
        try:
            data = json.loads(text)
            content = data["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            return Failure("bad_response", f"its answer is no chat completion: {_told(text, key)}")
        self._spend(data.get("usage"))
        if not isinstance(content, str):
            return Failure("bad_response", "its answer has no text")
        return content

    def _spend(self, usage: Any) -> None:
        """Add up tokens and cost."""
        c = self.config
        numbers = [usage.get(k) if isinstance(usage, dict) else None for k in ("prompt_tokens", "completion_tokens")]
        read, written = (n if isinstance(n, int) and not isinstance(n, bool) and n >= 0 else None for n in numbers)
        if c.max_cost is not None and (read is None or written is None):
            raise errors.EnvironmentError(
                f"the judge {self.name} reports no tokens with its answers, so that judge.max_cost cannot be kept",
                hint="remove judge.max_cost, and set a limit at the service",
            )
        with self._count:
            self.usage.tokens_in += read or 0
            self.usage.tokens_out += written or 0
            self.usage.cost += ((read or 0) * (c.price_in or 0.0) + (written or 0) * (c.price_out or 0.0)) / 1e6

    def _check_cost(self) -> None:
        limit = self.config.max_cost
        if limit is not None and self.usage.cost >= limit:
            raise errors.EnvironmentError(
                f"the judge {self.name} has cost {self.usage.cost:.6g} in this process: judge.max_cost is {limit:g}",
                hint="raise judge.max_cost to go on; with judge.cache set, nothing is paid for twice",
            )


def _message(text: str) -> str:
    """The sentence of an endpoint's error: `error.message` where it is JSON of that form, else the text."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def _told(text: str, key: str | None) -> str:
    """A text of the endpoint's as it may be shown: without the key, in one line of at most 300 characters."""
    text = " ".join((text.replace(key, "***") if key else text).split())
    return text if len(text) <= 300 else text[:297] + "..."
