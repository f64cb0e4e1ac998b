"""Data: any source to the rows that an algorithm trains on.

    from aligntune.data import prepare_dataset, render
    prepared = prepare_dataset(config.dataset, Schema.PROMPT_COMPLETION, seed=42)
    rendered = render(prepared, Schema.PROMPT_COMPLETION, tokenizer, max_length=1024)

Names are imported on first use; importing this package imports no library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligntune.registry import lazy_names

if TYPE_CHECKING:
    from aligntune.data.cache import DatasetCache as DatasetCache
    from aligntune.data.encoding import encode as encode
    from aligntune.data.inspecting import inspect_source as inspect_source
    from aligntune.data.labels import Labels as Labels
    from aligntune.data.loaders.base import BaseLoader as BaseLoader
    from aligntune.data.loaders.conll import CoNLLLoader as CoNLLLoader
    from aligntune.data.loaders.directory import DirectoryLoader as DirectoryLoader
    from aligntune.data.loaders.hub import HFLoader as HFLoader
    from aligntune.data.loaders.json import JSONLoader as JSONLoader
    from aligntune.data.loaders.tabular import CSVLoader as CSVLoader
    from aligntune.data.loaders.tabular import ParquetLoader as ParquetLoader
    from aligntune.data.manager import DataManager as DataManager
    from aligntune.data.manager import Prepared as Prepared
    from aligntune.data.manager import prepare_dataset as prepare_dataset
    from aligntune.data.objects import materialise as materialise
    from aligntune.data.presets import PRESETS as PRESETS
    from aligntune.data.presets import Preset as Preset
    from aligntune.data.rendering import render as render
    from aligntune.data.resolver import LoaderResolver as LoaderResolver
    from aligntune.data.splits import split_rows as split_rows
    from aligntune.data.streaming import open_stream as open_stream

_NAMES = {
    "BaseLoader": "loaders.base",
    "CSVLoader": "loaders.tabular",
    "CoNLLLoader": "loaders.conll",
    "DataManager": "manager",
    "DatasetCache": "cache",
    "DirectoryLoader": "loaders.directory",
    "HFLoader": "loaders.hub",
    "JSONLoader": "loaders.json",
    "Labels": "labels",
    "LoaderResolver": "resolver",
    "PRESETS": "presets",
    "ParquetLoader": "loaders.tabular",
    "Prepared": "manager",
    "Preset": "presets",
    "encode": "encoding",
    "inspect_source": "inspecting",
    "materialise": "objects",
    "open_stream": "streaming",
    "prepare_dataset": "manager",
    "render": "rendering",
    "split_rows": "splits",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, {name: f"{__name__}.{module}:{name}" for name, module in _NAMES.items()})
