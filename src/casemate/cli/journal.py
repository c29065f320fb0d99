"""`casemate journal`: read, check, prove and export the tamper-evident log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from casemate.cli.output import confirm, emit, emit_line, json_option, progress, say, style, yes_option

if TYPE_CHECKING:
    from casemate.device.home import Home
    from casemate.device.journal import LogFiles, Reader, Shown
    from casemate.formats.tlog import VerifierKey

_POLL: Final = 0.5
_SEVERITY: Final = {1: "info", 2: "low", 3: "medium", 4: "high", 5: "critical", 6: "fatal"}
_LOUD: Final = {"medium": "warn", "high": "bad", "critical": "bad", "fatal": "bad"}


@click.group()
def command() -> None:
    """Read, check and prove the tamper-evident log.

    Entries are encrypted: `show` needs the keystore, `verify` and `prove` need no key.
    """


def _home() -> Home:
    from casemate import config
    from casemate.device.home import Home

    return Home(config.home_path()).open()


def _files(log: str | None) -> LogFiles:
    from casemate.device.journal import LogFiles

    return LogFiles(Path(log)) if log else LogFiles(_home().journal)


# --- verify -----------------------------------------------------------------------------------------------------------


@command.command()
@json_option
@click.option("--against", type=click.Path(exists=True, dir_okay=False), help="A checkpoint that you kept elsewhere.")
@click.option("--log", type=click.Path(exists=True, file_okay=False), help="An exported, unpacked log instead.")
@click.option("--vkey", metavar="VKEY|FILE", help="The log key to trust, instead of the one beside the log.")
def verify(*, as_json: bool, against: str | None, log: str | None, vkey: str | None) -> int:
    """Check every entry and tile against the signed checkpoint. Exit 0 or 10.

    A log that was cut back to an earlier state still fits its own old checkpoint: --against tells, with any checkpoint
    that was copied to another place before.
    """
    from casemate.device.journal import verify as check
    from casemate.errors import UntrustedDataError
    from casemate.formats.tlog import VerifierKey

    files = _files(log)
    known = VerifierKey.parse(_text_or_file(vkey)) if vkey else None
    kept = Path(against).read_bytes() if against else _cosigned(files) if log is None else None
    try:
        with progress(_bundle_bytes(files), "verify") as advance:
            found = check(files, verifier=known, own=log is None, against=kept, progress=advance)
    except UntrustedDataError as error:
        if not as_json:
            raise
        emit_line({"ok": False, "size": 0, "root": "", "failed": error.check, "detail": error.message})
        return error.exit_code
    witnessed = _witnessed(files) if log is None else None
    result = {"ok": True, "size": found.size, "root": _base64(found.root), "origin": found.origin}
    emit(
        {**result, "pending": found.pending, "epochs": found.epochs, "witnessed": witnessed},
        as_json=as_json,
        text=f"{style('ok', 'good')}  {found.size} entries of {found.origin}, root {_base64(found.root)}"
        + (f"\nwitnessed by the fleet up to entry {witnessed['size']}" if witnessed else "")
        + (f"\n{found.pending} more are durable and wait for the next checkpoint" if found.pending else ""),
    )
    return 0


def _cosigned(files: LogFiles) -> bytes | None:
    """Return the checkpoint that the fleet cosigned last and this device kept."""
    from casemate.device.journal import WITNESSED

    try:
        return files.read(WITNESSED)
    except FileNotFoundError:
        return None


def _witnessed(files: LogFiles) -> dict[str, int] | None:
    """Return what the fleet has witnessed; None when it did not, or whose witness to believe cannot be read here."""
    from casemate.device.fleet.membership import read_member
    from casemate.errors import OperationError, UntrustedDataError
    from casemate.formats import tlog

    note = _cosigned(files)
    try:
        member = read_member(_home())
        if note is None or member is None:
            return None
        moment = tlog.cosigned_at(note, tlog.VerifierKey.parse(member.witness))
        return {"size": tlog.open_checkpoint(note, [_own_key(files)]).size, "time": moment}
    except (OperationError, UntrustedDataError):
        return None


def _own_key(files: LogFiles) -> VerifierKey:
    from casemate.device.journal import load_verifier

    return load_verifier(files)


def _text_or_file(value: str) -> str:
    path = Path(value)
    return path.read_text(encoding="utf-8") if path.is_file() else value


def _bundle_bytes(files: LogFiles) -> int:
    entries = files.directory / "tile" / "entries"
    return sum(file.stat().st_size for file in entries.rglob("[0-9][0-9][0-9]") if file.is_file())


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


# --- show -------------------------------------------------------------------------------------------------------------


@command.command()
@json_option
@click.option("-n", "count", type=click.IntRange(0), default=50, show_default=True, help="The last N; 0 shows all.")
@click.option("--follow", "-f", is_flag=True, help="Keep showing new entries until Ctrl-C.")
def show(*, as_json: bool, count: int, follow: bool) -> None:
    """Decrypt and show events, each proved to stand in the signed log."""
    with _reader() as reader:
        last = -1
        for shown in _recent(reader, count):
            last = max(last, shown.index)
            _print(shown, as_json=as_json)
        if follow:
            for shown in _follow(reader, last + 1):
                _print(shown, as_json=as_json)


def _reader() -> Any:
    """Open the keystore and return a context that yields a `Reader`; keys are wiped at its end."""
    import contextlib

    from casemate import keystores
    from casemate.cli.passphrase import sources
    from casemate.device.journal import LogFiles, Reader

    @contextlib.contextmanager
    def opened() -> Iterator[Reader]:
        home = _home()
        with keystores.unlock(home, sources(home)) as keystore, keystore.owner_private() as private:
            yield Reader(LogFiles(home.journal), private)

    return opened()


def _recent(reader: Reader, count: int) -> Iterator[Shown]:
    """Yield the last *count* events (all for 0). Every opening adds an epoch record and at least one event."""
    from collections import deque

    if not count:
        return reader.events()
    return iter(deque(reader.events(reader.size() - 2 * count - 1), maxlen=count))


def _follow(reader: Reader, start: int) -> Iterator[Shown]:
    import time

    while True:
        for shown in reader.events(start):
            start = shown.index + 1
            yield shown
        time.sleep(_POLL)


def _print(shown: Shown, *, as_json: bool) -> None:
    if as_json:
        emit_line({"index": shown.index, "epoch": shown.epoch, "published": shown.published, "event": shown.fields()})
        return
    from datetime import UTC, datetime

    found = shown.event()
    when = datetime.fromtimestamp(found.time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    severity = _SEVERITY[found.severity_id]
    word = style(f"{severity:<8}", _LOUD[severity]) if severity in _LOUD else f"{severity:<8}"
    detail = f" ({found.status_detail})" if found.status_detail and found.status_detail not in found.message else ""
    click.echo(f"{shown.index:>7}  {when}  {word}  {found.metadata.log_provider:<8}  {found.message}{detail}")


# --- prove, export, archive -------------------------------------------------------------------------------------------


@command.command()
@json_option
@click.argument("index", type=click.IntRange(0))
@click.option("--out", type=click.Path(dir_okay=False, writable=True), help="Write the proof here.")
@click.option("--entry", type=click.Path(dir_okay=False, writable=True), help="Write the encrypted entry here.")
def prove(*, as_json: bool, index: int, out: str | None, entry: str | None) -> None:
    """Write a C2SP proof that entry INDEX is in the log.

    Anyone can check it offline.
    """
    from casemate.device.journal import prove as make

    proof, data = make(_files(None), index)
    packed = proof.pack()
    if entry:
        Path(entry).write_bytes(data)
    if out:
        Path(out).write_bytes(packed)
        say(f"proof of entry {index} written to {out}")
    if as_json:
        emit_line({"index": index, "proof": packed.decode(), "entry": _base64(data)})
    elif not out:
        click.echo(packed.decode(), nl=False)


@command.command()
@json_option
@click.argument("file", type=click.Path(dir_okay=False, writable=True))
@click.option("--decrypt", is_flag=True, help="JSON lines in the clear instead of the encrypted log.")
def export(*, as_json: bool, file: str, decrypt: bool) -> None:
    """Copy the log to FILE: a tar, its entries still encrypted.

    Unpacked, `verify --log` and any C2SP tool check it.
    """
    from casemate.clock import SystemClock
    from casemate.device.record import record
    from casemate.formats import event

    size = _export_clear(file) if decrypt else _export_tar(file)
    record(_home(), event.journal_exported(size=size, decrypted=decrypt, now=SystemClock().wall()))
    emit({"file": file, "size": size, "decrypted": decrypt}, as_json=as_json, text=f"{size} entries in {file}")


def _export_tar(file: str) -> int:
    from casemate.device.journal import write_tar

    with _replaced(file) as out:
        return write_tar(_files(None), out)


def _export_clear(file: str) -> int:
    import msgspec

    with _reader() as reader, _replaced(file) as out:
        size = 0
        for shown in reader.events():
            line = {"schema": 1, "index": shown.index, "event": shown.fields()}
            out.write(msgspec.json.encode(line) + b"\n")
            size = shown.index + 1
        return size


def _replaced(file: str) -> Any:
    """Open a 0600 file that takes the name *file* only when everything is in it."""
    import contextlib
    import os

    @contextlib.contextmanager
    def opened() -> Iterator[Any]:
        temporary = Path(f"{file}.part")
        try:
            temporary.unlink(missing_ok=True)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:  # noqa: PTH123 - a mode at birth
                yield out
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    return opened()


@command.command()
@json_option
@yes_option
def archive(*, as_json: bool, yes: bool) -> None:
    """Put the log aside, untouched, and begin one that records why.

    The way on when a log was altered: the device refuses to write behind a history that does not fit.
    """
    from casemate.device.journal import archive as set_aside

    home = _home()
    if not yes:
        confirm("put the journal aside and begin a new one?")
    done = set_aside(home)
    emit(
        {"path": str(done.path), "reason": done.reason, "size": done.size, "origin": done.origin},
        as_json=as_json,
        text=f"the old journal ({done.reason}) is in {done.path}; {done.origin} begins",
    )
