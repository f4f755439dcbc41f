"""The command line, one file per command. It parses before anything heavy is imported."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from tangentcl import __version__
from tangentcl.cli import cache, export, forecast, listing, plan, predict, report, run
from tangentcl.cli.arguments import Parser
from tangentcl.errors import TangentclError

EPILOG = """exit codes: 0 all done; 1 a run failed, its record says why; 2 the command or its input cannot be used;
130 interrupted, the record is closed and the command can be repeated."""


class Command(Protocol):
    """What the file of a command holds."""

    def add_parser(self, commands: Any) -> None:
        """Add the command's options to the subparsers of the whole command line."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


COMMANDS: dict[str, Command] = {
    "run": run,
    "forecast": forecast,
    "plan": plan,
    "list": listing,
    "report": report,
    "export": export,
    "predict": predict,
    "cache": cache,
}


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="tangentcl",
        description="Parameter-efficient continual learning seen through the Neural Tangent Kernel.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"tangentcl {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add_parser(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        code = COMMANDS[options.command].run(options)
        sys.stdout.flush()  # here, where a reader that has gone is expected
        return code
    except TangentclError as error:
        print(f"tangentcl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "; the record is closed, repeat the command to go on" if options.command == "run" else ""
        print(f"tangentcl: interrupted{kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, as in `tangentcl list runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
