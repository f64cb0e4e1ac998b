"""Texts and tokens as vectors by a local encoder: `Embedder`.

    Embedder("models/all-MiniLM-L6-v2").embed(["a cat", "a kitten"])            # float32 [2, d], rows of length 1

The pooling is the one that the folder states in the layout of Sentence-Transformers (`1_Pooling/config.json`), and the
mean over tokens where it states none (Reimers and Gurevych 2019, arXiv:1908.10084, section 3). A folder with further
layers (`2_Dense`) is refused, because leaving them out would give other vectors. It knows no prompts for queries and
documents but the `prefix` that it is given.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.rewards.models.base import LocalModel

if TYPE_CHECKING:
    import numpy as np

Pooling = Literal["mean", "cls", "last"]
_STATED = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}


class Embedder(LocalModel):
    """An encoder that gives vectors.

    Args:
        path: a folder or hub id.
        pooling: mean of the token vectors, the first token's, or the last one's; None takes what the folder states.
        prefix: written before each text, as some models want ("query: ").
        options: as for `LocalModel`.
    """

    auto = "AutoModel"
    unused = (".pooler.",)
    what = "embedding model"

    def __init__(self, path: str, *, pooling: Pooling | None = None, prefix: str = "", **options: Any) -> None:
        super().__init__(path, **options)
        if pooling is not None and pooling not in get_args(Pooling):
            raise ConfigurationError(f"pooling is {pooling!r}", hint=f"one of {', '.join(get_args(Pooling))}")
        self.pooling, self.prefix = pooling, prefix

    def _stated_pooling(self) -> Pooling:
        """The pooling that the folder states; mean where it states none.

        Raises:
            ValidationError: it states layers or a pooling that are not here.
        """
        folder = Path(self.path).expanduser()
        layers = [p.name for p in sorted(folder.glob("[2-9]_*")) if not p.name.endswith("_Normalize")]
        if layers:
            raise ValidationError(
                f"{self.path} has layers after its pooling ({', '.join(layers)}), which are not read here",
                hint="take an embedding model of one encoder and a pooling",
            )
        stated = folder / "1_Pooling" / "config.json"
        if not stated.is_file():
            return "mean"
        modes = [
            k
            for k, v in json.loads(stated.read_text(encoding="utf-8")).items()
            if k.startswith("pooling_mode") and v is True
        ]
        if len(modes) != 1 or modes[0] not in _STATED:
            raise ValidationError(
                f"{stated} states the pooling {', '.join(modes) or 'none'}, which is not read here",
                hint=f"choose one yourself: pooling: {', '.join(get_args(Pooling))}",
            )
        return _STATED[modes[0]]  # type: ignore[return-value]

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """One vector of length 1 for each text: float32 [N, d]."""
        import numpy as np
        import torch

        model, _, _ = self.load()
        pooling = self.pooling or self._stated_pooling()
        rows = self.encode([self.prefix + text for text in texts])
        found = np.zeros((len(rows), model.config.get_text_config().hidden_size), dtype=np.float32)
        with torch.no_grad():
            for part, tensors in self.batches(rows):
                states = model(**tensors).last_hidden_state.float()
                mask = tensors["attention_mask"]
                if pooling == "mean":
                    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                elif pooling == "cls":
                    pooled = states[:, 0]
                else:
                    pooled = states[torch.arange(len(part), device=states.device), mask.sum(1) - 1]
                found[part] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return found

    def tokens(self, texts: Sequence[str], layer: int) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """The vectors of each text's tokens at a layer.

        Args:
            texts: N texts.
            layer: 0 is the embedding layer, 1 the first block, and so on.

        Returns:
            N pairs: float32 [T, d] with rows of length 1, special tokens included; bool [T], False for special tokens.

        Raises:
            ConfigurationError: the model has no such layer.
        """
        import numpy as np
        import torch

        model, tokenizer, _ = self.load()
        depth = model.config.get_text_config().num_hidden_layers
        if not 0 <= layer <= depth:
            raise ConfigurationError(f"{self.path} has no layer {layer}", hint=f"its layers are 0 to {depth}")
        special = set(tokenizer.all_special_ids)
        rows = self.encode([self.prefix + text for text in texts])
        found: list[Any] = [None] * len(rows)
        with torch.no_grad():
            for part, tensors in self.batches(rows):
                states = model(**tensors, output_hidden_states=True).hidden_states[layer].float()
                states = torch.nn.functional.normalize(states, dim=-1).cpu().numpy()
                for place, i in enumerate(part):
                    ids = rows[i]["input_ids"]
                    found[i] = (
                        states[place, : len(ids)],
                        np.array([token not in special for token in ids], dtype=bool),
                    )
        return found
