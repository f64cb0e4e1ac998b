"""Kinds of evaluation, one per file; `base` says what a kind is."""
