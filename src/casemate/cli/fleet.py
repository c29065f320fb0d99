"""`casemate fleet`: the server of a fleet, and what is done on its console. Devices' own verbs are in `device`."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from casemate.cli.output import emit_line, json_option, say, style

if TYPE_CHECKING:
    from casemate.fleet.console import Console

Result = TypeVar("Result")
_ELSEWHERE: Final = {
    "token": "casemate.cli.fleet_token",
    "device": "casemate.cli.fleet_device",
    "admin": "casemate.cli.fleet_admin",
    "oidc": "casemate.cli.fleet_oidc",
    "alert": "casemate.cli.fleet_alert",
    "backup": "casemate.cli.fleet_backup:backup",
    "restore": "casemate.cli.fleet_backup:restore",
    "api-token": "casemate.cli.fleet_api_token",
    "ca": "casemate.cli.fleet_ca",
    "audit": "casemate.cli.fleet_audit",
    "usage": "casemate.cli.fleet_usage",
    "release": "casemate.cli.fleet_release",
    "rollout": "casemate.cli.fleet_rollout",
    "simulate": "casemate.cli.fleet_simulate",
    "demo": "casemate.cli.fleet_demo",
    "policy": "casemate.cli.fleet_policy",
    "tpm": "casemate.cli.fleet_tpm",
    "model": "casemate.cli.fleet_model",
}
_ORDER: Final = (
    "serve",
    "token",
    "device",
    "release",
    "rollout",
    "policy",
    "model",
    "tpm",
    "admin",
    "oidc",
    "alert",
    "usage",
    "audit",
    "api-token",
    "ca",
    "backup",
    "restore",
    "simulate",
    "demo",
)


class FleetTree(click.Group):
    """The fleet's nouns; each is a module of its own, imported when typed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every noun in the order of daily use."""
        del ctx
        return list(_ORDER)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of *cmd_name* when it is not this one."""
        if cmd_name in _ELSEWHERE:
            module, _, name = _ELSEWHERE[cmd_name].partition(":")
            found: click.Command = getattr(importlib.import_module(module), name or "command")
            return found
        return super().get_command(ctx, cmd_name)


dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="CASEMATE_FLEET_DIR",
    metavar="D",
    help="The fleet's directory (or CASEMATE_FLEET_DIR).",
)


@click.group(
    "fleet",
    cls=FleetTree,
    epilog="""\b
Examples:
  casemate fleet serve --dir /srv/fleet
  casemate fleet token create --dir /srv/fleet --asset till-7
  casemate fleet device list --dir /srv/fleet
  casemate fleet device revoke till-7 --dir /srv/fleet""",
)
def command() -> None:
    """Run the server of a fleet of devices, and manage the fleet on that server's console."""


@command.command()
@dir_option
@click.option("--database", metavar="URL", help="postgresql://... instead of SQLite in the directory; remembered.")
@click.option("--bus", metavar="URL", help="nats://...: NATS between many servers and the database; remembered.")
@click.option("--listen-people", "people", default="127.0.0.1:8443", show_default=True, metavar="H:P")
@click.option("--listen-devices", "devices", default="127.0.0.1:8444", show_default=True, metavar="H:P")
@click.option("--listen-enrol", "enrol", default="127.0.0.1:8445", show_default=True, metavar="H:P")
@click.option("--name", "names", multiple=True, metavar="HOST", help="A name or address devices reach this server by.")
@click.option("--devices-url", metavar="URL", help="Where devices connect, when a proxy is in front; remembered.")
@click.option("--enrol-url", metavar="URL", help="Where devices enrol, when a proxy is in front; remembered.")
@click.option("--people-url", metavar="URL", help="The address people open, when it is not the listener's; remembered.")
@click.option(
    "--evidence-days",
    type=click.IntRange(1, 3650),
    metavar="N",
    help="Days to keep old results of attestation, 30 at first; remembered.",
)
@click.option(
    "--grant-days",
    type=click.IntRange(30, 3650),
    metavar="N",
    help="Days to keep key grants and refusals, 365 at first; the audit log keeps them; remembered.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path, exists=True), metavar="F", help="People's own chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path, exists=True), metavar="F", help="Its private key, PEM.")
@json_option
def serve(
    *,
    directory: Path | None,
    evidence_days: int | None,
    grant_days: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    as_json: bool,
    names: tuple[str, ...],
    **given: str | None,
) -> None:
    """Serve a fleet; the first start in an empty directory makes it.

    An address is HOST:PORT (port 0: any free one), unix:PATH for a proxy in front, or "off". The devices' listener
    takes nobody without a certificate of this fleet, and the server proves that before it says that it is ready.
    """
    from casemate.clock import SystemClock
    from casemate.errors import UsageError
    from casemate.fleet import serve as server
    from casemate.fleet.home import FleetHome

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together")
    home = FleetHome(directory_of(directory))
    options = server.Options(
        people=_address(given["people"]),
        devices=_address(given["devices"]),
        enrol=_address(given["enrol"]),
        database=given["database"],
        bus=given["bus"],
        devices_url=given["devices_url"],
        enrol_url=given["enrol_url"],
        people_url=given["people_url"],
        evidence_days=evidence_days,
        grant_days=grant_days,
        names=names,
        tls=(tls_cert, tls_key) if tls_cert and tls_key else None,
    )

    async def ready(_fleet: Any, where: server.Ready) -> None:
        if as_json:
            link = {"admin_link": where.admin_link} if where.admin_link else {}
            emit_line(
                {"ready": True, **{key: getattr(where, key) for key in ("people", "devices", "enrol", "ca")}, **link}
            )
        else:
            _welcome(home.path, where)

    asyncio.run(server.serve(home, SystemClock(), options, ready))


def _address(text: str | None) -> str:
    return "" if text in {None, "off"} else str(text)


def _welcome(path: Path, where: Any) -> None:
    if where.first:
        say(f"{style('made', 'good')} a fleet in {path}")
        say(f"offline  {path / 'ca' / 'root.key'} is better kept elsewhere")
    for name in ("people", "devices", "enrol"):
        say(f"{name:8} {getattr(where, name) or 'off'}")
    say(f"root     {where.ca}")
    if where.admin_link:
        say(f"console  {style(where.admin_link, 'good')}")
        say("         opens once, for a day: make your passkey there; `casemate fleet admin invite NAME` makes another")
    say(f"enrol a device: `casemate fleet token create --dir {path} --asset NAME`, and on it:")
    say(f"  casemate device enrol {where.enrol or 'https://THIS-SERVER'} --token-file FILE")


def directory_of(given: Path | None) -> Path:
    """Return the fleet's directory: given, or the place for one of this user."""
    import os

    if given is not None:
        return given
    return Path("/var/lib/casemate-fleet") if os.geteuid() == 0 else Path.home() / ".local/share/casemate-fleet"


def on_console(directory: Path | None, act: Callable[[Console], Any]) -> Any:
    """Run *act* (a coroutine function of one argument) on the fleet in *directory*, as the person at its console."""
    from casemate.clock import SystemClock
    from casemate.fleet.console import Console
    from casemate.fleet.home import FleetHome

    async def work() -> Any:
        async with Console.open(FleetHome(directory_of(directory)), SystemClock()) as console:
            return await act(console)

    return asyncio.run(work())
