"""One file per algorithm; `sft/` holds one per supervised task. Adding a file registers what is in it."""
