"""The command line: one file per command, public names only.

Commands of other packages (entry point group `duodao.commands`) may use options (times, sizes, rates, as they are
written everywhere), interrupt (what Ctrl-C and SIGTERM mean) and explain (exit codes): one command line, whoever wrote
the command.
"""
