"""Texts and tokens as vectors by a local encoder: `Embedder`.

    Embedder("models/all-MiniLM-L6-v2").embed(["a cat", "a kitten"])            # float32 [2, d], rows of length 1

The pooling is the one that the folder or repository states in the layout of Sentence-Transformers (`modules.json`,
`1_Pooling/config.json`), and the mean over tokens where it states none (Reimers and Gurevych 2019, arXiv:1908.10084,
section 3). Further layers (`2_Dense`) are refused, because leaving them out would give other vectors. It knows no
prompts for queries and documents but the `prefix` that it is given.
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
_STATED: dict[str, Pooling] = {
    "mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls", "lasttoken": "last",
}  # fmt: skip


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

    def _check(self, model: Any) -> None:
        if model.config.is_encoder_decoder:
            raise ValidationError(
                f"{self.path} is an encoder with a decoder, which gives no vectors by itself",
                hint="take an embedding model of one encoder",
            )

    def _stated_pooling(self) -> Pooling:
        """The pooling that folder or repository state in the layout of Sentence-Transformers; mean without one.

        Raises:
            ValidationError: layers or a pooling that are not read here.
            ConfigurationError: the repository cannot be asked.
        """
        modules = self._stated("modules.json")
        listed = [{"path": "1_Pooling", "type": "Pooling"}] if modules is None else modules
        kinds = {str(m.get("type", "")).rpartition(".")[2]: str(m.get("path", "")) for m in listed}
        others = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
        if others:
            raise ValidationError(
                f"{self.path} has layers after its pooling ({', '.join(others)}), which are not read here",
                hint="take an embedding model of one encoder and a pooling",
            )
        stated = self._stated(f"{kinds['Pooling']}/config.json") if "Pooling" in kinds else None
        if stated is None:
            return "mean"
        modes = [
            k.removeprefix("pooling_mode_") for k, v in stated.items() if k.startswith("pooling_mode_") and v is True
        ]
        modes = [stated["pooling_mode"]] if isinstance(stated.get("pooling_mode"), str) else modes
        if len(modes) != 1 or modes[0] not in _STATED:
            raise ValidationError(
                f"{self.path} states the pooling {', '.join(modes) or 'none'}, which is not read here",
                hint=f"choose one yourself: pooling: {', '.join(get_args(Pooling))}",
            )
        return _STATED[modes[0]]

    def _stated(self, name: str) -> Any:
        """A JSON file of the folder or repository; None where it has none."""
        folder = Path(self.path).expanduser()
        if folder.is_dir():
            file = folder / name
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        known = try_to_load_from_cache(self.path, name, revision=self.revision)
        if known is _CACHED_NO_EXIST:
            return None
        try:
            place = known if isinstance(known, str) else hf_hub_download(self.path, name, revision=self.revision)
        except (LocalEntryNotFoundError, HfHubHTTPError) as e:
            if isinstance(e, EntryNotFoundError) and not isinstance(e, LocalEntryNotFoundError):
                return None
            raise ConfigurationError(
                f"the pooling of {self.path} cannot be read: {name} is not in the cache, and the hub does not give it",
                hint=f"state it: pooling: {', '.join(get_args(Pooling))}",
            ) from e
        return json.loads(Path(place).read_text(encoding="utf-8"))

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
