"""The command line as it is: every command and option of the two apps, one command a line.

`python tests/command_line.py > tests/commands.txt` accepts a change that is meant.
"""

import importlib
from typing import Any

import typer

APPS = {"pipeline": "pipeline.cli", "model": "model.cli"}


def commands() -> dict[str, list[str]]:
    """`pipeline guidance` -> its arguments in capitals, then its options, sorted."""
    found: dict[str, list[str]] = {}
    for name, module in APPS.items():
        _collect(typer.main.get_command(importlib.import_module(module).app), name, found)
    return found


def _collect(command: Any, name: str, found: dict[str, list[str]]) -> None:
    for child_name, child in sorted(getattr(command, "commands", {}).items()):
        _collect(child, f"{name} {child_name}", found)
    if not getattr(command, "commands", None):
        arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        options = sorted(
            option
            for p in command.params
            if p.param_type_name == "option"
            for option in (*p.opts, *p.secondary_opts)
            if option != "--help"
        )
        found[name] = arguments + options


def listing() -> str:
    """The content of tests/commands.txt."""
    return "".join(f"{' '.join([name, *rest])}\n" for name, rest in sorted(commands().items()))


if __name__ == "__main__":
    print(listing(), end="")
