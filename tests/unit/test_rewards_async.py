"""Asynchronous rewards, verl's signature, and rewards that are scored beside each other."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
import time
from typing import Any

import pytest

from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.rewards import Component, CompositeReward, RewardConfig, build_rewards
from aligntune.rewards.asynchronous import gather
from aligntune.rewards.base import count, reward_class

INF = math.inf


async def polite(text: str, tone: str = "sir", *, wait: float = 0.0) -> float:
    """1 if the word stands in the text; module level, so that it pickles."""
    await asyncio.sleep(wait)
    count("asked")
    if text == "bad":
        raise ValueError("no such word")
    if text == "nan":
        return math.nan
    if text == "long":
        await asyncio.sleep(60)
    return float(tone in text)


async def lengths(prompts, completions, log_metric=None, **columns):
    await asyncio.sleep(0)
    return [float(len(c)) for c in completions]


def made(fn: Any = polite, **options: Any) -> Any:
    params = options.pop("params", {})
    return reward_class(fn, fn.__name__, **options)(**params)


def test_single_and_batch_agree_and_keep_the_order() -> None:
    texts, tones = ["yes sir", "no", "yes madam"], ["sir", "no", "sir"]
    expected = [1.0, 1.0, 0.0]
    assert made().batch(texts, {"tone": tones}) == expected
    assert [made().compute(t, tone=n) for t, n in zip(texts, tones, strict=True)] == expected
    assert [made().score(t, 0, {"tone": n}) for t, n in zip(texts, tones, strict=True)] == expected
    assert made(lengths).batch(["a", "bcd"]) == [1.0, 3.0]
    assert made(lengths).compute("bcd") == 3.0
    assert pickle.loads(pickle.dumps(made(concurrency=3))).concurrency == 3


def test_concurrency_is_bounded_and_used() -> None:
    now, most = 0, 0

    async def busy(text: str) -> float:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return 1.0

    assert made(busy, concurrency=4).batch(["x"] * 10) == [1.0] * 10
    assert most == 4
    with pytest.raises(ConfigurationError, match="concurrency 0"):
        made(busy, concurrency=0)


def test_it_works_inside_a_running_loop_and_keeps_one_loop() -> None:
    loops = set()

    async def where(text: str) -> float:
        loops.add(asyncio.get_running_loop())
        return 1.0

    async def notebook() -> list[Any]:
        return made(where).batch(["a", "b"])

    assert asyncio.run(notebook()) == [1.0, 1.0]
    made(where).batch(["c"])
    assert len(loops) == 1


def test_a_deadline_for_each_text() -> None:
    reward = made(deadline=0.2)
    failures: list[RewardError] = []
    assert reward.batch(["sir", "long", "no"], failures=failures) == [1.0, None, 0.0]
    assert "overran its deadline: no result after 0.2 s (row 1)" in failures[0].message
    with pytest.raises(RewardError, match=r"reward 'polite' overran its deadline: .*\(row 7\)"):
        reward.score("long", 7)


def test_a_coroutine_that_blocks_is_given_up() -> None:
    release = threading.Event()

    async def blocks(text: str) -> float:
        if text == "block":
            release.wait(30)
        return 1.0

    reward = made(blocks, deadline=0.05)
    with pytest.raises(RewardError, match="it blocks the event loop"):
        reward.batch(["block", "b"])
    assert reward.batch(["c"]) == [1.0]  # on a new loop
    release.set()


def test_exceptions_name_the_reward_and_the_row() -> None:
    with pytest.raises(RewardError, match=r"reward 'polite' raised ValueError: no such word \(row 1, prompt 'q'\)"):
        made().batch(["sir", "bad", "nan"], {"prompt": ["p", "q", "r"]})
    failures: list[RewardError] = []
    assert made().batch(["nan", "sir", "bad"], failures=failures) == [None, 1.0, None]
    assert [f.context["row"] for f in failures] == [0, 2]
    assert "returned nan, which is not finite" in failures[0].message

    async def needs(text: str, tag: str) -> float:
        return 1.0

    with pytest.raises(ConfigurationError, match="needs 'tag'"):
        made(needs).batch(["x"], {"other": [1]})


def test_bad_results_of_asynchronous_functions() -> None:
    async def odd(text: str) -> Any:
        return {"text": "high", "wide": 3.0, "none": None}[text]

    async def short(completions):
        return [1.0]

    assert made(odd, range=(0, 4)).batch(["none", "wide"]) == [None, 3.0]
    with pytest.raises(RewardError, match="returned 'high', which is not a number"):
        made(odd).batch(["text"])
    with pytest.raises(RewardError, match=r"returned 3, outside its range \[0, 1\]"):
        made(odd, range=(0, 1)).batch(["wide"])
    with pytest.raises(RewardError, match=r"returned \[1.0\] for 2 completions"):
        made(short).batch(["a", "b"])


def test_what_is_counted_reaches_the_statistics() -> None:
    composite = CompositeReward([made(), made(lengths)], [1.0, 0.5])
    scores = composite.score_batch(["yes sir", "no"])
    assert scores.total == [4.5, 1.0]
    assert scores.stats["polite/asked"] == 2


def test_gather_gives_exceptions_in_their_places() -> None:
    async def value(x: int) -> int:
        if x == 1:
            raise KeyError("one")
        return x

    found = gather([lambda i=i: value(i) for i in range(3)], None, 2)
    assert (found[0], found[2]) == (0, 2)
    assert isinstance(found[1], KeyError)
    assert gather([], 1.0) == []


# ---- beside each other ------------------------------------------------------------------------------------------------


def test_rewards_that_wait_are_scored_beside_the_others() -> None:
    """The asynchronous one can only end once the other is being computed, and the other way round."""
    computing, waiting = threading.Event(), threading.Event()

    async def asks(text: str) -> float:
        waiting.set()
        while not computing.is_set():
            await asyncio.sleep(0.001)
        count("asked")
        return 1.0

    def computes(text: str) -> float:
        computing.set()
        count("computed")
        return float(waiting.wait(30))

    composite = CompositeReward([made(computes), made(asks)])
    scores = composite.score_batch(["x"])
    assert scores.components == {"computes": [1.0], "asks": [1.0]}
    assert scores.stats == {"computes/computed": 1, "asks/asked": 1, "rows": 1, "rows_dropped": 0}


@pytest.mark.parametrize("first", ["slow", "quick"])
def test_the_first_error_in_their_order_is_told(first: str) -> None:
    async def slow(text: str) -> float:
        await asyncio.sleep(0.02)
        raise ValueError("slow")

    def quick(text: str) -> float:
        raise ValueError("quick")

    parts = [made(slow), made(quick)] if first == "slow" else [made(quick), made(slow)]
    with pytest.raises(RewardError, match=f"raised ValueError: {first}"):
        CompositeReward(parts).score_batch(["x"])
    skipping = CompositeReward([Component(p.label, p, on_error="skip") for p in parts] + [made(lengths)], none="zero")
    scores = skipping.score_batch(["abc"])
    assert scores.total == [3.0]
    assert scores.stats["slow/errors"] == scores.stats["quick/errors"] == 1


# ---- verl --------------------------------------------------------------------------------------------------------------


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """verl's signature; the score stands in a mapping, as its own do."""
    if data_source == "plain":
        return float(solution_str == ground_truth)
    if data_source == "broken":
        return {"acc": 1.0}
    return {"score": float(ground_truth in solution_str) + (extra_info or {}).get("bonus", 0), "acc": 1.0}


async def compute_later(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    await asyncio.sleep(0)
    return compute_score(data_source, solution_str, ground_truth, extra_info)


@pytest.mark.parametrize("fn", [compute_score, compute_later])
def test_verls_signature_is_filled_from_the_columns(fn: Any) -> None:
    reward = made(fn)
    columns = {
        "data_source": ["gsm8k", "plain", None],
        "reward_model": [{"ground_truth": "7", "style": "rule"}, '{"ground_truth": "8"}', {"ground_truth": "9"}],
        "extra_info": [{"bonus": 0.5}, None, '{"bonus": 0.25}'],
        "answer": ["wrong"] * 3,
    }
    assert reward.missing(columns) == []
    assert reward.batch(["is 7", "8", "no"], columns) == [1.5, 1.0, 0.25]
    assert [reward.compute(t, **{k: v[i] for k, v in columns.items()}) for i, t in enumerate(["is 7", "8", "no"])] == [
        1.5, 1.0, 0.25,
    ]  # fmt: skip
    assert reward.reads(columns) == {"data_source", "reward_model", "extra_info", "answer"}


def test_verls_gold_answer_may_be_any_gold_column() -> None:
    assert made(compute_score).batch(["is 7"], {"answer": ["7"]}) == [1.0]
    assert made(compute_score, params={"data_source": "plain"}).batch(["is 7"], {"solution": ["7"]}) == [0.0]
    assert made(compute_score).missing({"data_source": []}) == ["reference"]
    with pytest.raises(ValidationError, match="'compute_score' needs the column reference"):
        CompositeReward([made(compute_score)]).score_batch(["x"], {"data_source": ["y"]})
    with pytest.raises(RewardError, match=r"returned a mapping without 'score' \(keys: acc\)"):
        made(compute_score).batch(["x"], {"data_source": ["broken"], "answer": ["y"]})


def test_user_functions_by_file(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import asyncio\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return float(solution_str.endswith(ground_truth))\n"
        "async def later(text, *, word='a'):\n"
        "    await asyncio.sleep(0)\n"
        "    return float(text.count(word))\n"
    )
    composite = build_rewards([
        RewardConfig(type=f"{file}:compute_score"), RewardConfig(type=f"{file}:later", params={"word": "b"}, weight=0.5),
    ])  # fmt: skip
    assert composite.required_columns == {"reference"}
    assert composite.score_batch(["bb 7", "b 8"], {"ground_truth": ["7", "7"]}).total == [2.0, 0.5]
    again = pickle.loads(pickle.dumps(composite.components[1].reward))
    assert again.compute("bab") == 2.0


def test_a_hanging_plain_function_stops_the_run() -> None:
    def hangs(text: str) -> float:
        time.sleep(0.5)
        return 1.0

    with pytest.raises(RewardError, match="'hangs' overran its deadline"):
        CompositeReward([made(hangs, deadline=0.05)]).score_batch(["x"])
