"""Supervised tasks, one file each."""
