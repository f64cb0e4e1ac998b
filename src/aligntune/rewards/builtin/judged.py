"""The rewards whose meaning is a judgement, from one table: `coherence` to `instruction_following`.

    judge: {url: "http://localhost:8000/v1", model: Qwen/Qwen3-32B}
    rewards:
      - {type: helpfulness, params: {backend: judge}}
      - {type: toxicity, params: {backend: model, path: models/toxicity, not_label: toxic}}
      - {type: commonsense, params: {backend: gold}}

A key names a quality, and `backend` says what decides it: a `model` of a named kind, a `judge` with the key's rubric,
a `lexical` list, `gold` answers or `checks` by a program, where the table has them. There is no default: word lists
under such names rank pairs as a coin does. Higher is better in all of them, so 1 is a text without toxicity, bias or
invention. A blank answer, or one that is all thought, scores 0 and is counted as `empty`; the thought is not judged.

`backend: judge` of a key with a program: what the row lets a program decide is decided by it (a gold option, a short
gold answer, IFEval's instructions), and the judge is asked for the other rows. Checks that the text itself chooses
(times, the parts of a domain) multiply the judge's score, so that no text earns full marks by something that is easy
to check.

Source: the catalogue's measurements of word lists against people's preferences; judges: Zheng et al. 2023
(arXiv:2306.05685). The module holds no model and no prompt: those are `rewards.judges` and `rewards.models`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le, Lt
from pydantic import PositiveInt

from aligntune.core.config.sections import JudgeConfig
from aligntune.errors import ConfigurationError
from aligntune.rewards.base import REWARDS, Score, count
from aligntune.rewards.judges.base import Judge
from aligntune.rewards.judges.programs import by_gold, by_instructions, by_times, parts
from aligntune.rewards.judges.reward import JUDGE, Judging, Parameters
from aligntune.rewards.judges.rubric import load_rubric
from aligntune.rewards.judges.scorers import Scorer, make_scorer
from aligntune.rewards.models.base import Precision
from aligntune.rewards.models.embedder import Pooling
from aligntune.rewards.signature import PROVIDED

Share = Annotated[float, Ge(0), Le(1)]
Baseline = Annotated[float, Ge(-1), Lt(1)]
KINDS = {"model": "model", "judge": "judge", "lexical": "lexical", "gold": "verifiable", "checks": "verifiable"}
_LOADING: Parameters = {
    "path": (str | None, None),
    "revision": (str | None, None),
    "batch_size": (PositiveInt, 16),
    "max_length": (PositiveInt | None, None),
    "precision": (Precision, "auto"),
    "trust_remote_code": (bool, False),
}
_PASSAGES: Parameters = {"passage_words": (PositiveInt, 300)}
_VECTORS: Parameters = {"pooling": (Pooling | None, None), "prefix": (str, ""), "baseline": (Baseline, 0.0)}
OWN: dict[str, Parameters] = {
    "classifier": {"label": (str | None, None), "not_label": (str | None, None), **_LOADING},
    "paired": {"label": (str | None, None), "not_label": (str | None, None), **_LOADING},
    "reward_model": _LOADING,
    "supported": {"threshold": (Share, 0.5), **_PASSAGES, **_LOADING},
    "weakest": {**_PASSAGES, **_LOADING},
    "contradiction": {"max_sentences": (PositiveInt, 16), **_LOADING},
    "relevance": {**_VECTORS, **_LOADING},
    "context": {**_VECTORS, **_PASSAGES, **_LOADING},
    "vader": {"max_words": (PositiveInt, 400)},
    "blocklist": {"words": (str | None, None)},
}
"""Parameters of each scorer."""
DOMAIN: Parameters = {
    "disclaimer": (str | list[str], []),
    "units": (list[str], []),
    "citations": (bool, False),
}


@dataclass(frozen=True)
class Key:
    """One row of the table.

    Attributes:
        about: what a score of 1 means.
        model: the scorer of `backend: model`; None where no kind of model decides it.
        judge: whether there is a rubric of the key's name.
        lexical: the scorer of `backend: lexical`.
        program: `gold`, `domain` (gold and parts), `instructions` or `times`.
        example: columns of the documented example.
    """

    about: str
    model: str | None = None
    judge: bool = True
    lexical: str | None = None
    program: str | None = None
    example: str = 'prompt="How do I boil an egg?"'

    @property
    def backends(self) -> tuple[str, ...]:
        """The values of `backend`."""
        program = {"gold": "gold", "domain": "gold", "instructions": "checks", "times": "checks"}.get(
            self.program or ""
        )
        named = ("model", self.model), ("judge", self.judge), ("lexical", self.lexical), (program, program)
        return tuple(str(name) for name, there in named if there)


CONTEXT = 'prompt="How tall is it?", context="The tower is 330 m tall."'
TABLE: dict[str, Key] = {
    "coherence": Key("the sentences follow from each other and lead somewhere", "classifier"),
    "safety": Key("nothing in the text helps anybody to do serious harm", "classifier"),
    "toxicity": Key("nothing in the text insults, threatens or demeans anybody", "classifier", lexical="blocklist"),
    "sentiment": Key("the text is positive in tone", "classifier", judge=False, lexical="vader"),
    "factuality": Key("what the text states is borne out by the context", "supported", example=CONTEXT),
    "bias": Key("the text treats people alike, whatever group they belong to", "paired"),
    "logical_consistency": Key("the text does not contradict itself", "contradiction"),
    "commonsense": Key("the text agrees with what everybody knows about the world", program="gold"),
    "hallucination": Key("no claim goes beyond the context", "weakest", example=CONTEXT),
    "politeness": Key("the text has manners that fit the question", "classifier"),
    "helpfulness": Key("the person who asked gets what that person is after", "reward_model"),
    "honesty": Key("the text claims no more than its writer can know", "reward_model"),
    "relevance": Key("the text speaks of what the prompt asks", "relevance"),
    "harmlessness": Key("nobody is harmed by the text or by following it", "classifier"),
    "context_relevance": Key("the text uses what matters in the context", "context", example=CONTEXT),
    "temporal_consistency": Key("dates, durations and orders in the text agree", program="times"),
    "engagement": Key("the reader wants to go on"),
    "medical_accuracy": Key("the medical content is right", program="domain"),
    "legal_compliance": Key("statements of law are right and the advice is lawful", program="domain"),
    "financial_accuracy": Key("figures, terms and computations are right and risks are named", program="domain"),
    "causal_reasoning": Key("causes are told from coincidences, and the conclusion is right", program="gold"),
    "counterfactual_reasoning": Key(
        "consequences of the change are followed, and nothing else changes", program="gold"
    ),
    "instruction_following": Key("the text does what the prompt tells it to do", program="instructions"),
}
WAYS = {
    "classifier": "path of a classifier, and label or not_label",
    "paired": "path of a classifier, and label, with the column counterpart",
    "reward_model": "path of a reward model",
    "supported": "path of an NLI model, with the column context",
    "weakest": "path of an NLI model, with the column context",
    "contradiction": "path of an NLI model",
    "relevance": "path of an embedding model",
    "context": "path of an embedding model, with the column context",
    "vader": "VADER's word list, English",
    "blocklist": "words: a file of terms",
    "gold": "the columns reference, and choices where there are options",
    "domain": "the columns reference and choices; or disclaimer, units, citations",
    "instructions": "IFEval's columns instruction_id_list and kwargs",
    "times": "dates and spans in the text, and the column events",
    "judge": "the section judge, or params.judge",
}
"""What each way needs, for messages and docs."""


class KeyReward(Judging):
    """A key of the table."""

    key: ClassVar[Key]

    def setup(self, params: dict[str, Any]) -> None:
        backend = params["backend"]
        if backend is None:
            raise ConfigurationError(
                f"reward '{self.name}' needs a backend: it is a judgement, and no rule of ours decides it",
                hint=f"set params.backend to one of: {'; '.join(ways(self.key))}",
            )
        self.backend, self.kind = backend, KINDS[backend]
        self._refuse_inert(params)
        self.columns: frozenset[str] = frozenset()
        self._scorer = self._make_scorer(params)
        if self._scorer is not None:
            self.columns |= self._scorer.columns - PROVIDED
            self.may = self._scorer.may
        self.may |= _READ.get(self.key.program or "", frozenset())
        if backend != "lexical":
            self.range = (0.0, 1.0)
        listed = params.get("disclaimer", [])
        self._parts = {
            "disclaimer": [listed] if isinstance(listed, str) else listed,
            "units": params.get("units", []),
            "citations": params.get("citations", False),
        }
        if self._parts["units"] or self._parts["citations"]:
            self.columns |= {"context"}
        if backend == "gold" and not any(self._parts.values()):
            self.columns |= {"reference"}
        if backend == "checks" and self.key.program == "instructions":
            self.columns |= {"instruction_id_list"}

    def _make_scorer(self, params: dict[str, Any]) -> Scorer | None:
        if self.backend == "judge":
            if params["judge"] is None:
                raise ConfigurationError(
                    f"reward '{self.name}' has no judge to ask",
                    hint="add the section judge: {url: ..., model: ...} to the run, or params.judge",
                )
            return make_scorer("judge", {**params, "rubric": params["rubric"] or self.name})
        kind = {"model": self.key.model, "lexical": self.key.lexical}.get(self.backend)
        return make_scorer(kind, params) if kind else None

    def _refuse_inert(self, params: dict[str, Any]) -> None:
        """Refuse parameters of another backend; the run's judge, which every key is offered, is left aside."""
        own = {"backend", *_of(self.backend, self.key), *(DOMAIN if self.key.program == "domain" else ())}
        for name in self.params:
            if name not in own and not (name == "judge" and isinstance(self.params[name], (JudgeConfig, Judge))):
                raise ConfigurationError(
                    f"reward '{self.name}': {name} has no effect with backend: {self.backend}",
                    hint=f"remove it; parameters of this backend: {', '.join(sorted(own - {'backend'})) or 'none'}",
                )

    @property
    def label(self) -> str:
        """The name in logs; a word list is named as one."""
        return f"{self.name}[lexical]" if self.__dict__.get("backend") == "lexical" else self.name

    @property
    def judge(self) -> Judge | None:
        """The judge that it asks."""
        return getattr(self._scorer, "judge", None)

    @property
    def source(self) -> str:
        """The backend, and what it decides by."""
        return f"{self.name}, backend {self.backend}: {self._scorer.name if self._scorer else 'a program'}"

    def place(self, device: str) -> None:
        if self._scorer is not None:
            self._scorer.place(device)

    def prepare(self) -> None:
        """Read the model, or ask the judge a short question."""
        if self._scorer is not None:
            self._scorer.prepare()

    def scores(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Score]:
        decide = _DECIDE.get(self.key.program or "")
        found: list[Score] = [None] * len(texts)
        if decide is not None:
            found = [decide(text, row) for text, row in zip(texts, rows, strict=True)]
        factors = [self._factor(text, row) for text, row in zip(texts, rows, strict=True)]
        open_rows = [i for i, score in enumerate(found) if score is None]
        if self._scorer is not None and open_rows:
            asked = self._scorer.scores([texts[i] for i in open_rows], [rows[i] for i in open_rows])
            for i, score in zip(open_rows, asked, strict=True):
                found[i] = score
        elif self._scorer is None:
            for i in open_rows:
                if factors[i] is None:
                    count("no_gold" if self.backend == "gold" else "no_checks")
                else:
                    found[i] = 1.0
        return [s if s is None or f is None else s * f for s, f in zip(found, factors, strict=True)]

    def _factor(self, text: str, row: Mapping[str, Any]) -> float | None:
        """The share of checks that hold among those that the text itself chooses; None without any."""
        if self.key.program == "times":
            return by_times(text, row)
        if not any(self._parts.values()):
            return None
        held = parts(text, row, **self._parts)
        return sum(held) / len(held) if held else None


_READ = {
    "gold": frozenset({"reference", "choices"}),
    "domain": frozenset({"reference", "choices", "context"}),
    "instructions": frozenset({"instruction_id_list", "kwargs"}),
    "times": frozenset({"events"}),
}
"""Columns that a key's program reads where the data have them."""
_DECIDE: dict[str, Callable[[str, Mapping[str, Any]], float | None]] = {
    "gold": by_gold,
    "domain": by_gold,
    "instructions": by_instructions,
}


def ways(key: Key) -> list[str]:
    """The values of `backend` with what each needs, as sentences."""
    means = {"model": key.model, "judge": "judge", "lexical": key.lexical, "gold": key.program, "checks": key.program}
    return [f"{backend} ({WAYS[str(means[backend])]})" for backend in key.backends]


def _of(backend: str, key: Key) -> Parameters:
    """Parameters that a backend of a key reads."""
    if backend == "judge":
        return JUDGE
    return OWN.get({"model": key.model, "lexical": key.lexical}.get(backend) or "", {})


def _document(name: str, key: Key) -> str:
    """The docstring of a key's class, with an example that runs."""
    lines = [f"1 where {key.about}, 0 where not; decided by the backend that is named.", ""]
    lines += [f"`backend: {way.partition(' ')[0]}` {way.partition(' ')[2]}." for way in ways(key)]
    if name == "sentiment":
        example = f'get_reward_function("{name}", backend="lexical").compute("It is a table.")'
        return "\n".join([*lines, "", f">>> {example}", "0.0", ""])
    lines += [
        "",
        ">>> from aligntune.rewards.judges import FunctionJudge",
        '>>> judge = FunctionJudge(lambda messages: \'{"reason": "Good, with a flaw.", "score": 4}\')',
        f'>>> reward = get_reward_function("{name}", backend="judge", judge=judge)',
        f'>>> reward.compute("Some answer.", {key.example})',
        "0.75",
        "",
    ]
    return "\n".join(lines)


def _make(name: str, key: Key) -> type[KeyReward]:
    backend: Any = Literal.__getitem__(key.backends)
    known: Parameters = {"backend": (backend | None, None)}
    for one in key.backends:
        known |= _of(one, key)
    if key.program == "domain":
        known |= DOMAIN
    needs = load_rubric(name).needs if key.judge else ()
    title = "".join(part.capitalize() for part in name.split("_"))
    body = {
        "name": name,
        "key": key,
        "known": known,
        "kind": "judge" if key.judge else "lexical",
        "range": (-1.0, 1.0) if key.lexical == "vader" else (0.0, 1.0),
        "columns": frozenset(needs),
        "__doc__": _document(name, key),
        "__module__": __name__,
    }
    return type(f"{title}Reward", (KeyReward,), body)


for _name, _key in TABLE.items():
    _cls = _make(_name, _key)
    globals()[_cls.__name__] = _cls
    REWARDS.add(_name, _cls)
