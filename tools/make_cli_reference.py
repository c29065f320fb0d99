#!/usr/bin/env python3
"""Write docs/reference/cli.md from the command tree, so that the page cannot disagree with `--help`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click
import regions

from casemate.cli import main as cli
from casemate.errors import CasemateError

PAGE = regions.ROOT / "docs" / "reference" / "cli.md"


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, in the order of the tree."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command, info_name=path)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is not None and not child.hidden:
            yield from walk(child, f"{path} {name}")


def usage(command: click.Command, path: str) -> str:
    """Return the usage line without its prefix."""
    context = click.Context(command, info_name=path)
    return " ".join([path, *command.collect_usage_pieces(context)])


def options(command: click.Command, path: str) -> list[tuple[str, ...]]:
    """Return (spelling, help) of each option but --help."""
    context = click.Context(command, info_name=path)
    records = [(param, param.get_help_record(context)) for param in command.params]
    return [(f"`{record[0]}`", record[1]) for _, record in records if record and record[1]]


def section(path: str, command: click.Command) -> str:
    """Return one command's part of the page."""
    parts = [f"### {path}", f"```\n{usage(command, path)}\n```", *prose(command.help), *prose(command.epilog)]
    rows = options(command, path)
    if rows:
        parts.append(regions.table(("option", "what it does"), rows))
    return "\n\n".join(parts)


def prose(text: str | None) -> list[str]:
    """Return the paragraphs of a help text; those that click must not wrap become code."""
    paragraphs = inspect.cleandoc((text or "").split("\f")[0]).split("\n\n")
    return [
        "```text\n" + part.removeprefix("\b\n") + "\n```" if part.startswith("\b") else part
        for part in paragraphs
        if part.strip()
    ]


def errors(family: type[CasemateError]) -> Iterator[type[CasemateError]]:
    """Yield *family* and its descendants."""
    yield family
    for child in family.__subclasses__():
        yield from errors(child)


def exit_codes() -> str:
    """Return the table of exit codes that error classes own."""
    rows: dict[int, list[type[CasemateError]]] = {}
    for kind in errors(CasemateError):
        rows.setdefault(kind.exit_code, []).append(kind)
    lines = [
        (
            str(number),
            ", ".join(f"`{code}`" for code in dict.fromkeys(kind.code for kind in kinds)),
            (inspect.getdoc(kinds[-1 if kinds[0] is CasemateError else 0]) or "").split("\n")[0],
        )
        for number, kinds in sorted(rows.items())
    ]
    return regions.table(("exit", "`error.code`", "meaning"), lines)


def overview() -> str:
    """Return the table of top-level names."""
    return regions.table(
        ("command", "what it is for"), [(f"`casemate {name}`", text) for name, text in cli.COMMANDS.items()]
    )


def render() -> dict[str, str]:
    """Return the page's regions."""
    sections = [section(path, command) for path, command in walk(cli.root, "casemate")]
    return {"overview": overview(), "exit-codes": exit_codes(), "commands": "\n\n".join(sections)}


if __name__ == "__main__":
    sys.exit(regions.main(PAGE, render()))
