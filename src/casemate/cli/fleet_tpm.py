"""`casemate fleet tpm`: which TPMs may join, and whose word about a TPM counts."""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option


@click.group()
def command() -> None:
    """List TPMs that may join, and the makers that vouch for them."""


@command.command()
@click.argument("certificate", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--software", is_flag=True, help="For tests: a program that plays a TPM counts as a chip.")
@dir_option
@json_option
def maker(*, certificate: Path, software: bool, directory: Path | None, as_json: bool) -> None:
    """Believe a maker's issuing CERTIFICATE (PEM or DER): TPMs it signed for count as chips."""
    from casemate.fleet import tpm_enrolment

    raw = certificate.read_bytes()
    name = on_console(
        directory, lambda console: tpm_enrolment.add_maker(console.fleet, raw, console.actor, software=software)
    )
    emit({"maker": name, "software": software}, as_json=as_json, text=f"TPMs issued by {name} count as chips")


@command.command()
@click.argument("endorsement_key")
@click.option("--asset", required=True, metavar="TAG", help="The asset tag of the device it makes.")
@click.option("--group", default="", metavar="G", help="The group it joins.")
@dir_option
@json_option
def allow(*, endorsement_key: str, asset: str, group: str, directory: Path | None, as_json: bool) -> None:
    """Let the TPM with this ENDORSEMENT_KEY join without a token (SHA-256 of its public key, 64 hex digits)."""
    from casemate.errors import UsageError
    from casemate.fleet import tpm_enrolment
    from casemate.ids import parse_name

    digest = endorsement_key.lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):  # noqa: PLR2004 - SHA-256
        raise UsageError(
            "an endorsement key is named by 64 hex digits", hint="the audit log names the key of every TPM that joined"
        )
    tag, joins = parse_name(asset, "asset"), parse_name(group, "group") if group else ""
    on_console(directory, lambda console: tpm_enrolment.allow(console.fleet, digest, tag, joins, console.actor))
    emit({"allowed": digest, "asset": tag, "group": joins}, as_json=as_json, text=f"this TPM may join as {tag}")
