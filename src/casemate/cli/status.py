"""`casemate status`: what runs, the assurance level and why, what is weaker than it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from casemate.cli.output import emit, human_bytes, json_option, style


@click.command()
@json_option
def command(*, as_json: bool) -> int:
    """Show what runs and how strong it is; exits 0 only when ready, 11 when a fleet holds the device."""
    state = collect()
    emit(state, as_json=as_json, text=lambda: _render(state))
    if (state["fleet"] or {}).get("state") in {"quarantined", "wiping", "wiped"}:
        return 11
    return 0 if state["ready"] else 1


def collect() -> dict[str, Any]:
    """Return the contract's object: the agent's facts and what can be seen without it."""
    from casemate import config
    from casemate.device import admin, posture
    from casemate.errors import CasemateError

    home = config.home_path()
    try:
        facts = admin.ask(home / "run", "status")
    except CasemateError:
        facts = {"ready": False, "endpoint": None, "metrics": None, "pid": None, "models": [], "processes": []}
    facts.setdefault("fleet", _ordered(home))
    weak = posture.weaknesses(posture.gather(home, facts)) if (home / "home.json").exists() else []
    assurance = facts.pop("assurance", None) or {}
    key_file = home / "run" / "default-app.key"
    return {
        **facts,
        "home": str(home),
        "assurance": assurance.get("level"),
        "assurance_by": "local",
        "assurance_reasons": assurance.get("reasons", []),
        "default_key_file": str(key_file) if any(w.code == "key-in-file" for w in weak) else None,
        "degraded": [{"code": w.code, "what": w.what, "fix": w.fix} for w in weak],
    }


def _ordered(home: Path) -> dict[str, Any] | None:
    """Return what the fleet ordered, when no device runs to tell; a user who may not read it learns nothing."""
    from casemate.device.fleet.membership import read_member
    from casemate.device.fleet.orders import OrdersFile
    from casemate.device.home import Home
    from casemate.errors import OperationError

    try:
        if read_member(Home(home)) is None:
            return None
        held = OrdersFile(Home(home)).read()
    except OperationError:
        return None
    return {"state": held.state.value, "reason": held.reason}


def _render(state: dict[str, Any]) -> str:
    held = _held(state["fleet"])
    if state["pid"] is None:
        return f"not running\n{held or 'start it with: casemate up'}"
    word = style("ready", "good") if state["ready"] else style("not ready", "bad")
    level, reasons = state["assurance"], "; ".join(state["assurance_reasons"])
    lines = [
        f"{word}  {state['endpoint']}  (pid {state['pid']})",
        f"assurance  {level}, decided here" + (f": {reasons}" if reasons else ""),
        f"metrics    {state['metrics']}",
    ]
    if held:
        lines.append(held)
    if state["default_key_file"]:
        lines.append(f"app key    {state['default_key_file']}")
    for model in state["models"]:
        mark = style("ready", "good") if model["state"] == "ready" else style(model["state"], "bad")
        why = f"  ({model['reason']})" if model["reason"] else ""
        lines.append(f"model      {model['name']}  {human_bytes(model['bytes'])}  {mark}{why}")
    weak = style("weak", "warn")
    lines += [f"{weak}       {row['what']}\n           fix: {row['fix']}" for row in state["degraded"]]
    return "\n".join(lines)


def _held(fleet: dict[str, Any] | None) -> str:
    """Return the line of a device that its fleet holds; nothing for one that serves."""
    if not fleet or fleet["state"] == "serving":
        return ""
    fenced = fleet.get("network_fenced")
    fence = "" if fenced is None else ", network reduced to the fleet" if fenced else ", network NOT fenced"
    why = f" ({fleet['reason']})" if fleet.get("reason") else ""
    return f"fleet      {style(fleet['state'], 'bad')}{why}{fence}"
