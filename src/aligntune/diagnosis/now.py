"""`python -m aligntune.diagnosis.now CONFIG OUT`: what a run of a configuration would be made of, here and now.

It prepares the data, loads model and rewards as a run does, writes the entries of a manifest to OUT, and trains
nothing. It runs as a program because only a fresh process has the training code as a run has it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def entries_now(config: Any) -> dict[str, Any]:
    """The manifest's entries of a resolved configuration, as `Trainer.train` would write them."""
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.recording import header_entries
    from aligntune.utils.logging import quiet_libraries

    trainer: Any = create_trainer(config)
    trainer._train_rows()
    trainer._eval_rows()
    trainer._probe_rewards()
    trainer._load()
    with quiet_libraries():
        trainer.backend.trainer_class(config.algorithm)
    return header_entries(trainer, trainer.backend.fingerprint())


def main(config: str, out: str) -> int:
    """Write the entries, or the error that stands in their way."""
    from aligntune.core.config import load_config
    from aligntune.errors import AlignTuneError
    from aligntune.utils.files import write_json

    try:
        write_json(Path(out), {"entries": entries_now(load_config(config, overrides=["isolation=auto"]))})
    except AlignTuneError as error:
        write_json(Path(out), {"error": {"type": type(error).__name__, "message": error.message, "hint": error.hint}})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
