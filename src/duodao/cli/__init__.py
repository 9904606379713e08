"""The command line: one file per command, public names only."""
