"""`duodao`: finds the command, and turns everything that can go wrong into one line and an exit code.

Exit codes: 0 all good, 1 some inputs failed, 2 bad usage, 3 stopped by --max-failures, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata
from typing import Any, NoReturn

import click

from duodao.cli.explain import OK, USAGE, exit_code, explain
from duodao.cli.interrupt import INTERRUPTED
from duodao.errors import DuodaoError, UsageError

COMMANDS = ("map", "run", "resume", "journal", "measure", "serve")
PLUGINS = "duodao.commands"
"""Entry point group in which other packages offer commands: name = "package.module:click_command"."""

BROKEN_PIPE = 141
"""128 + SIGPIPE, as every program that writes to `head`."""


class Commands(click.Group):
    """Imports a command's file when the command is used, so that `duodao --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Ours, then those of installed packages."""
        found = {entry.name for entry in metadata.entry_points(group=PLUGINS)}
        return [*COMMANDS, *sorted(found - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        """The command called `cmd_name`, or None."""
        if cmd_name in COMMANDS:
            return importlib.import_module(f"duodao.cli.{cmd_name}").command  # type: ignore[no-any-return]
        for entry in metadata.entry_points(group=PLUGINS, name=cmd_name):
            return entry.load()  # type: ignore[no-any-return]
        return None

    def invoke(self, ctx: click.Context) -> Any:
        """Click would end with 1, which here means that inputs failed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            return _unread()


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(package_name="duodao", message="duodao %(version)s")
@click.pass_context
def duodao(ctx: click.Context, /) -> int:
    """Write plain functions; Duodao runs them: on threads, processes or coroutines, measured, durable, in order."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
    return USAGE


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    _open_standard_files()
    try:
        code = _run(argv)
        if sys.stdout is not None and not sys.stdout.closed:  # a function in this process may have closed it
            sys.stdout.flush()
    except BrokenPipeError:
        code = _unread()
    except KeyboardInterrupt:  # once more while the first one was being told
        code = INTERRUPTED
    sys.exit(code)


def _unread() -> int:
    """Whoever read our stdout has gone (`| head`): no more output, and no complaint at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return BROKEN_PIPE


def _open_standard_files() -> None:
    """Put the null device where stdin, stdout or stderr is closed: the next file opened would take its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            if number == 2:
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - it stays


def _run(argv: list[str] | None) -> int:
    try:
        given = list(sys.argv[1:] if argv is None else argv)
        result = duodao.main(args=given, prog_name="duodao", standalone_mode=False, obj=given)
        return result if isinstance(result, int) else OK
    except click.ClickException as error:
        return _say(_message(error), USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    except DuodaoError as error:
        return _say(explain(error), exit_code(error))


def _message(error: click.ClickException) -> str:
    text = error.format_message()
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "duodao"
    hint = f"see {command} --help"
    if isinstance(error, click.NoSuchOption) and command == "duodao run":
        hint = f"a Pipeline's stages carry their own options; {hint}"
    return f"{text[:1].lower()}{text[1:].rstrip('.')} ({hint})"


def _say(text: str, code: int) -> int:
    print("duodao:", " ".join(text.split()), file=sys.stderr)
    return code


def run_argv(argv: list[str], **changes: Any) -> int:
    """Run a noted command line again, with some of its options changed. Source: `resume`, `journal --retry-failed`."""
    name, *rest = argv
    command = duodao.get_command(click.Context(duodao), name)
    if command is None:
        raise UsageError(f"the journal was written by `duodao {name}`, which this installation doesn't have")
    with command.make_context(name, list(rest), obj=argv) as ctx:
        ctx.params.update(changes)
        result = command.invoke(ctx)
    return result if isinstance(result, int) else OK
