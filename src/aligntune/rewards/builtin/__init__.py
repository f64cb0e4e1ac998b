"""The built-in rewards, one decorated function each. `registry.load_builtins` imports every module here.

A module here imports nothing heavy at its top: libraries and models are imported inside the function that
needs them.
"""
