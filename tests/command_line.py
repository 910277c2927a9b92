"""The command line as it is: every command and option of the two apps, one command a line.

`python tests/command_line.py > tests/commands.txt` accepts a change that is meant.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import typer

APPS = {"pipeline": "pipeline.cli", "model": "model.cli"}


def leaves() -> Iterator[tuple[str, Any]]:
    """`pipeline guidance` and the like, each with its command as typer made it."""
    for name, module in APPS.items():
        yield from _below(typer.main.get_command(importlib.import_module(module).app), name)


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    for child_name, child in sorted(children.items()):
        yield from _below(child, f"{name} {child_name}")
    if not children:
        yield name, command


def commands() -> dict[str, list[str]]:
    """`pipeline guidance` -> its arguments in capitals, then its options, sorted."""
    found: dict[str, list[str]] = {}
    for name, command in leaves():
        arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        options = sorted(
            option
            for p in command.params
            if p.param_type_name == "option"
            for option in (*p.opts, *p.secondary_opts)
            if option != "--help"
        )
        found[name] = arguments + options
    return found


def listing() -> str:
    """The content of tests/commands.txt."""
    return "".join(f"{' '.join([name, *rest])}\n" for name, rest in sorted(commands().items()))


if __name__ == "__main__":
    print(listing(), end="")
