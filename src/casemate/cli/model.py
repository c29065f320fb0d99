"""`casemate model`: the encrypted models of this device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.output import advise, confirm, emit, human_bytes, json_option, progress, say, style, table, yes_option

if TYPE_CHECKING:
    from casemate.crypto.secret import Secret
    from casemate.device.home import Home
    from casemate.device.models import ModelInfo
    from casemate.keystores import Sources

_file = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Add, list, verify and remove models."""


def _open_or_make() -> tuple[Home, Sources]:
    """Return the home and where its secrets come from, making both home and keystore on first use."""
    from casemate import config, keystores
    from casemate.cli.passphrase import sources
    from casemate.device.home import Home

    home = Home(config.home_path()).create()
    found = sources(home)
    if not keystores.exists(home.keystore):
        with keystores.create(home, found) as made:
            say(made.story)
    return home, found


def _open() -> tuple[Home, Sources]:
    from casemate.cli.passphrase import sources

    home = _home()
    return home, sources(home)


def _home() -> Home:
    from casemate import config
    from casemate.device.home import Home

    return Home(config.home_path()).open()


@command.command()
@click.argument("file", type=_file)
@click.option("--name", help="How to call it (default: from the file's name).")
@click.option("--license", "licence", default="", metavar="SPDX", help="Its licence (default: what the file says).")
@click.option("--replace", is_flag=True, help="Replace the model of that name.")
@click.option("--passphrase-file", type=_file, metavar="F", help="FILE is an export made with this passphrase.")
@click.option(
    "--min-assurance",
    type=click.Choice(["L2", "L3"]),
    help="Gate it: its only key comes from the fleet, to a device of this level, for a lease.",
)
@json_option
def add(
    *,
    file: Path,
    name: str | None,
    licence: str,
    replace: bool,
    passphrase_file: Path | None,
    min_assurance: str | None,
    as_json: bool,
) -> None:
    """Check, encrypt and store FILE: a GGUF, or another device's export."""
    from casemate.device import models
    from casemate.device.gating import Gate

    home, sources = _open_or_make()
    gate = Gate(home, min_assurance) if min_assurance else None
    if gate:
        gate.require_running()
    info = models.add_model(
        home,
        sources,
        file,
        name=name,
        licence=licence,
        replace=replace,
        passphrase=_passphrase(passphrase_file),
        gate=gate,
        progress=progress,
    )
    emit(
        {"name": info.name, "digest": info.digest, "bytes": info.bytes, "licence": info.licence, **_gate(info)},
        as_json=as_json,
        text=f"{style('added', 'good')} {info.name}  {human_bytes(info.bytes)}  {info.digest}",
    )
    if info.gate:
        listed = f"`casemate fleet policy learn DEVICE --model {info.name}={info.digest}`"
        say(f"serving it is measured; its fleet must list it first, or the lease is not renewed: {listed}")


@command.command("list")
@json_option
def list_(*, as_json: bool) -> None:
    """List the models of this device, by what their containers claim."""
    from casemate.device import models

    held = models.list_models(_home())
    emit({"models": [_row(info) for info in held]}, as_json=as_json, text=lambda: _listing(held))


def _gate(info: ModelInfo) -> dict[str, Any]:
    """Return what a gated model asks for, nothing for another."""
    slot = info.gate
    return {"gate": {"min_assurance": slot.min_assurance, "key": slot.key, "fleet": slot.fleet}} if slot else {}


def _row(info: ModelInfo) -> dict[str, Any]:
    row = {
        "name": info.name,
        "digest": info.digest,
        "bytes": info.bytes,
        "format": info.format,
        "licence": info.licence,
        "path": str(info.path),
        **_gate(info),
    }
    return {**row, "problem": info.problem} if info.problem else row


def _listing(held: list[ModelInfo]) -> str:
    if not held:
        return "no models: add one with `casemate model add FILE`"
    rows = [
        (info.name, human_bytes(info.bytes), _shape(info), info.licence or "-", info.problem or info.digest[:19])
        for info in held
    ]
    return table(rows, ("NAME", "SIZE", "KIND", "LICENCE", "DIGEST"))


def _shape(info: ModelInfo) -> str:
    facts = info.facts
    return f"{facts.architecture} {_count(facts.parameters)} {facts.quantisation}" if facts else "damaged"


def _count(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


@command.command()
@click.argument("name")
@json_option
def show(*, name: str, as_json: bool) -> None:
    """Show what the container of NAME claims (`model verify` proves it)."""
    import datetime as dt

    import msgspec

    from casemate.device import models
    from casemate.errors import UntrustedDataError

    info = models.show_model(_home(), name)
    if info.problem:
        raise UntrustedDataError(
            f"the container of {name!r} is damaged", check=info.problem, hint=f"casemate model rm {name}"
        )
    facts = msgspec.to_builtins(info.facts)
    added = dt.datetime.fromtimestamp(info.added, dt.UTC).isoformat()
    fields = {**_row(info), "added": added, **{f"gguf.{key}": value for key, value in facts.items()}}
    emit(
        {**_row(info), "added": added, "facts": facts},
        as_json=as_json,
        text=lambda: table([(key, str(value)) for key, value in fields.items()], ("FIELD", "VALUE")),
    )


@command.command()
@click.argument("name")
@json_option
def verify(*, name: str, as_json: bool) -> int:
    """Prove every byte of NAME: keys, header, labels, chunks and digest."""
    from casemate.device import models
    from casemate.errors import UntrustedDataError

    home, sources = _open()
    failed = models.verify_model(home, sources, name, progress)
    good, bad = f"{style('ok', 'good')} {name}", f"{style('refused', 'bad')} {name}: {failed}"
    emit({"ok": not failed, "failed": failed}, as_json=as_json, text=bad if failed else good)
    if failed and not as_json:
        advise(f"`casemate model rm {name}`, then add it again from a source you trust")
    return UntrustedDataError.exit_code if failed else 0


@command.command()
@click.argument("name")
@yes_option
@json_option
def rm(*, name: str, yes: bool, as_json: bool) -> None:
    """Remove NAME. Without its container nobody can open it again, backups and exports aside."""
    from casemate.device import models

    home = _home()
    models.show_model(home, name)
    if not yes:
        confirm(f"remove {name} for good?")
    models.remove_model(home, name)
    emit({"name": name, "removed": True}, as_json=as_json, text=f"removed {name}")


@command.command()
@click.argument("name")
@click.option("--to", type=_file, required=True, metavar="FILE", help="Where to write it; must not exist.")
@click.option("--recipient", metavar="KEY", help="The receiver's owner key (`casemate keystore status` shows it).")
@click.option("--passphrase-file", type=_file, metavar="F", help="Wrap it with the passphrase in this file.")
@json_option
def export(*, name: str, to: Path, recipient: str | None, passphrase_file: Path | None, as_json: bool) -> None:
    """Write NAME as an encrypted container for somebody else. There is no plaintext export."""
    from casemate.device import transfer

    if (recipient is None) == (passphrase_file is None):
        raise click.UsageError("give either --recipient or --passphrase-file")
    home, sources = _open()
    public = transfer.parse_owner(recipient) if recipient else None
    passphrase = _passphrase(passphrase_file)
    size = transfer.export_model(
        home, sources, name, to.absolute(), recipient=public, passphrase=passphrase, progress=progress
    )
    emit({"name": name, "path": str(to.absolute()), "bytes": size}, as_json=as_json, text=f"wrote {to}")


def _passphrase(path: Path | None) -> Secret | None:
    if path is None:
        return None
    from casemate.keystores.sources import read_passphrase_file

    return read_passphrase_file(path)
