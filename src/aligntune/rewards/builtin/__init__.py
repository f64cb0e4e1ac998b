"""The built-in rewards, one decorated function each. Every module of this folder is imported by
`registry.load_builtins`.

A module here imports nothing heavy at its top: libraries and models are imported inside the function that
needs them.
"""
