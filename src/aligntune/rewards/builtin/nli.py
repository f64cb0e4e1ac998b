"""A reward by natural language inference: `grounded_nli`.

    rewards: [{type: grounded_nli, params: {path: models/nli}}]      # the data have a column `context`

A text is grounded as far as its sentences follow from the row's context, by a named NLI model. It knows nothing of the
world: a true sentence that the context does not bear out counts as unsupported.

Source: the greatest entailment over pieces of the context, as SummaC-ZS has it (Laban et al. 2022, arXiv:2111.09525,
section 3.1), thresholded and averaged over sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Gt, Le
from pydantic import PositiveInt

from aligntune.grading.extract import strip_reasoning
from aligntune.grading.text import sentences
from aligntune.rewards.base import REWARDS, Score, count
from aligntune.rewards.models.base import Precision
from aligntune.rewards.models.classifier import NLI
from aligntune.rewards.models.reward import ModelReward

CLAIMS = 64
"""Sentences of a text that are judged; a longer text is counted as `truncated`."""
Share = Annotated[float, Gt(0), Le(1)]


def passages(context: str, words: int) -> list[str]:
    """The context in pieces of whole sentences, of at most `words` words each; a longer sentence is a piece of its own.

    >>> passages("One two. Three four five. Six.", 4)
    ['One two.', 'Three four five. Six.']
    """
    found: list[list[str]] = []
    size = 0
    for sentence in sentences(context):
        length = len(sentence.split())
        if not found or size + length > words:
            found.append([])
            size = 0
        found[-1].append(sentence)
        size += length
    return [" ".join(part) for part in found]


def context_text(value: Any) -> str:
    """A context column as one text: a text, or a list of texts (of documents with `text` or `content`)."""
    if isinstance(value, dict):
        value = value.get("text", value.get("content"))
    if isinstance(value, (list, tuple)):
        return "\n".join(part for part in map(context_text, value) if part)
    return str(value).strip() if value is not None else ""


def support(nli: NLI, claims: Sequence[Sequence[str]], contexts: Sequence[str], words: int) -> list[list[float]]:
    """The greatest probability of entailment of each claim over the passages of its context.

    Args:
        nli: the model.
        claims: N lists of sentences.
        contexts: N contexts.
        words: most words of a passage.

    Returns:
        N lists, one number for each claim.
    """
    pairs: dict[tuple[str, str], int] = {}
    parts = [passages(context, words) for context in contexts]
    for row, own in zip(claims, parts, strict=True):
        for claim in row:
            for part in own:
                pairs.setdefault((part, claim), len(pairs))
    found = nli.probabilities(list(pairs))
    return [
        [max((found[pairs[part, claim]][0] for part in own), default=0.0) for claim in row]
        for row, own in zip(claims, parts, strict=True)
    ]


class GroundedNliReward(ModelReward):
    """Share of the text's sentences that follow from the row's `context`, by a named NLI model.

    A sentence counts where its greatest probability of entailment over the passages of the context is at least
    `threshold`. An empty text scores 0; a row without context is None (counted as `no_context`). Short safe sentences
    are rewarded too: combine it with a reward that wants content.

    Args:
        path: a folder or hub id of a classifier with the labels entailment, neutral and contradiction.
        threshold: least probability; 0.5 is where entailment outweighs the two others together.
        passage_words: most words of a passage; 300 and a sentence fit the 512 tokens of encoders.
        revision: branch, tag or commit of the hub repository.
        batch_size: pairs per forward pass.
        max_length: most tokens of a pair; of a longer one the longer part is cut and counted (`truncated`).
        precision: of the weights; auto is bf16 on a GPU that has it, fp16 on an older one, fp32 on the CPU.
        trust_remote_code: run Python code from the model's repository. Only for code that you have read.
    """

    name = "grounded_nli"
    range = (0.0, 1.0)
    columns = frozenset({"context"})

    def setup(
        self,
        path: str,
        *,
        threshold: Share = 0.5,
        passage_words: PositiveInt = 300,
        revision: str | None = None,
        batch_size: PositiveInt = 16,
        max_length: PositiveInt | None = None,
        precision: Precision = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        self.threshold, self.passage_words = threshold, passage_words
        self.model = NLI(
            path,
            revision=revision,
            batch_size=batch_size,
            max_length=max_length,
            precision=precision,
            trust_remote_code=trust_remote_code,
        )
        self.scorers = {"nli": self.model}

    def scores(self, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Score]:
        """Shares of supported sentences, N."""
        contexts = [context_text(value) for value in self.column(columns, "context")]
        claims = [sentences(strip_reasoning(text)) for text in texts]
        for i, context in enumerate(contexts):
            if not context:
                count("no_context")
            if not context or len(claims[i]) > CLAIMS:
                if context:
                    count("truncated")
                claims[i] = claims[i][: CLAIMS if context else 0]
        found = support(self.model, claims, contexts, self.passage_words)
        return [
            None if not context else sum(p >= self.threshold for p in row) / len(row) if row else 0.0
            for context, row in zip(contexts, found, strict=True)
        ]


REWARDS.add(GroundedNliReward.name, GroundedNliReward)
