r"""Counterfactual GRPO: credit to the parts of the reasoning that the answer depends on (arXiv:2602.09331).

The loss is GRPO's, with a weight on the policy term of each token (never on its KL term):

1. the answer begins at the last answer marker, and includes it; what stands before is the reasoning;
2. candidate spans of the reasoning: arithmetic expressions, then sentences, at most `max_spans`;
3. S(y) is the sum of log pi over the answer's tokens; drop_s = S(y) - S(y with the span's tokens replaced by the
   padding token, attended as usual);
4. importance of a token = max(drop_s, 0) of its span, divided by the completion's largest; 0 outside spans;
5. weight = min_weight + (boost_factor - min_weight) x importance in the reasoning, answer_weight in the answer, all
   divided by their mean over the completion (`conserve_gradient`).

Worked example. Two spans of two tokens with the drops 3 and -1 nats, one token between them, an answer of one token:
importance 1, 1, 0, 0, 0; weights 2, 2, 0.5, 0.5, 0.5, 1.5, divided by their mean 7/6.

Cost: 1 + (number of spans) forward passes of one sequence for each completion with a marker, without gradient, in
batches of `train.per_device_batch_size`; `random` and `uniform` need none. It does not judge the answer, which is the
rewards' part.
"""

from __future__ import annotations

import random
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from aligntune.algorithms import spans
from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.grpo import GRPO
from aligntune.algorithms.plugin import Plugin
from aligntune.algorithms.scoring import in_batches
from aligntune.algorithms.spans import Mode
from aligntune.errors import TrainingError

MARKERS = ("####", "\\boxed", "final answer", "<answer>")
PATIENCE = 20
"""Optimizer steps after which a run without a single marker is an error."""
Deletion = tuple[int, int, list[int]]
"""Row of the batch, index of its first answer token, and the tokens to replace (none: the completion as it is)."""


@algorithm("counterfactual_grpo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class CounterfactualGRPO(GRPO):
    """GRPO whose policy term weighs each token by how much the answer depends on its span."""

    mode: Mode = "counterfactual"
    """What importance is: the drop of the answer's likelihood (the paper), a seeded draw, the opposite, or none: the
    last three are for ablation."""
    answer_markers: Annotated[list[Annotated[str, MinLen(1)]], MinLen(1)] = Field(default_factory=lambda: list(MARKERS))
    """Text that begins the answer, capitals aside; the last one counts (of GSM8K, MATH and DeepSeek-R1)."""
    max_spans: PositiveInt = 10
    """Most spans tried per completion, each of which costs one forward pass (the paper)."""
    min_weight: NonNegativeFloat = 0.5
    """Weight of reasoning without importance (the paper)."""
    boost_factor: PositiveFloat = 2.0
    """Weight of the most important span (the paper)."""
    answer_weight: NonNegativeFloat = 1.5
    """Weight of the answer's tokens (the paper)."""
    conserve_gradient: bool = True
    """Divide the weights by their mean over the completion, so that its gradient keeps its size (the paper)."""

    def plugin(self, config: Any) -> Plugin:
        return CounterfactualPlugin(self)

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = super().inert_keys(config)
        if self.mode != "uniform":
            return keys
        named = ("answer_markers", "max_spans", "min_weight", "boost_factor", "answer_weight", "conserve_gradient")
        return {**keys, **{f"algo.{name}": "algo.mode uniform weighs every token 1" for name in named}}

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        if self.boost_factor < self.min_weight:
            found.append(
                (
                    "algo.boost_factor",
                    f"{self.boost_factor:g} is below algo.min_weight {self.min_weight:g}, which would weigh the "
                    "important spans least; set algo.mode inverted for that",
                )
            )
        if self.min_weight == self.answer_weight == 0 and self.mode != "uniform":
            found.append(("algo.min_weight", "and algo.answer_weight are both 0, so most tokens would teach nothing"))
        return found


class CounterfactualPlugin(Plugin):
    """Token weights from span deletion.

    Logged for each batch of completions: `counterfactual/marked` (share with an answer marker), `counterfactual/spans`
    (mean per marked completion), `counterfactual/positive` (share of the spans with a positive drop) and
    `counterfactual/forward_rows` (sequences scored without gradient, per process).
    """

    def __init__(self, params: CounterfactualGRPO) -> None:
        self.params = params
        self.marked = 0
        self.unmarked = 0
        self.batches = 0

    def state(self) -> dict[str, Any]:
        return {"marked": self.marked, "unmarked": self.unmarked, "batches": self.batches}

    def load_state(self, state: dict[str, Any]) -> None:
        self.marked, self.unmarked, self.batches = (int(state[k]) for k in ("marked", "unmarked", "batches"))

    def token_weights(self, out: dict[str, Any]) -> Any:
        """(B, T) weights of the policy term; None in evaluation and in mode uniform, where they would all be 1."""
        import torch

        if not self.training or self.params.mode == "uniform":
            return None
        mask, ids = out["completion_mask"], out["completion_ids"]
        lengths = [int(n) for n in mask.sum(1)]
        parts = [self._parts(ids[i, :n].tolist()) for i, n in enumerate(lengths)]
        drops = self._drops(out, parts)
        weights = torch.ones(mask.shape, dtype=torch.float32)
        for i, (part, drop) in enumerate(zip(parts, drops, strict=True)):
            if part is not None:
                weights[i, : lengths[i]] = torch.tensor(self._weights(lengths[i], part, drop, i))
        self._count(parts, drops)
        self.batches += 1
        return weights.to(mask.device)

    def _parts(self, ids: list[int]) -> tuple[list[list[int]], int] | None:
        """Tokens of each span and index of the first answer token; None without a marker."""
        tokenizer = self.trainer.processing_class

        def decode(part: list[int]) -> str:
            return str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        if not ids or spans.answer_start(decode(ids), self.params.answer_markers) is None:
            return None
        text, ranges = spans.align(decode, ids)
        begin = spans.answer_start(text, self.params.answer_markers)
        if begin is None:  # the marker stood on bytes that form no character
            return None
        first = spans.first_answer_token(ranges, begin)
        found = spans.candidate_spans(text, begin, self.params.max_spans)
        return spans.tokens_of(found, ranges, first), first

    def _weights(self, length: int, part: tuple[list[list[int]], int], drops: list[float], row: int) -> list[float]:
        p, (held, first) = self.params, part
        rng = None
        if p.mode == "random":
            place = self.trainer.accelerator.process_index
            rng = random.Random(f"{self.config.train.seed}:{self.batches}:{place}:{row}")
        return spans.token_weights(
            length,
            held,
            spans.span_importance(drops, p.mode, rng),
            first,
            mode=p.mode,
            min_weight=p.min_weight,
            boost_factor=p.boost_factor,
            answer_weight=p.answer_weight,
            conserve_gradient=p.conserve_gradient,
        )

    # ---- span deletion ---------------------------------------------------------------------------------------

    def _drops(self, out: dict[str, Any], parts: list[Any]) -> list[list[float]]:
        """S(y) - S(y without the span) for each span of each completion; zeros where the mode needs none."""
        empty = [[0.0] * len(part[0]) if part else [] for part in parts]
        if self.params.mode == "random":
            return empty
        jobs: list[Deletion] = [
            (row, part[1], tokens)
            for row, part in enumerate(parts)
            if part is not None and part[0]
            for tokens in [[], *part[0]]
        ]
        scores = in_batches(self, jobs, lambda model, batch: self._score(model, out, batch), (0, 0, []))
        self.log("counterfactual/forward_rows", len(jobs))
        drops, position = empty, 0
        for row, part in enumerate(parts):
            if part is not None and part[0]:
                whole, *without = scores[position : position + 1 + len(part[0])]
                drops[row] = [whole - s for s in without]
                position += 1 + len(part[0])
        return drops

    def _score(self, model: Any, out: dict[str, Any], batch: list[Deletion]) -> list[float]:
        """One forward pass: the log-probability of each job's answer."""
        import torch

        rows = torch.tensor([row for row, _, _ in batch], device=out["completion_ids"].device)
        ids, mask = out["completion_ids"][rows].clone(), out["completion_mask"][rows]
        padding = self.trainer.processing_class.pad_token_id
        for i, (_, _, tokens) in enumerate(batch):
            ids[i, tokens] = padding
        width = max(int(mask.sum(1).max()), 1)
        first = min(min(begin for _, begin, _ in batch), width - 1)  # logits are wanted from here on only
        inputs = {
            "prompt_ids": torch.cat([out["prompt_ids"][rows], ids[:, :first]], dim=1),
            "prompt_mask": torch.cat([out["prompt_mask"][rows], mask[:, :first]], dim=1),
            "completion_ids": ids[:, first:width],
            "completion_mask": mask[:, first:width],
        }
        logps = self.backend.per_token_logps(model, inputs, self.trainer.temperature)
        place = torch.arange(first, width, device=logps.device)
        begins = torch.tensor([begin for _, begin, _ in batch], device=logps.device)
        counted = (place >= begins.unsqueeze(1)) & mask[:, first:width].bool()
        summed = torch.where(counted, logps.double(), 0.0).sum(1)
        return [float(s) for s in summed]

    # ---- counting --------------------------------------------------------------------------------------------

    def _tensor(self, values: list[int]) -> Any:
        import torch

        return torch.tensor([values], device=self.trainer.accelerator.device)

    def _count(self, parts: list[Any], drops: list[list[float]]) -> None:
        """Count completions with and without a marker on all processes; stop a run that never sees one.

        Raises:
            TrainingError: no completion had a marker in `PATIENCE` steps.
        """
        with_marker = [p for p in parts if p is not None]
        tried = sum(len(d) for d in drops)
        local = [len(with_marker), len(parts), tried, sum(x > 0 for d in drops for x in d)]
        marked, rows, tried, positive = self.trainer.accelerator.gather(self._tensor(local)).sum(0).tolist()
        self.marked += marked
        self.unmarked += rows - marked
        self.log("counterfactual/marked", marked / rows)
        self.log("counterfactual/spans", tried / max(marked, 1))
        if self.params.mode != "random":
            self.log("counterfactual/positive", positive / max(tried, 1))
        if self.marked == 0 and self.trainer.state.global_step + 1 >= PATIENCE:
            raise TrainingError(
                f"none of {self.unmarked} completions in {PATIENCE} steps had an answer marker "
                f"({', '.join(self.params.answer_markers)}), so this run is plain GRPO",
                hint="set algo.answer_markers to what your answers begin with, ask for one in the prompt, teach the "
                "format by supervised training first, or set `algo: grpo`",
            )
