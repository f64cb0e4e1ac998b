"""`Judge`: questions in, answers out, with what they cost; and `make_judge`, which makes one of a `JudgeConfig`.

    judge = FunctionJudge(lambda messages: '{"reason": "short", "score": 2}')
    judge.ask([[{"role": "user", "content": "How good is it?"}]])       # ['{"reason": "short", "score": 2}']

A question is a list of chat messages. An answer that could not be had is None and is counted in `usage.failures`; the
other answers of the call are kept. Where not one of several questions could be answered, `ask` raises, because a
training run would go on without its reward. Equal questions of one call are asked once. Answers are kept on disk where
the configuration names a folder.

Source: the chat-completions interface of OpenAI, which most servers of language models share. It does not read answers:
that is `rubric`'s work.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError, RewardError
from aligntune.rewards.judges.cache import AnswerCache, question_key

if TYPE_CHECKING:
    from aligntune.core.config.sections import JudgeConfig

Messages = list[dict[str, Any]]
STORE_EVERY = 1.0
"""Seconds after which new answers go to the disk, one write for all of them."""
PING: Messages = [{"role": "user", "content": "Answer with the word ready."}]


@dataclass
class Usage:
    """What a judge has done since it was made.

    Attributes:
        requests: attempts that were sent.
        retries: attempts that followed a failed one.
        cache_hits: questions answered from the folder.
        repeats: questions that stood twice in one call, and were asked once.
        failures: questions without an answer.
        tokens_in: tokens read, as the endpoint reports them.
        tokens_out: tokens written.
        cost: tokens times prices, in the currency of the configuration.
        reasons: failure to count (`timeout`, `http_500`, `bad_response` ...).
    """

    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    repeats: int = 0
    failures: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    def gauges(self) -> dict[str, float]:
        """The numbers that a run logs; cost where prices are known."""
        named = {
            "judge_requests": self.requests,
            "judge_cache_hits": self.cache_hits,
            "judge_failures": self.failures,
            "judge_tokens": self.tokens_in + self.tokens_out,
        }
        return {**{k: float(v) for k, v in named.items()}, **({"judge_cost": self.cost} if self.cost else {})}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for logs."""
        return {**vars(self), "reasons": dict(self.reasons)}


@dataclass(frozen=True)
class Failure:
    """Why a question has no answer: a word to count, and a sentence."""

    kind: str
    sentence: str


class _Answers:
    """The answers of one call: those that were kept, and those that come in.

    Attributes:
        known: answers by key.
        missing: keys without one at the start, each once, in order.
        failed: what went wrong.
    """

    def __init__(self, keys: Sequence[str], cache: AnswerCache | None, usage: Usage) -> None:
        self.known = cache.read(keys) if cache is not None else {}
        self.missing = list(dict.fromkeys(key for key in keys if key not in self.known))
        self.failed: list[Failure] = []
        open_keys = sum(key not in self.known for key in keys)
        usage.cache_hits += len(keys) - open_keys
        usage.repeats += open_keys - len(self.missing)
        self._cache, self._usage = cache, usage
        self._fresh: dict[str, str] = {}
        self._stored = time.monotonic()

    def settle(self, place: int, answer: str | Failure) -> None:
        """Take the outcome of question `place` of `missing`."""
        if isinstance(answer, Failure):
            self.failed.append(answer)
            self._usage.failures += 1
            self._usage.reasons[answer.kind] += 1
            return
        self.known[self.missing[place]] = self._fresh[self.missing[place]] = answer
        if time.monotonic() - self._stored > STORE_EVERY:
            self.keep()

    def keep(self) -> None:
        """Write what came in since the last time to the disk."""
        if self._cache is not None:
            self._cache.write(self._fresh)
        self._fresh = {}
        self._stored = time.monotonic()


class Judge:
    """A language model that is asked for verdicts. A subclass writes `_answer`.

    Attributes:
        name: what is judged by, for messages and manifests.
        usage: what was asked and spent.
    """

    name = "judge"

    def __init__(self) -> None:
        self.usage = Usage()
        self._lock = threading.RLock()
        self._cache: AnswerCache | None = None

    def ask(self, requests: Sequence[Messages], *, version: str = "") -> list[str | None]:
        """An answer to each question, in order; None where there is none after all attempts.

        Args:
            requests: N questions, each a list of messages (`role`, `content`).
            version: of whatever wrote the questions; another version never meets a kept answer.

        Raises:
            RewardError: not one of the questions has an answer; the sentence of the first failure says why.
            EnvironmentError: the key is missing or refused, or `max_cost` is reached.
        """
        if not requests:
            return []
        with self._lock:
            identity = self.identity()
            keys = [question_key(identity, messages, version) for messages in requests]
            answers = _Answers(keys, self._cache, self.usage)
            questions = dict(zip(keys, requests, strict=True))
            try:
                self._answer([questions[key] for key in answers.missing], answers.settle)
            finally:  # a stop in the middle loses nothing that was paid for
                answers.keep()
            failed = answers.failed
            if failed and not answers.known:
                raise RewardError(
                    f"the judge {self.name} answered none of {len(failed)} questions: {failed[0].sentence}",
                    hint="start or mend the endpoint; raise judge.timeout or judge.retries where it is only slow",
                    context={"judge": self.name, "reasons": dict(Counter(f.kind for f in failed))},
                )
            return [answers.known.get(key) for key in keys]

    def check(self) -> None:
        """Ask a question of six words, so that a judge that cannot answer is an error before training.

        Raises:
            EnvironmentError: it cannot be reached, or refuses the key or the model.
        """

    def place(self, device: str) -> None:
        """Told where the run computes; for judges that hold a model."""

    def identity(self) -> dict[str, Any]:
        """Everything but the question that an answer depends on; part of the key of a kept answer."""
        return {"judge": self.name}

    def _answer(self, requests: Sequence[Messages], settle: Callable[[int, str | Failure], None]) -> None:
        """Call `settle(place, answer or Failure)` once for each question, in the calling thread."""
        raise NotImplementedError(f"{type(self).__name__} has no _answer")


class FunctionJudge(Judge):
    """A judge of your own: a function of the messages that gives the answer's text, or None.

    Args:
        fn: takes a list of messages. What it raises is raised.
    """

    name = "function"

    def __init__(self, fn: Callable[[Messages], str | None]) -> None:
        super().__init__()
        self.fn = fn

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionJudge) and other.fn == self.fn

    def __hash__(self) -> int:
        return hash(self.fn)

    def __reduce__(self) -> tuple[Any, ...]:
        return FunctionJudge, (self.fn,)

    def _answer(self, requests: Sequence[Messages], settle: Callable[[int, str | Failure], None]) -> None:
        for i, messages in enumerate(requests):
            self.usage.requests += 1
            answer = self.fn(messages)
            settle(i, Failure("no_answer", "the function gave None") if answer is None else answer)


_JUDGES: weakref.WeakValueDictionary[str, Judge] = weakref.WeakValueDictionary()
_MAKING = threading.Lock()


def make_judge(config: JudgeConfig | Mapping[str, Any] | Judge) -> Judge:
    """The judge of a configuration. Equal configurations in use at one time share one judge, and so one limit of cost
    and rate, one cache and one copy of the weights.

    Args:
        config: the section, its plain values, or a judge, which is given back.

    Raises:
        ConfigurationError: a key is unknown, missing, contradictory or without effect.
    """
    if isinstance(config, Judge):
        return config
    from aligntune.core.config.base import to_plain
    from aligntune.core.config.io import parse_section
    from aligntune.core.config.sections import JudgeConfig

    if isinstance(config, Mapping):
        config = parse_section(JudgeConfig, dict(config), "judge", hint="docs/judges.md lists the keys")
    if not isinstance(config, JudgeConfig):
        raise ConfigurationError(
            f"a judge is {type(config).__name__}", hint="give a JudgeConfig, a mapping of its keys, or a Judge"
        )
    faults = config.faults()
    if faults:
        key, sentence = faults[0]
        said, _, fix = sentence.partition("; ")
        raise ConfigurationError(f"judge.{key} {said}", hint=fix or "docs/judges.md lists the keys")
    with _MAKING:
        key = json.dumps(to_plain(config), sort_keys=True, default=str)
        judge = _JUDGES.get(key)
        if judge is None:
            if config.kind == "local":
                from aligntune.rewards.judges.local import LocalJudge

                judge = LocalJudge(config)
            else:
                from aligntune.rewards.judges.openai import OpenAIJudge

                judge = OpenAIJudge(config)
            _JUDGES[key] = judge
        return judge
