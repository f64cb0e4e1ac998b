"""What a policy does at each token of its own answers, and what its reference would have done there.

    rows = token_statistics(policy, reference, tokenizer, [(prompt, answer), ...], batch_size=8)
    rows[0]["kl"]          # exact KL(policy || reference) at each token of the answer, nats

For each pair of a prompt and an answer: `policy_logps`, `entropy`, and with a reference `reference_logps` and `kl`, one
number for each token of the answer (`aligntune.eval.metrics.policy` averages them). Both models see the same tokens,
without sampling settings: temperature 1, no truncation. Log-probabilities are of the raw distribution in fp32.

It does not generate; the end-of-sequence token counts only if it stands in `answer_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from aligntune.errors import ValidationError
from aligntune.eval.generation import evaluating


def token_statistics(
    policy: Any,
    reference: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    batch_size: int = 8,
) -> list[dict[str, list[float]]]:
    """Statistics of each answer's tokens.

    Args:
        policy: a causal language model.
        reference: the model that KL is measured against, or None.
        pairs: (prompt ids, answer ids), the prompt with at least one token.
        pad_id: token id for padding; its value does not matter.
        batch_size: sequences per forward pass.

    Returns:
        For each pair the lists named in the module, each as long as the answer.

    Raises:
        ValidationError: an empty prompt, or models with vocabularies of different size.
    """
    if any(not prompt for prompt, _ in pairs):
        raise ValidationError("a prompt has no token", hint="the first token of an answer needs one before it")
    results: list[dict[str, list[float]]] = [{} for _ in pairs]
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    with evaluating(policy), evaluating(reference) if reference is not None else nullcontext():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for i, row in zip(batch, _batch(policy, reference, [pairs[i] for i in batch], pad_id), strict=True):
                results[i] = row
    return results


def _batch(policy: Any, reference: Any, pairs: list[Any], pad_id: int) -> list[dict[str, list[float]]]:
    import torch

    device = next(policy.parameters()).device
    width = max(len(p) + len(a) for p, a in pairs)
    ids_BT = torch.full((len(pairs), width), pad_id, dtype=torch.long)
    real_BT = torch.zeros((len(pairs), width), dtype=torch.long)
    for i, (prompt, answer) in enumerate(pairs):
        row = torch.tensor([*prompt, *answer])
        ids_BT[i, : len(row)], real_BT[i, : len(row)] = row, 1
    ids_BT, real_BT = ids_BT.to(device), real_BT.to(device)
    logits_BTV = policy(input_ids=ids_BT, attention_mask=real_BT, use_cache=False).logits
    others_BTV = None
    if reference is not None:
        others_BTV = reference(input_ids=ids_BT, attention_mask=real_BT, use_cache=False).logits.to(device)
        if others_BTV.shape[-1] != logits_BTV.shape[-1]:
            raise ValidationError(
                f"the models have vocabularies of {logits_BTV.shape[-1]} and {others_BTV.shape[-1]} tokens",
                hint="KL is defined between models with one tokenizer: give the model that training started from",
            )
    out = []
    for i, (prompt, answer) in enumerate(pairs):
        # The logits at position t - 1 say what was likely at t.
        where = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        target_T = ids_BT[i, len(prompt) : len(prompt) + len(answer)]
        logp_TV = torch.log_softmax(logits_BTV[i, where].float(), dim=-1)
        p_TV = logp_TV.exp()
        row = {
            "policy_logps": logp_TV.gather(1, target_T[:, None])[:, 0].tolist(),
            # 0 log 0 is 0: a token of probability zero has a log-probability of minus infinity.
            "entropy": (-torch.where(p_TV > 0, p_TV * logp_TV, 0.0).sum(dim=-1)).tolist(),
        }
        if others_BTV is not None:
            logq_TV = torch.log_softmax(others_BTV[i, where].float(), dim=-1)
            row["reference_logps"] = logq_TV.gather(1, target_T[:, None])[:, 0].tolist()
            row["kl"] = torch.where(p_TV > 0, p_TV * (logp_TV - logq_TV), 0.0).sum(dim=-1).tolist()
        out.append(row)
    return out
