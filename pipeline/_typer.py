"""Let `typer pipeline guidance` and `typer model train` work as typed.

Where it hooks. Typer's own command looks for an app among `dir()` of the module it is given and mounts it
as `run`: `typer pipeline run guidance`. Both packages name `app` through `lazy_app`, so that importing them
stays cheap, and the attribute is asked for only while `typer.cli` is mounting. At that moment `TyperCLIGroup`
gets two small overrides: `add_command` lists the app's commands beside `run`, and `resolve_command` reads
`typer pipeline guidance …` as `typer pipeline run guidance …`, so that callbacks and error messages of the
app stay in force. Without such a class (a future Typer), or without `typer.cli` loaded, nothing is changed
and the long form remains.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_app(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Module-level `__getattr__` and `__dir__` that offer `<package>.cli.app` as `app`, imported on use."""

    def getattribute(name: str) -> Any:
        if name != "app":
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _extend_typer_command()
        return importlib.import_module(f"{package}.cli").app

    def names() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), "app"})

    return getattribute, names


def _extend_typer_command() -> None:
    group = getattr(sys.modules.get("typer.cli"), "TyperCLIGroup", None)
    if group is None or not all(hasattr(group, name) for name in ("add_command", "resolve_command")):
        return
    add_command, resolve_command = group.add_command, group.resolve_command

    def add_with_its_commands(self: Any, command: Any, name: str | None = None) -> None:
        add_command(self, command, name)
        if command.name == "run":
            self.commands = {**getattr(command, "commands", {}), **self.commands}

    def resolve_through_run(self: Any, ctx: Any, args: list[str]) -> Any:
        mounted = getattr(self.commands.get("run"), "commands", {})
        return resolve_command(self, ctx, ["run", *args] if args[0] in mounted else args)

    group.add_command, group.resolve_command = add_with_its_commands, resolve_through_run
