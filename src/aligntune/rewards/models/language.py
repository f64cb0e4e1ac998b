"""The likelihood of texts under a named causal language model: `ReferenceLM`.

    nats, tokens = ReferenceLM("models/gpt2").log_likelihood(["It rains."])[0]
    math.exp(nats / tokens)         # perplexity per token of that model's tokenizer

nats = - sum over t of log p(x_t | x_<t) (Jelinek et al. 1977). The first token counts where the tokenizer puts a
beginning-of-sequence token before it, and is the condition of the others where it does not. Perplexities of models with
different tokenizers do not compare. It is no policy: its weights are those on disk and never change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aligntune.rewards.models.base import LocalModel

MAX_LOGITS = 2**27
"""Most logits at once: 0.5 GiB in fp32, however large the vocabulary."""


class ReferenceLM(LocalModel):
    """A causal language model that scores texts; arguments as for `LocalModel`."""

    auto = "AutoModelForCausalLM"
    what = "causal language model"

    def log_likelihood(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """For each text its negative log-likelihood in nats, summed, and the number of tokens that are summed over.

        Args:
            texts: N texts. One without a token to predict gives (0.0, 0).

        Returns:
            N pairs (nats >= 0, tokens), in order; of a text beyond the model's length only the beginning counts, and
            the cut is counted as `truncated`.
        """
        import torch
        from torch.nn.functional import cross_entropy

        if not texts:
            return []
        model, _, _ = self.load()
        rows = [{"input_ids": row["input_ids"]} for row in self.encode(texts)]
        found = [(0.0, 0)] * len(rows)
        long = [i for i, row in enumerate(rows) if texts[i] and len(row["input_ids"]) > 1]
        widest = max((len(rows[i]["input_ids"]) for i in long), default=1)
        size = max(1, min(self.batch_size, MAX_LOGITS // (widest * model.config.get_text_config().vocab_size)))
        with torch.no_grad():
            for part, tensors in self.batches([rows[i] for i in long], size):
                logits = model(**tensors).logits
                for place, row in enumerate(part):
                    ids = tensors["input_ids"][place, : len(rows[long[row]]["input_ids"])]
                    nats = cross_entropy(logits[place, : len(ids) - 1].float(), ids[1:], reduction="none")
                    found[long[row]] = (float(nats.double().sum()), len(ids) - 1)
        return found

    def perplexities(self, texts: Sequence[str]) -> list[float | None]:
        """exp(nats / tokens) of each text; None where it has no token to predict."""
        return [math.exp(nats / n) if n else None for nats, n in self.log_likelihood(texts)]
