"""`casemate release`: build, sign and publish what devices run. Runs on the release host, never on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.output import emit, human_bytes, json_option, progress, say, style, table, warn, yes_option

if TYPE_CHECKING:
    from casemate.crypto.secret import Secret
    from casemate.release.keys import KeyStore
    from casemate.release.repository import Repository
    from casemate.release.store import Record

_path = click.Path(path_type=Path)
_repo_option = click.option(
    "--repo",
    "directory",
    type=_path,
    envvar="CASEMATE_RELEASE_REPO",
    default=".",
    show_default=True,
    metavar="DIR",
    help="The release repository (or CASEMATE_RELEASE_REPO).",
)


@click.group(
    epilog="""\b
Examples:
  casemate release init /srv/releases
  casemate release build SPEC.toml --out saffron-2.1.release
  casemate release publish /srv/releases --add saffron-2.1.release
  casemate release promote model/saffron/2.1 --channel stable --repo /srv/releases"""
)
def command() -> None:
    """Build, sign and publish what devices run."""


@command.command()
@click.argument("directory", type=_path, metavar="DIR")
@json_option
def init(*, directory: Path, as_json: bool) -> None:
    """Make a release repository in DIR, with all its keys.

    Keep copies of DIR/keys/root-* and targets-* apart from this host, and from each other.
    """
    from casemate.clock import SystemClock
    from casemate.release import setup

    keys = _keys(directory)
    repository = setup.create(directory, keys, SystemClock())
    beside = keys.passphrases.beside
    if beside is not None:
        warn(f"the keys' passphrase lies beside them in {beside}: give one with CASEMATE_RELEASE_PASSPHRASE_FILE")
    root = repository.metadata / "1.root.json"
    emit(
        {
            "id": repository.description.id,
            "root": str(root),
            "public": str(repository.public),
            "passphrase_beside_keys": beside is not None,
        },
        as_json=as_json,
        text=(
            f"{style('made', 'good')} {directory}\n"
            f"serve    {repository.public}\ntrust    {root}  (what devices are given first)\n"
            "offline  keys/root-*.json and keys/targets-*.json: move each to another place; any two of three sign"
        ),
    )


@command.command()
@click.argument("specification", type=_path, metavar="SPEC.toml")
@click.option("--out", type=_path, required=True, metavar="F", help="Where to write the bundle.")
@click.option("--licences", "policy", type=_path, metavar="FILE", help='Allowed licences: allow = ["Apache-2.0", ...].')
@click.option("--no-evals", is_flag=True, help="Do not run the evals; the provenance says so.")
@json_option
def build(*, specification: Path, out: Path, policy: Path | None, no_evals: bool, as_json: bool) -> None:
    """Build SPEC.toml into one bundle, through every gate. Needs no key; the same input gives the same bytes."""
    from casemate.release import build as builder
    from casemate.release import evals, licences, spec

    kind = spec.load(specification).kind
    runs = kind in evals.KINDS and not no_evals
    if runs:
        say("evals: the release is served and asked; this takes a minute")
    built = builder.build(
        specification,
        out,
        policy=licences.load(policy),
        evaluate=evals.evaluate if runs else None,
        progress=progress,
    )
    header = built.header
    emit(
        {
            "kind": header.kind,
            "name": header.name,
            "version": header.version,
            "security_version": header.security_version,
            "path": str(out),
            "bytes": built.size,
            "sha256": built.sha256,
            "gates": list(header.gates),
        },
        as_json=as_json,
        text=f"{style('built', 'good')} {header.label}  {human_bytes(built.size)}  {', '.join(header.gates)}",
    )


@command.command()
@click.argument("directory", type=_path, metavar="DIR")
@click.option("--add", "bundles", type=_path, multiple=True, required=True, metavar="F", help="A bundle (repeatable).")
@click.option(
    "--deltas", type=click.IntRange(0, 15), default=3, show_default=True, help="From how many older releases."
)
@json_option
def publish(*, directory: Path, bundles: tuple[Path, ...], deltas: int, as_json: bool) -> None:
    """Sign bundles, encrypt them and publish them in DIR as files for any web server."""
    from casemate.release import publish as publisher

    made = publisher.publish(_open(directory), bundles, deltas=deltas, tell=say)
    for record in made:
        if any("not run" in gate for gate in record.header.gates):
            warn(f"{record.header.label} was built without evals")
    emit(
        {"releases": [_row(record) for record in made]},
        as_json=as_json,
        text=lambda: _listing(made),
    )


@command.command("list")
@click.argument("directory", type=_path, metavar="DIR")
@json_option
def list_(*, directory: Path, as_json: bool) -> None:
    """List the releases and channels of DIR."""
    from casemate.release import channels, store

    repository = _open(directory)
    found = store.published(repository)
    sets = [held for name in channels.names(repository) if (held := channels.current(repository, name))]
    rows = [
        (
            held.channel,
            str(held.generation),
            "stopped" if held.stop else "offered",
            member.target_path.rpartition("/")[0],
        )
        for held in sets
        for member in held.members
    ]
    emit(
        {
            "releases": [_row(record) for record in found],
            "channels": [
                {
                    "channel": held.channel,
                    "generation": held.generation,
                    "stop": held.stop,
                    "releases": [member.release for member in held.members],
                }
                for held in sets
            ],
        },
        as_json=as_json,
        text=lambda: "\n\n".join(
            [_listing(found), *([table(rows, ("CHANNEL", "GENERATION", "STATE", "RELEASE"))] if rows else [])]
        ),
    )


@command.command()
@click.argument("directory", type=_path, metavar="DIR")
@click.option("--deep", is_flag=True, help="Also open the sealed parts and prove the signatures (needs a passphrase).")
@json_option
def verify(*, directory: Path, deep: bool, as_json: bool) -> None:
    """Check DIR as a device would: metadata from the first root, every manifest, every chunk, the log."""
    from casemate.release import check

    found = check.check(_open(directory), deep=deep)
    emit(
        {
            "ok": True,
            "releases": list(found.releases),
            "channels": list(found.channels),
            "chunks": found.chunks,
            "log_entries": found.log_entries,
            "signatures": found.signatures,
        },
        as_json=as_json,
        text=(
            f"{style('ok', 'good')} {len(found.releases)} releases, {found.chunks} chunks, "
            f"{found.signatures} signatures proven, {found.log_entries} logged"
        ),
    )


@command.command()
@click.argument("directory", type=_path, metavar="DIR")
@click.argument("out", type=_path, metavar="F.tar")
@click.option("--channel", default="", metavar="C", help="Only what this channel offers.")
@json_option
def export(*, directory: Path, out: Path, channel: str, as_json: bool) -> None:
    """Write DIR to one tar for devices without a network."""
    from casemate.release import export as exporter

    repository = _open(directory)
    with progress(exporter.total(repository, channel), "writing") as advance:
        size = exporter.export(repository, out, channel=channel, advance=advance)
    emit({"path": str(out), "bytes": size}, as_json=as_json, text=f"wrote {out}  {human_bytes(size)}")


@command.command()
@click.argument("release", metavar="REL")
@click.option("--to", "recipients", multiple=True, metavar="RECIPIENT", help="A device's key (repeatable).")
@click.option("--to-file", type=_path, metavar="FILE", help="A file with one recipient a line.")
@_repo_option
@json_option
def grant(*, release: str, recipients: tuple[str, ...], to_file: Path | None, directory: Path, as_json: bool) -> None:
    """Let devices open REL (kind/name/version or an id): wrap its key to each RECIPIENT."""
    from casemate.formats import grant as grant_format
    from casemate.release import files, grants, store

    lines = files.read(to_file, "list of recipients").decode("ascii", "replace").split() if to_file else []
    if not recipients and not lines:
        raise click.UsageError("give --to or --to-file")
    repository = _open(directory)
    record = store.find(repository, release)
    paths = grants.grant(repository, record, [grant_format.parse_recipient(text) for text in (*recipients, *lines)])
    emit(
        {"release": record.id, "grants": paths},
        as_json=as_json,
        text=f"{style('granted', 'good')} {record.header.label} to {len(paths)} device{'s' if len(paths) != 1 else ''}",
    )


@command.command()
@click.argument("releases", nargs=-1, required=True, metavar="REL...")
@click.option("--channel", default="stable", show_default=True, metavar="C", help="The channel.")
@_repo_option
@json_option
def promote(*, releases: tuple[str, ...], channel: str, directory: Path, as_json: bool) -> None:
    """Offer each REL in a channel; what the channel has of other kinds stays."""
    from casemate.release import channels, store

    repository = _open(directory)
    held = channels.promote(repository, channel, [store.find(repository, text) for text in releases])
    members = [member.target_path.rpartition("/")[0] for member in held.members]
    emit(
        {"channel": channel, "generation": held.generation, "members": members},
        as_json=as_json,
        text=f"{style('offered', 'good')} {channel} generation {held.generation}: {', '.join(members)}",
    )


@command.command()
@click.argument("channel")
@click.option("--resume", is_flag=True, help="Let them go on.")
@_repo_option
@json_option
def stop(*, channel: str, resume: bool, directory: Path, as_json: bool) -> None:
    """Tell the devices of CHANNEL to fetch and arm nothing for now; running downloads stop too."""
    from casemate.release import channels

    held = channels.stop(_open(directory), channel, stopped=not resume)
    emit(
        {"channel": channel, "generation": held.generation, "stop": held.stop},
        as_json=as_json,
        text=f"{channel} {'stopped' if held.stop else 'goes on'}",
    )


@command.command()
@click.argument("release", metavar="REL")
@_repo_option
@yes_option
@json_option
def yank(*, release: str, directory: Path, yes: bool, as_json: bool) -> None:
    """Take REL back: nobody is offered it any more. Channels that offer it are stopped."""
    from casemate.release import channels, store

    repository = _open(directory)
    record = store.find(repository, release)
    if not yes:
        click.confirm(f"take {record.header.label} back?", abort=True, err=True)
    hit = channels.yank(repository, record)
    emit(
        {"release": record.id, "stopped": hit},
        as_json=as_json,
        text=f"yanked {record.header.label}" + (f"; stopped {', '.join(hit)}: promote another release" if hit else ""),
    )


@command.command()
@click.argument("directory", type=_path, metavar="DIR")
@click.option(
    "--role", "names", multiple=True, metavar="ROLE", help="Sign this role again too (root, targets, models...)."
)
@json_option
def refresh(*, directory: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Sign what is current again before it expires. Daily, from a timer; needs no passphrase unless --role is given."""
    from casemate.release import expiry

    days = expiry.refresh(_open(directory), names)
    for name, left in days.items():
        if left < expiry.WARN_DAYS.get(name, 7):
            warn(f"the metadata of {name} expires in {left} days: casemate release refresh --role {name}")
    emit(
        {"days_left": days},
        as_json=as_json,
        text=lambda: table([(name, str(left)) for name, left in days.items()], ("ROLE", "DAYS LEFT")),
    )


@command.group()
def key() -> None:
    """List, rotate and revoke the keys of a repository."""


@key.command("list")
@_repo_option
@json_option
def key_list(*, directory: Path, as_json: bool) -> None:
    """List every key that counts and whether its file is here."""
    from casemate.release import setup

    rows = setup.list_keys(_open(directory))
    emit(
        {"keys": [{"name": name, "role": role, "here": here} for name, role, here in rows]},
        as_json=as_json,
        text=lambda: table(
            [(name, role, "yes" if here else "no") for name, role, here in rows], ("KEY", "ROLE", "HERE")
        ),
    )


@key.command()
@click.argument("name")
@_repo_option
@json_option
def rotate(*, name: str, directory: Path, as_json: bool) -> None:
    """Replace the key NAME (such as targets-2) by a new one. Devices follow by themselves."""
    from casemate.release import setup

    repository = _open(directory)
    with repository.lock():
        new = setup.rotate(repository, name)
    emit({"old": name, "new": new}, as_json=as_json, text=f"{style('rotated', 'good')} {name} to {new}")


@key.command()
@click.argument("name")
@_repo_option
@yes_option
@json_option
def revoke(*, name: str, directory: Path, yes: bool, as_json: bool) -> None:
    """Replace the key NAME and trust nothing it signed: for a stolen key.

    After a revoked authority or log, releases it signed are refused until they are published again as new versions.
    """
    from casemate.release import setup

    if not yes:
        click.confirm(f"trust nothing that {name} signed?", abort=True, err=True)
    repository = _open(directory)
    with repository.lock():
        new = setup.revoke(repository, name)
    emit({"old": name, "new": new}, as_json=as_json, text=f"{style('revoked', 'good')} {name}; {new} replaces it")


def _open(directory: Path) -> Repository:
    from casemate.clock import SystemClock
    from casemate.release.repository import Repository

    return Repository(directory, _keys(directory), SystemClock())


def _keys(directory: Path) -> KeyStore:
    from casemate.cli.passphrase import has_terminal
    from casemate.release.keys import KeyStore, Passphrases

    ask = _Terminal() if has_terminal() else None
    return KeyStore(directory / "keys", Passphrases(ask=ask, beside=directory / "keys" / "passphrase"))


class _Terminal:
    """Asks for the passphrases of keys, twice for a new one; an empty line means the one before."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, name: str, new: bool) -> Secret | None:  # noqa: FBT001 - the signature is release.keys.Ask
        import getpass

        from casemate.crypto.secret import Secret

        same = " (enter: the same as before)" if self._last else ""
        first = getpass.getpass(f"passphrase of {name}{same}: ")
        if first and new and first != getpass.getpass("once more: "):
            raise click.UsageError("the two differ")
        self._last = first or self._last
        return Secret(self._last.encode()) if self._last else None


def _row(record: Record) -> dict[str, Any]:
    public = record.manifest
    return {
        "release": record.id,
        "kind": public.kind,
        "name": public.name,
        "version": public.version,
        "security_version": public.security_version,
        "full_bytes": public.full.transfer_bytes,
        "deltas": {item.base_release: item.transfer_bytes for item in public.payloads if item.role == "delta"},
        **({"gate": {"model": public.gate.model, "min_assurance": public.gate.min_assurance}} if public.gate else {}),
    }


def _listing(found: list[Record]) -> str:
    if not found:
        return "no releases: add one with `casemate release publish DIR --add F`"
    rows = [
        (
            record.header.label,
            str(record.manifest.security_version),
            human_bytes(record.manifest.full.transfer_bytes),
            ", ".join(human_bytes(item.transfer_bytes) for item in record.manifest.payloads if item.role == "delta")
            or "-",
            record.id[:12],
        )
        for record in found
    ]
    return table(rows, ("RELEASE", "SECURITY", "FULL", "DELTAS", "ID"))
