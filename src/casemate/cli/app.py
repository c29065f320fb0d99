"""`casemate app`: the apps that may call this device. A running device follows within a second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.output import confirm, emit, json_option, say, style, table, warn, yes_option

if TYPE_CHECKING:
    from casemate.device.apps import AppRecord, AppStore
    from casemate.device.home import Home


@click.group(
    "app",
    epilog="""\b
Examples:
  casemate app add kitchen --policy kitchen.toml
  casemate app rotate kitchen
  casemate app rm kitchen --yes""",
)
def command() -> None:
    """Manage the API keys and policies of the apps that may call this device."""


policy_option = click.option(
    "--policy",
    "policy_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file: models, limits, system prompt, guard (see docs/reference/policy.md).",
)


@command.command()
@click.argument("name")
@policy_option
@json_option
def add(*, name: str, policy_file: Path | None, as_json: bool) -> None:
    """Make app NAME and print its key, once."""
    from casemate.formats import event

    home, store = _open()
    key = store.add(name, _policy_bytes(policy_file))
    _show_key(name, key, as_json=as_json)
    _journal(home, event.app_added(app=name, now=_now()))


@command.command("list")
@json_option
def list_apps(*, as_json: bool) -> None:
    """List the apps, never their keys."""
    _, store = _open()
    records = store.records()
    emit({"apps": [_describe(store, record) for record in records]}, as_json=as_json, text=lambda: _table(records))


@command.command()
@click.argument("name")
@json_option
def show(*, name: str, as_json: bool) -> None:
    """Show app NAME and what its policy allows."""
    _, store = _open()
    record = store.get(name)
    described = _describe(store, record)
    policy = _policy_object(store, name)
    guard = {f"guard.{key}": value for key, value in policy["guard"].items()}
    shown = {**described, "created": _day(record.created), "rotated": _day(record.rotated)}
    rows = {**shown, **{key: value for key, value in policy.items() if key != "guard"}, **guard}
    lines = [f"{key:22} {_short(value)}".rstrip() for key, value in rows.items()]
    emit({**described, "policy": policy}, as_json=as_json, text="\n".join(lines))


@command.command()
@click.argument("name")
@json_option
def rotate(*, name: str, as_json: bool) -> None:
    """Give app NAME a new key; the old one is void at once."""
    from casemate.formats import event

    home, store = _open()
    key = store.rotate(name)
    _show_key(name, key, as_json=as_json)
    _journal(home, event.app_rotated(app=name, now=_now()))


@command.command()
@click.argument("name")
@click.argument("policy_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def policy(*, name: str, policy_file: Path, as_json: bool) -> None:
    """Replace the policy of app NAME by a checked copy of POLICY_FILE."""
    from casemate.formats import event

    home, store = _open()
    store.set_policy(name, policy_file.read_bytes(), source=str(policy_file))
    emit({"app": name, "policy": _policy_object(store, name)}, as_json=as_json, text=f"app {name} has a new policy")
    _journal(home, event.config_changed(what="policy", detail=f"app {name}", now=_now()))


@command.command()
@click.argument("name")
@yes_option
@json_option
def rm(*, name: str, yes: bool, as_json: bool) -> None:
    """Remove app NAME: its key stops working within a second."""
    from casemate.formats import event

    home, store = _open()
    store.get(name)
    if not yes:
        confirm(f"remove app {name}? its clients stop working")
    store.remove(name)
    emit({"app": name, "removed": True}, as_json=as_json, text=f"removed app {name}")
    _journal(home, event.app_removed(app=name, now=_now()))


def _open() -> tuple[Home, AppStore]:
    from casemate import config
    from casemate.device.apps import AppStore
    from casemate.device.home import Home

    home = Home(config.home_path()).open()
    return home, AppStore(home)


def _policy_bytes(path: Path | None) -> tuple[bytes, str] | None:
    return None if path is None else (path.read_bytes(), str(path))


def _show_key(name: str, key: str, *, as_json: bool) -> None:
    emit({"app": name, "key": key}, as_json=as_json, text=key)
    if not as_json:
        say(f"this is the only time the key of app {style(name, 'bold')} is shown")


def _journal(home: Home, event: dict[str, Any]) -> None:
    """Record what was done. The change stands either way: the person is told when its record does not."""
    from casemate.device.record import record
    from casemate.errors import CasemateError

    try:
        record(home, event)
    except CasemateError as error:
        warn(f"done, but not in the journal: {error.message}")


def _now() -> float:
    from casemate.clock import SystemClock

    return SystemClock().wall()


def _describe(store: AppStore, record: AppRecord) -> dict[str, Any]:
    has_policy = store.policy_path(record.name).exists()
    return {
        "app": record.name,
        "key_id": record.key_id,
        "created": record.created,
        "rotated": record.rotated,
        "policy_file": str(store.policy_path(record.name)) if has_policy else None,
    }


def _policy_object(store: AppStore, name: str) -> dict[str, Any]:
    import dataclasses

    checked = store.policy(name)
    plain = {field.name: getattr(checked, field.name) for field in dataclasses.fields(checked) if field.name != "guard"}
    rules = checked.guard
    guard = {field.name: getattr(rules, field.name) for field in dataclasses.fields(rules)}
    return {**plain, "guard": {key: dict(value) if hasattr(value, "items") else value for key, value in guard.items()}}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = tuple(f"{entity} = {action}" for entity, action in value.items())
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, tuple):
        value = ", ".join(map(str, value))
    text = "-" if value in {None, ""} else str(value)
    return text if len(text) <= 70 else text[:67] + "..."  # noqa: PLR2004 - one line of a terminal


def _day(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _table(records: list[AppRecord]) -> str:
    if not records:
        return "no apps yet: `casemate app add NAME` makes one"
    rows = [(record.name, f"cmk_{record.key_id}_...", _day(record.created), _day(record.rotated)) for record in records]
    return table(rows, ("APP", "KEY", "CREATED", "ROTATED"))
