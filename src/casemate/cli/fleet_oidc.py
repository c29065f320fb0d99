"""`casemate fleet oidc`: the provider that people may sign in with, beside their passkeys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from casemate.cli.fleet import dir_option, on_console
from casemate.cli.output import emit, json_option, say

_SECRET_LIMIT: Final = 1024


@click.group(
    epilog="""\b
Examples:
  casemate fleet oidc set --issuer https://id.example.org --client-id casemate --secret-file FILE
  casemate fleet admin email Ada ada@example.org
  casemate fleet oidc set --issuer https://id.example.org --client-id casemate \\
      --role-claim groups --role fleet-admins=owner --role shop-it=operator"""
)
def command() -> None:
    """Set the provider of single sign-on (OpenID Connect), show or remove it.

    Nobody comes in because the provider knows them: they are somebody with that e-mail address here, or a mapping of
    the provider's groups to roles lets them in.
    """


@command.command("set")
@click.option("--issuer", required=True, metavar="URL", help="As the provider writes it in its own description.")
@click.option("--client-id", required=True, metavar="ID", help="What the provider calls this server.")
@click.option("--secret-file", type=click.Path(path_type=Path, exists=True), metavar="F", help="The client's secret.")
@click.option("--label", default="single sign-on", show_default=True, metavar="TEXT", help="What the button says.")
@click.option("--role-claim", default="", metavar="NAME", help="The claim that says who gets which role.")
@click.option("--role", "rows", multiple=True, metavar="VALUE=ROLE", help="One of its values; the first that fits.")
@dir_option
@json_option
def set_provider(
    *, secret_file: Path | None, rows: tuple[str, ...], directory: Path | None, as_json: bool, **given: Any
) -> None:
    """Let people sign in with a provider; it is asked first who it is. Every server of the fleet follows at once."""
    from casemate.errors import UsageError
    from casemate.fleet import signon
    from casemate.fleet.shared_settings import OidcSettings

    secret = secret_file.read_bytes().strip() if secret_file else b""
    if secret_file and not 0 < len(secret) <= _SECRET_LIMIT:
        raise UsageError("the file of the client's secret is empty, or no secret")
    settings = OidcSettings(**given, roles=signon.parse_roles(rows))

    async def act(console: Any) -> str:
        await signon.set_provider(console.fleet, settings, secret, console.actor)
        return str(console.callback_url())

    callback = on_console(directory, act)
    emit({"issuer": settings.issuer, "callback": callback}, as_json=as_json, text=callback)
    if not as_json:
        say("give the provider this address to send people back to")


@command.command()
@dir_option
@json_option
def show(*, directory: Path | None, as_json: bool) -> None:
    """Show the provider, never its secret."""
    from casemate.fleet import signon

    async def act(console: Any) -> dict[str, Any] | None:
        shown = await signon.show(console.fleet)
        return {**shown, "callback": console.callback_url()} if shown else None

    found = on_console(directory, act)
    lines = [f"{key.replace('_', ' '):12} {value}" for key, value in (found or {}).items()]
    emit({"oidc": found}, as_json=as_json, text="\n".join(lines) or "no provider: people have passkeys")


@command.command()
@dir_option
@json_option
def remove(*, directory: Path | None, as_json: bool) -> None:
    """Let nobody in by a provider any more."""
    from casemate.fleet import signon

    on_console(directory, lambda console: signon.remove_provider(console.fleet, console.actor))
    emit({"oidc": None}, as_json=as_json, text="no provider: people have passkeys")
