"""The `casemate` command: a lazy tree (a noun's module is imported when it is typed) and the one place errors end."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping
from typing import Any, Final

import click

from casemate import __version__
from casemate.errors import CasemateError

COMMANDS: Final[Mapping[str, str]] = {
    "up": "serve models in the foreground",
    "status": "what runs, how strong it is, what is weak",
    "doctor": "check this machine and say what to fix",
    "demo": "a guided tour with five attacks",
    "model": "add, list, verify and remove models",
    "keystore": "the keys that open them: status, rotate, recovery",
    "app": "API keys and policies of apps",
    "guard": "judge and redact text",
    "journal": "the tamper-evident log: show, verify, prove",
    "sandbox": "prove that the engine cannot get out",
    "service": "run as a system service",
    "device": "who this device is: the key to grant releases to",
    "update": "take new models, policies and apps, and go back",
    "usage": "what this device reports of its use, and what that cost",
    "release": "build, sign and publish what devices run",
    "fleet": "the server of many devices: enrol, watch, command",
    "config": "show settings and where they come from",
    "backup": "save a home (models stay encrypted)",
    "restore": "bring a saved home back",
}


class LazyTree(click.Group):
    """A group that knows its commands' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of *cmd_name*; each has one `command`."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"casemate.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, importing nothing."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest name for a typo."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            raise click.UsageError(f"no command {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyTree,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `casemate up`. Every command takes --help; results are JSON with --json.",
)
@click.version_option(__version__, prog_name="casemate")
def root() -> None:
    """Keep language models safe on this device: encrypted, sandboxed, guarded, logged."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with the code that belongs to the outcome."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run the command line and return its exit code; every expected error is rendered here and nowhere else."""
    as_json = "--json" in argv
    try:
        result: Any = root.main(args=argv, prog_name="casemate", standalone_mode=False)
    except CasemateError as error:
        return _fail(error, as_json=as_json)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as asked:
        click.echo(asked.format_message(), err=True)
        return asked.exit_code
    except click.ClickException as error:
        return _usage(error, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:  # noqa: BLE001 - the edge: a person gets a crash they can report, never silence
        return _crash(error, as_json=as_json)
    return result if isinstance(result, int) else 0


def _fail(error: CasemateError, *, as_json: bool) -> int:
    from casemate.cli.output import render_error

    render_error(error, as_json=as_json)
    return error.exit_code


def _usage(error: click.ClickException, *, as_json: bool) -> int:
    from casemate.cli.output import render_error
    from casemate.errors import UsageError

    context = getattr(error, "ctx", None)
    hint = f"see `{context.command_path} --help`" if context else "see `casemate --help`"
    message = error.format_message()
    render_error(UsageError(message[:1].lower() + message[1:].rstrip("."), hint=hint), as_json=as_json)
    return UsageError.exit_code


def _crash(error: Exception, *, as_json: bool) -> int:
    from casemate.cli.output import render_error
    from casemate.errors import OperationError

    if isinstance(error, OSError):
        render_error(OperationError(f"{type(error).__name__.lower()}: {error}"), as_json=as_json)
        return 1
    traceback.print_exception(error, limit=-6)
    render_error(
        OperationError(f"unexpected {type(error).__name__}", hint="this is a bug: report it with the lines above"),
        as_json=as_json,
    )
    return 1


if __name__ == "__main__":
    main()
