"""`casemate service`: run the device as systemd units, one uid each."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casemate.cli.output import confirm, emit, json_option, progress, say, yes_option

if TYPE_CHECKING:
    from casemate.device.home import Home
    from casemate.device.service.plan import Plan

dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done, touch nothing.")
root_option = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Work on an image's tree instead of this machine (no commands are run).",
)
_EXAMPLES = """\b
Examples:
  casemate service install --dry-run        read everything first
  sudo casemate service install             this machine
  casemate service install --root ./image   an image's tree, to be booted elsewhere
"""


@click.group(invoke_without_command=False)
def command() -> None:
    """Run as a system service: hardened systemd units, one uid each."""


@command.command(epilog=_EXAMPLES)
@dry_run_option
@root_option
@click.option("--prefix", metavar="PATH", help="Where casemate lies in the image (default /opt/casemate).")
@json_option
def install(*, dry_run: bool, root: Path | None, prefix: str | None, as_json: bool) -> None:
    """Write users, directories and units, prepare the home, start it."""
    from casemate import config
    from casemate.device import startup
    from casemate.device.service import install as installer
    from casemate.device.service import plan as planner

    settings = config.load()
    startup.require_tls(settings)
    loopback, home = startup.is_loopback(settings), "/var/lib/casemate"
    if root:
        place = planner.image_place(prefix or planner.IMAGE_PREFIX, home, loopback=loopback)
    else:
        place = planner.live_place(home, loopback=loopback)
    plan = planner.make(place, live=root is None)
    if not dry_run and root is None:
        _install_here(plan, settings)
    elif not dry_run:
        installer.write(plan, installer.Tree(root or Path("/")))
    emit(_as_json(plan, done=not dry_run), as_json=as_json, text=lambda: _as_text(plan, done=not dry_run))


def _install_here(plan: Plan, settings: Any) -> None:
    """Write the files, make users and directories, prepare the home while nothing runs on it, start."""
    from casemate.device.home import Home
    from casemate.device.service import install as installer
    from casemate.device.service import plan as planner

    _require_root()
    planner.require_system_place(plan.place)
    home = Home(Path(plan.place.home))
    _require_stopped(home)
    installer.write(plan, installer.Tree(Path("/")))
    for line in plan.users:
        _run(line)
    _furnish(home, settings)
    for line in plan.start:
        _run(line)


def _require_stopped(home: Home) -> None:
    """Stop what an earlier installation runs; refuse while another device runs on the home."""
    from casemate.device.service import plan as planner

    _run(planner.STOP, quiet=True)
    if home.exists:
        with home.lock():
            pass


def _furnish(home: Home, settings: Any) -> None:
    """Make home, keystore and the demo model now: adding a model needs the sandbox, which no unit may build."""
    from casemate import keystores
    from casemate.device import migrate, startup

    migrate.bring_forward(home)
    home.create()
    with home.lock():
        person = startup.Person(
            say=say,
            progress=progress,
            announce=say,
            sources=keystores.from_environment,
            show_key=lambda _key: False,
        )
        startup.resolve_models(home, settings["models"], {}, person.sources(home), person)


@command.command()
@dry_run_option
@root_option
@click.option("--purge", is_flag=True, help="Remove the home and its key file too: models and journal are lost.")
@yes_option
@json_option
def uninstall(*, dry_run: bool, root: Path | None, purge: bool, yes: bool, as_json: bool) -> None:
    """Remove what `install` wrote; the home stays unless --purge."""
    from casemate.device.service import install as installer
    from casemate.device.service import plan as planner
    from casemate.errors import NotFoundError

    tree = installer.Tree(root or Path("/"))
    known = installer.read_manifest(tree)
    if known is None:
        raise NotFoundError("no service is installed here", hint="see `casemate service install --dry-run`")
    commands = [] if root else [planner.STOP, planner.RELOAD]
    left: list[str] = []
    if not dry_run:
        if purge and not yes:
            confirm(f"delete {known.home} with its models, keys and journal?")
        if root is None:
            _require_root()
            _run(planner.STOP, quiet=True)
        known, left = installer.remove(tree)
        if root is None:
            _run(planner.RELOAD)
        if purge:
            _purge(root, known.home)
    result = {
        "removed" if not dry_run else "would_remove": [
            path for path in (*known.files, *known.links) if path not in left
        ],
        "left": left,
        "commands": [" ".join(line) for line in commands],
        "home": None if purge else known.home,
    }
    emit(result, as_json=as_json, text=lambda: _removed_text(result, purge=purge, dry_run=dry_run))


def _purge(root: Path | None, home: str) -> None:
    import shutil

    from casemate.device.home import Home
    from casemate.keystores.sources import default_keyfile

    tree = Home(Path(home) if root is None else root / home.lstrip("/"))
    if root is None:
        with contextlib.suppress(Exception):  # a damaged home has no id to name its key file
            default_keyfile(tree.id, {}).unlink(missing_ok=True)
    shutil.rmtree(tree.path, ignore_errors=True)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _require_root() -> None:
    import os

    from casemate.errors import NotAuthorisedError

    if os.geteuid() != 0:
        raise NotAuthorisedError("only root installs services", hint="run it with sudo, or see --dry-run and --root")


def _run(line: tuple[str, ...], *, quiet: bool = False) -> None:
    import subprocess

    from casemate.errors import HostError, OperationError

    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise HostError(f"{line[0]} is missing", hint="apt install systemd") from error
    if done.returncode and not quiet:
        said = done.stderr.strip().splitlines()
        raise OperationError(
            f"`{' '.join(line)}` failed: {said[-1] if said else f'exit {done.returncode}'}",
            hint="see `systemctl status casemate.target`; what was written is removed by `casemate service uninstall`",
        )


def _as_json(plan: Plan, *, done: bool) -> dict[str, Any]:
    return {
        "installed": done,
        "files": [{"path": path, "content": text} for path, text in plan.files.items()],
        "links": [{"path": path, "target": target} for path, target in plan.links.items()],
        "commands": [" ".join(line) for line in (*plan.users, *plan.start)],
        "home": plan.place.home,
    }


def _as_text(plan: Plan, *, done: bool) -> str:
    if done:
        lines = [f"wrote   {path}" for path in (*plan.files, *plan.links)]
        return "\n".join([*lines, f"home    {plan.place.home}", *(f"ran     {' '.join(c)}" for c in plan.start)])
    parts = [f"# --- {path}\n{text}" for path, text in plan.files.items()]
    parts += [f"# --- {path} -> {target}\n" for path, target in plan.links.items()]
    return "\n".join(parts) + "\n" + "\n".join(f"$ {' '.join(line)}" for line in (*plan.users, *plan.start))


def _removed_text(result: dict[str, Any], *, purge: bool, dry_run: bool) -> str:
    paths = result["would_remove" if dry_run else "removed"]
    lines = [f"{'would remove' if dry_run else 'removed'}  {path}" for path in paths]
    lines += [f"left, because it was changed  {path}" for path in result["left"]]
    return "\n".join([*lines, "" if purge else f"the home stays: {result['home']}"]).rstrip()
