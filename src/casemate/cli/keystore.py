"""`casemate keystore`: the keys that open this device's models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.output import emit, json_option, say, style

if TYPE_CHECKING:
    from casemate.crypto.secret import Secret
    from casemate.device.home import Home

_SPOKEN = {"tpm": "TPM", "keyfile": "key file", "passphrase": "passphrase", "recovery": "recovery code"}


@click.group()
def command() -> None:
    """Look after the keys that open the models."""


def _home() -> Home:
    from casemate import config
    from casemate.device.home import Home

    return Home(config.home_path()).open()


@command.command()
@json_option
def status(*, as_json: bool) -> None:
    """Show how the keys are kept, how strong that is, and why."""
    from casemate import keystores
    from casemate.cli.passphrase import sources
    from casemate.device.transfer import format_owner

    home = _home()
    found = keystores.describe(home, sources(home))
    result: dict[str, Any] = {
        "kind": found.kind,
        "assurance": found.level,
        "assurance_by": "local",
        "reasons": list(found.reasons),
        "recovery": found.recovery,
        "rotation_unfinished": found.rotating,
        "owner_key": format_owner(found.owner_public),
    }
    emit(result, as_json=as_json, text=lambda: _status_text(result))


def _status_text(result: dict[str, Any]) -> str:
    lines = [
        f"opened by    {_SPOKEN[result['kind']]}",
        f"assurance    {result['assurance']}: {'; '.join(result['reasons'])}",
        f"recovery     {'yes' if result['recovery'] else 'none: `casemate keystore add-recovery`'}",
        f"owner key    {result['owner_key']}",
    ]
    if result["rotation_unfinished"]:
        lines.append("rotation     unfinished: run `casemate keystore rotate`")
    return "\n".join(lines)


@command.command()
@click.option(
    "--to", type=click.Choice(["tpm", "passphrase", "keyfile"]), help="Change what opens it (asks for a new one)."
)
@click.option(
    "--new-passphrase-file", type=click.Path(path_type=Path), metavar="F", help="Take the new passphrase from here."
)
@click.option("--recovery", is_flag=True, help="Open it with the recovery code (asked for).")
@click.option("--recovery-file", type=click.Path(path_type=Path), metavar="F", help="Take the recovery code from here.")
@json_option
def rotate(
    *, to: str | None, new_passphrase_file: Path | None, recovery: bool, recovery_file: Path | None, as_json: bool
) -> int:
    """Make a new key and re-wrap every model with it.

    The weights are not encrypted again. A recovery code is replaced too: the new one is printed once. A rotation that
    was cut short is finished.
    """
    import os

    from casemate import keystores
    from casemate.cli.passphrase import sources
    from casemate.device import rotation

    home = _home()
    if new_passphrase_file:
        to = to or "passphrase"
    old = sources(home, recovery=_recovery_code(recovery_file) if recovery or recovery_file else None)
    if new_passphrase_file:
        new = keystores.from_environment(
            home, {**os.environ, "CASEMATE_PASSPHRASE_FD": "", "CASEMATE_PASSPHRASE_FILE": str(new_passphrase_file)}
        )
    else:
        new = sources(home) if to == "passphrase" else old
    codes: list[str] = []
    done = rotation.rotate(home, old, new, to=to, show=lambda code: _show(code, codes, as_json=as_json))
    result = {
        "kind": done.kind,
        "assurance": done.level,
        "rewrapped": done.rewrapped,
        "refused": done.refused,
        "resumed": done.resumed,
        **({"recovery": codes[0]} if codes else {}),
    }
    story = f"{'finished the rotation' if done.resumed else 'rotated'}: {done.rewrapped} models re-wrapped"
    for name, check in done.refused.items():
        say(f"{style('refused', 'bad')} {name}: {check}; it cannot be opened any more")
    emit(result, as_json=as_json, text=f"{story}, opened by {_SPOKEN[done.kind]}, assurance {done.level}")
    return 3 if done.refused else 0


@command.command("add-recovery")
@json_option
def add_recovery(*, as_json: bool) -> None:
    """Make a recovery code, replacing an older one. It is printed once and stored nowhere."""
    from casemate import keystores
    from casemate.cli.passphrase import sources
    from casemate.clock import SystemClock
    from casemate.device.record import record
    from casemate.formats import event

    home = _home()
    codes: list[str] = []
    with keystores.unlock(home, sources(home)) as keystore:
        keystores.add_recovery(keystore, lambda code: _show(code, codes, as_json=as_json))
    record(home, event.recovery_added(now=SystemClock().wall()))
    emit({"recovery": codes[0]}, as_json=as_json, text="keep it apart from the device: whoever has it has the models")


def _show(code: str, codes: list[str], *, as_json: bool) -> None:
    """Print the code before anything depends on it; with --json it is in the one result object."""
    codes.append(code)
    if not as_json:
        click.echo(f"recovery code, shown once:\n\n  {style(code, 'bold')}\n")


def _recovery_code(path: Path | None) -> Secret:
    from casemate.cli.passphrase import ask_recovery_code
    from casemate.errors import NotAuthorisedError
    from casemate.keystores.recovery import parse_code

    if path is None:
        return parse_code(ask_recovery_code())
    try:
        return parse_code(path.read_text(encoding="ascii", errors="replace"))
    except OSError as error:
        raise NotAuthorisedError(f"cannot read {path}: {error.strerror}", hint="check --recovery-file") from error
