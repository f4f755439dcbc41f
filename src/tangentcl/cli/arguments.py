"""Argparse with errors in one line that name what was meant."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from tangentcl.errors import nearest


class Parser(argparse.ArgumentParser):
    """Argparse that names the nearest option or command when one is mistyped, and exits with 2."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but a command complains about its own options, so that the nearest of them is named."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            wrong = message.removeprefix("unrecognized arguments: ").split()[0]
            options = [option for action in self._actions for option in action.option_strings]
            message = f"unknown argument {wrong!r}.{nearest(wrong, options)}"
        elif "invalid choice: " in message:
            wrong = message.split("invalid choice: ")[1].split("'")[1]
            choices = [c for action in self._actions for c in (action.choices or [])]
            message = f"unknown command or value {wrong!r}.{nearest(wrong, choices)}"
        else:
            message = f"{message}. Try: {self.prog} --help"
        self.exit(2, f"tangentcl: error: {message}\n")
