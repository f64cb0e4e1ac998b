"""The command line: one file per command, found by its name; `main` runs them, `console` is what they share."""
