"""`casemate fleet policy`: what a good device looks like, as a person has signed it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, say, table

if TYPE_CHECKING:
    from casemate.crypto.signing import SigningKey


@click.group()
def command() -> None:
    """Propose, sign and put in force what devices are compared with. Without a policy no device is affirmed."""


@command.command()
@click.argument("out", type=click.Path(path_type=Path))
@json_option
def author(*, out: Path, as_json: bool) -> None:
    """Make a policy author's key in the new file OUT. Keep it off the server; `trust` gets its public half."""
    import os

    from casemate.crypto.signing import SigningKey
    from casemate.errors import UsageError

    key = SigningKey.generate()
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{out} is there already", hint="name a new file") from error
    with os.fdopen(fd, "wb") as file:
        file.write(key.seed().hex().encode("ascii") + b"\n")
    emit({"public": key.public.hex(), "file": str(out)}, as_json=as_json, text=key.public.hex())


@command.command()
@click.argument("public")
@dir_option
@json_option
def trust(*, public: str, directory: Path | None, as_json: bool) -> None:
    """Take policies signed by the author with the public key PUBLIC (64 hex digits), and by nobody else."""
    from casemate.errors import UsageError
    from casemate.fleet import policies

    try:
        key = bytes.fromhex(public)
    except ValueError as error:
        raise UsageError("a public key is 64 hex digits", hint="`casemate fleet policy author` prints it") from error
    on_console(directory, lambda console: policies.trust_author(console.fleet, key, console.actor))
    emit({"trusted": public}, as_json=as_json, text="policies signed by this author count from now on")


@command.command()
@click.argument("device")
@click.option("--group", default="", metavar="G", help="The group the policy is for.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME[=DIGEST]",
    help="List this model, too, before it is served; without DIGEST the one that DEVICE says it has.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="F", help="Write the proposal here.")
@dir_option
@json_option
def learn(
    *, device: str, group: str, models: tuple[str, ...], out: Path | None, directory: Path | None, as_json: bool
) -> None:
    """Propose a policy from what DEVICE (known to be good) proved last. Read it, then sign it.

    A gated model is measured when it is served. List it here before that (--model, as often as needed, NAME as in
    `casemate fleet model gate`), or the next result is a warning and its lease is not renewed.
    """
    import msgspec

    from casemate.fleet import attestation
    from casemate.formats import reference_policy

    proposal = on_console(directory, lambda console: attestation.learn_from(console.fleet, device, group, models))
    raw = msgspec.json.format(reference_policy.encode(proposal))
    if out:
        out.write_bytes(raw + b"\n")
        say(f"read {out}, then: `casemate fleet policy sign {out} --key-file KEY --out SIGNED`")
    emit({"policy": msgspec.json.decode(raw)}, as_json=as_json, text=str(out) if out else raw.decode("utf-8"))


@command.command()
@click.argument("proposal", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--key-file", type=click.Path(path_type=Path, exists=True), required=True, metavar="F", help="The author's key."
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="F", help="Write the signed policy here."
)
@json_option
def sign(*, proposal: Path, key_file: Path, out: Path, as_json: bool) -> None:
    """Sign a PROPOSAL. Needs no fleet and no network."""
    from casemate.formats import reference_policy

    policy = reference_policy.parse_proposal(proposal.read_bytes())
    out.write_bytes(reference_policy.sign(policy, _author_key(key_file)))
    result = {"name": policy.name, "version": policy.version, "expires": policy.expires, "file": str(out)}
    emit(result, as_json=as_json, text=f"signed {policy.name} {policy.version} into {out}")


@command.command()
@click.argument("signed", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@dir_option
@json_option
def add(*, signed: Path, directory: Path | None, as_json: bool) -> None:
    """Put a SIGNED policy in force. It must be newer than the one it replaces."""
    from casemate.fleet import policies

    raw = signed.read_bytes()
    found = on_console(directory, lambda console: policies.add(console.fleet, raw, console.actor))
    policy = found.policy
    result = {"name": policy.name, "version": policy.version, "expires": policy.expires, "digest": found.digest}
    emit(result, as_json=as_json, text=f"policy {policy.name} {policy.version} is in force")


@command.command("list")
@dir_option
@json_option
def list_policies(*, directory: Path | None, as_json: bool) -> None:
    """List every policy that was ever in force; the newest of a name is."""
    from casemate.cli.fleet_device import moment
    from casemate.fleet import policies

    found: list[dict[str, Any]] = on_console(directory, lambda console: policies.list_all(console.fleet))
    rows = [(each["name"], str(each["version"]), moment(each["created"]), each["created_by"]) for each in found]
    emit({"policies": found}, as_json=as_json, text=lambda: table(rows, ("POLICY", "VERSION", "SINCE", "BY")))


def _author_key(path: Path) -> SigningKey:
    from casemate.crypto.secret import Secret
    from casemate.crypto.signing import SEED_LENGTH, SigningKey
    from casemate.errors import NotAuthorisedError

    try:
        seed = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        seed = b""
    if len(seed) != SEED_LENGTH:
        raise NotAuthorisedError(f"{path} is not an author's key", hint="`casemate fleet policy author` makes one")
    return SigningKey(Secret(seed))
