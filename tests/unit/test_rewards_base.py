"""The contract of a reward: signature, columns, parameters, checked scores, deadlines."""

from __future__ import annotations

import math
import pickle
import threading
from typing import Annotated

import pytest
from annotated_types import Ge

from aligntune.errors import ConfigurationError, RewardError, ValidationError
from aligntune.rewards.base import REWARDS, RewardFunction, count, missing_columns, reward, reward_class
from aligntune.rewards.deadline import MAX_ABANDONED, DeadlineExceeded, Guard


def shouting(
    text: str, reference: str, style: str = "plain", *, most: Annotated[float, Ge(0)] = 0.5, weightless=None
) -> float:
    """How loud."""
    return 0.1 * len(reference) + most + (style == "loud")


SHOUTING = reward_class(shouting, "shouting", kind="measured", range=(0, 9))


def trl_style(prompts, completions, label, scale=1.0, **kwargs):
    assert set(kwargs) == {"other", "trainer_state"}
    return [scale * (len(c) + n) for c, n in zip(completions, label, strict=True)]


def test_the_signature_says_it_all() -> None:
    made = SHOUTING(most="0.25")
    assert SHOUTING.__name__ == "ShoutingReward"
    assert made.params == {"most": 0.25}
    assert made.columns == {"reference"}
    assert SHOUTING(reference="ab").columns == frozenset()
    assert (made.kind, made.range, made.deadline) == ("measured", (0, 9), 60)
    assert "def shouting" in made.source
    assert repr(made) == "ShoutingReward(most=0.25)"


def test_where_values_come_from() -> None:
    made = SHOUTING()
    assert made.compute("x", reference="ab") == pytest.approx(0.7)
    assert made.compute("x", solution="abc") == pytest.approx(0.8)  # a gold column under another name
    assert made.compute("x", reference="ab", style="loud") == pytest.approx(1.7)  # a column, where the data have it
    assert SHOUTING(style="soft").compute("x", reference="ab", style="loud") == pytest.approx(0.7)  # a parameter wins
    assert made.compute("x", reference="ab", most=3) == pytest.approx(0.7)  # keyword-only: no column sets it


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"most": -1}, "most = -1 does not fit: Input should be greater than or equal to 0"),
        ({"most": "much"}, "most = 'much' does not fit"),
        ({"mots": 1}, "reward 'shouting' has no parameter 'mots'"),
    ],
)
def test_wrong_parameters(params: dict, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        SHOUTING(**params)


def test_an_unknown_parameter_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError) as e:
        SHOUTING(mots=1)
    assert e.value.hint == "did you mean 'most'? known: most, reference, style, weightless"


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"reward 'shouting' needs 'reference'.*\(row 1, prompt 'why'\)"):
        SHOUTING().score("x", 1, {"prompt": "why"})
    assert missing_columns(["reference", "tests"], ["answer"]) == ["tests"]


def test_open_signatures_get_every_column() -> None:
    seen = {}

    def fn(text, **columns):
        seen.update(columns)
        return 0.0

    reward_class(fn, "fn")().batch(["a"], {"text": ["data's own"], "tag": ["t"], "prompt": ["p"]})
    assert seen == {"tag": "t", "prompt": "p"}


def test_the_batch_signature_of_trl() -> None:
    made = reward_class(trl_style, "trl_style")(scale=2)
    assert made.columns == {"label"}
    columns = {"label": [1, 2], "other": [0, 0], "prompt": ["p", "p"], "completion_ids": [[1], [2]]}
    # completion_ids are TRL's own argument, so **kwargs gets them only beside the columns
    fn = reward_class(
        lambda prompts, completions, label, **kw: [len(kw["completion_ids"][0]) + n for n in label], "ids"
    )
    assert fn().batch(["abc", "d"], columns) == [2, 3]
    del columns["completion_ids"]
    assert made.batch(["abc", "d"], columns, extras={"trainer_state": None}) == [8, 6]


def test_batch_functions_see_conversations_where_the_prompt_is_one() -> None:
    made = reward_class(lambda completions, **kw: [len(c[0]["content"]) for c in completions], "chat")()
    assert made.batch(["abc"], {"prompt": [[{"role": "user", "content": "q"}]]}) == [3]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("1", "returned '1', which is not a number"),
        ([1.0], "not a number"),
        (1j, "not a number"),
        (math.nan, "returned nan, which is not finite"),
        (-math.inf, "not finite"),
        (10**400, "returned inf, which is not finite"),
        (1.5, r"returned 1.5, outside its range \[0, 1\]"),
    ],
)
def test_scores_outside_the_contract(value: object, what: str) -> None:
    made = reward_class(lambda text, values: values, "odd", range=(0, 1))()
    with pytest.raises(RewardError, match=rf"reward 'odd' .*{what}.*\(row 1, prompt 'second'\)") as e:
        made.batch(["a", "b"], {"values": [1, value], "prompt": ["first", "second"]})
    assert e.value.context == {"reward": "odd", "row": 1}


def test_a_reward_has_trls_signature() -> None:
    from aligntune.rewards import TRLReward, get_reward_function, register_custom_reward

    reward = get_reward_function("exact_match")
    talk = [[{"role": "assistant", "content": "72"}], [{"role": "assistant", "content": "7"}]]
    asked = [[{"role": "user", "content": "70 + 2?"}]] * 2
    more = {"answer": ["72"] * 2, "completion_ids": [[1], [2]], "trainer_state": None, "log_metric": print}
    assert reward(asked, talk, **more) == [1.0, 0.0]
    assert reward(prompts=asked, completions=talk, answer=["72", "7"]) == [1.0, 1.0]
    assert (reward.__name__, type(reward).__name__) == ("exact_match", "ExactMatchReward")
    with pytest.raises(ValidationError, match="reward 'exact_match' needs the column reference"):
        reward(asked, talk)
    assert TRLReward(reward)(asked, talk, answer=["72"] * 2) == [1.0, 0.0]
    with pytest.raises(ConfigurationError, match="neither a function nor a RewardFunction class"):
        register_custom_reward("made_already", reward)


def test_scores_inside_the_contract() -> None:
    import torch

    made = reward_class(lambda text, values: values, "fine", range=(0, 1))()
    values = [True, 1, None, torch.tensor(0.5), torch.tensor(1)]
    assert made.batch(["x"] * 5, {"values": values}) == [1.0, 1.0, None, 0.5, 1.0]


def test_a_reward_that_raises_names_itself_and_the_row() -> None:
    def broken(text):
        if text == "bad":
            raise KeyError("score")
        return 1.0

    made = reward_class(broken, "broken")()
    with pytest.raises(RewardError, match=r"reward 'broken' raised KeyError: 'score' \(row 1\)") as e:
        made.batch(["good", "bad"])
    assert isinstance(e.value.__cause__, KeyError)
    failures: list[RewardError] = []
    assert made.batch(["good", "bad", "good"], failures=failures) == [1.0, None, 1.0]
    assert len(failures) == 1


def test_sys_exit_in_a_reward_does_not_end_the_run() -> None:
    with pytest.raises(RewardError, match="raised SystemExit"):
        reward_class(lambda text: exit(), "quitter")().batch(["a"])


def test_batch_functions_must_score_each_row() -> None:
    made = reward_class(lambda completions: [1.0], "short")()
    with pytest.raises(RewardError, match=r"reward 'short' returned \[1.0\] for 2 completions"):
        made.batch(["a", "b"])
    failures: list[RewardError] = []
    assert made.batch(["a", "b"], failures=failures) == [None, None]
    assert len(failures) == 2


def test_a_hung_reward_is_an_error() -> None:
    release = threading.Event()

    def loop(text: str) -> float:
        while not release.is_set():  # Python code that never lets go by itself
            pass
        return 1.0

    for fn in (loop, lambda text: float(release.wait())):
        made = reward_class(fn, "hung", deadline=0.2)()
        with pytest.raises(RewardError, match=r"reward 'hung' overran its deadline: no result after 0\.2 s \(row 0\)"):
            made.batch(["a"])
    release.set()


def test_the_guard_gives_up_on_a_reward_that_always_hangs() -> None:
    release, guard = threading.Event(), Guard()
    for _ in range(MAX_ABANDONED):
        with pytest.raises(DeadlineExceeded, match="no result"):
            guard.call(release.wait, 0.01)
    with pytest.raises(DeadlineExceeded, match="4 earlier calls overran"):
        guard.call(lambda: 1, 5)
    release.set()
    for thread in guard._abandoned:
        thread.join(10)
    assert guard.call(lambda: 1, 5) == 1


def test_the_guard_hands_on_errors_and_reuses_its_thread() -> None:
    guard = Guard()
    with pytest.raises(ZeroDivisionError):
        guard.call(lambda: 1 / 0, 5)
    assert guard.call(threading.get_ident, 5) == guard.call(threading.get_ident, 5)


def test_subclasses_with_state() -> None:
    class Best(RewardFunction):
        def __init__(self, best: int) -> None:
            self.best = best

        def compute(self, text, **kwargs):
            count("seen")
            return float(len(text) == self.best)

    assert Best(2).batch(["ab", "a"], {"anything": [1, 2]}) == [1.0, 0.0]
    with pytest.raises(RewardError, match="raised NotImplementedError"):
        RewardFunction().batch(["a"])


def test_the_decorator_registers_once_and_keeps_the_function() -> None:
    def one(text: str) -> float:
        return 1.0

    try:
        assert reward("test_one")(one) is one
        reward("test_one")(one)  # a notebook cell, executed again
        with pytest.raises(ConfigurationError, match="reward 'test_one' is registered already") as refused:
            reward("test_one")(shouting)
        assert "replace=True" in refused.value.hint
        assert REWARDS.get("test_one")().compute("x") == 1.0
        assert REWARDS.get("test_one").range == (0, 1)
        reward("test_one", replace=True)(shouting)
        assert REWARDS.get("test_one").fn is shouting
        reward("test_one", replace=True)(one)
        assert REWARDS.get("test_one").deadline == 60
    finally:
        REWARDS.remove("test_one")


@pytest.mark.parametrize(
    ("fn", "options", "what"),
    [
        (lambda: 1.0, {}, "takes no text"),
        (lambda *, text: 1.0, {}, "takes no text"),
        (lambda text: 1.0, {"kind": "magic"}, "unknown kind 'magic'"),
        (lambda text: 1.0, {"range": (1, 1)}, r"declares the range \[1, 1\]"),
    ],
)
def test_what_cannot_be_a_reward(fn, options: dict, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        reward_class(fn, "odd", **options)


def test_generators_are_refused() -> None:
    def one(text):
        yield 1.0

    async def later(text):
        yield 1.0

    for fn in (one, later):
        with pytest.raises(ConfigurationError, match="is a generator"):
            reward_class(fn, "later")


def test_functions_of_a_module_pickle_with_their_options() -> None:
    made = pickle.loads(pickle.dumps(SHOUTING(most=0.25)))
    assert (made.params, made.range, made.kind) == ({"most": 0.25}, (0, 9), "measured")
    made.deadline = 5.0
    made.batch(["x"], {"reference": ["ab"]})  # starts the guard's thread, which cannot be pickled
    assert pickle.loads(pickle.dumps(made)).deadline == 5.0
