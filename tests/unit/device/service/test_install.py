"""Installing into a tree and taking it back: exactly what was written, nothing of anybody else's."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from casemate.cli.main import run
from casemate.device.service import install, plan, render
from casemate.device.service.install import Tree
from casemate.errors import BusyError, ConfigError, NotFoundError, OperationError, UntrustedDataError

PLACE = plan.image_place("/opt/casemate", "/var/lib/casemate", loopback=True)
PLAN = plan.make(PLACE, live=False)


def census(root):
    """Return everything below *root*: names, modes, bytes, link targets."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            facts = os.lstat(path)
            if stat.S_ISLNK(facts.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(facts.st_mode):
                content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            else:
                content = ""
            found[os.path.relpath(path, root)] = (facts.st_mode, facts.st_uid, facts.st_gid, content)
    return found


@pytest.fixture
def image(tmp_path):
    root = tmp_path / "image"
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/systemd/system/other.service").write_text("[Service]\n")
    (root / "etc/casemate").mkdir()
    (root / "etc/casemate/casemate.toml").write_text('listen = "127.0.0.1:9000"\n')
    return root


def test_uninstall_leaves_the_tree_as_it_was_before(image):
    before = census(image)
    install.write(PLAN, Tree(image))
    assert set(PLAN.files) <= {f"/{path}" for path in census(image)}
    _, left = install.remove(Tree(image))
    assert left == []
    assert census(image) == before


def test_the_target_starts_at_boot(image):
    install.write(PLAN, Tree(image))
    link = image / render.WANTS_LINK.lstrip("/")
    assert (link.parent / os.readlink(link)).resolve() == image / "etc/systemd/system/casemate.target"


def test_installing_again_changes_nothing(image):
    install.write(PLAN, Tree(image))
    once = census(image)
    install.write(PLAN, Tree(image))
    assert census(image) == once


def test_an_upgrade_replaces_its_own_files_and_removes_what_is_no_longer_made(image):
    older = plan.Plan(PLACE, {**PLAN.files, f"{render.UNIT_DIRECTORY}/casemate-old.service": "[Service]\n"}, PLAN.links)
    older.files[render.SYSUSERS_FILE] = "# older\n"
    before = census(image)
    install.write(older, Tree(image))
    install.write(PLAN, Tree(image))
    assert not (image / "etc/systemd/system/casemate-old.service").exists()
    assert (image / render.SYSUSERS_FILE.lstrip("/")).read_text() == PLAN.files[render.SYSUSERS_FILE]
    install.remove(Tree(image))
    assert census(image) == before


def test_somebody_elses_file_is_never_overwritten(image):
    foreign = image / "etc/systemd/system/casemate-agent.service"
    foreign.write_text("mine\n")
    before = census(image)
    with pytest.raises(BusyError, match=r"casemate-agent\.service"):
        install.write(PLAN, Tree(image))
    assert census(image) == before


def test_a_changed_file_is_left_and_named(image):
    install.write(PLAN, Tree(image))
    changed = image / "etc/systemd/system/casemate-vault.service"
    changed.write_text(changed.read_text() + "# local\n")
    with pytest.raises(BusyError, match="changed"):
        install.write(PLAN, Tree(image))
    _, left = install.remove(Tree(image))
    assert left == ["/etc/systemd/system/casemate-vault.service"]
    assert changed.exists()


@pytest.mark.parametrize("after", range(1, len(PLAN.files) + 2))
def test_an_installation_that_fails_anywhere_leaves_nothing(image, monkeypatch, after):
    before = census(image)
    real, calls = Tree.write, []

    def failing(self, path, data):
        calls.append(path)
        if len(calls) == after:
            raise OperationError("no space left")
        real(self, path, data)

    monkeypatch.setattr(Tree, "write", failing)
    with pytest.raises(OperationError, match="no space"):
        install.write(PLAN, Tree(image))
    assert census(image) == before


def test_a_link_in_the_image_does_not_lead_out_of_it(image, tmp_path):
    outside = tmp_path / "host-etc"
    outside.mkdir()
    (image / "etc/sysusers.d").symlink_to(outside)
    # control: the same write through the link, as a plain tool does it, lands outside
    (image / "etc/sysusers.d/control").write_text("x")
    assert (outside / "control").exists()
    before = census(outside)
    with pytest.raises(UntrustedDataError) as caught:
        install.write(PLAN, Tree(image))
    assert caught.value.check == "image-link"
    assert census(outside) == before
    assert not (image / plan.MANIFEST.lstrip("/")).exists()


def test_nothing_installed_and_a_damaged_manifest_are_told(image):
    with pytest.raises(NotFoundError):
        install.remove(Tree(image))
    (image / plan.MANIFEST.lstrip("/")).write_text('{"schema":1,"files":"all"}')
    with pytest.raises(ConfigError, match="damaged"):
        install.remove(Tree(image))


def test_services_do_not_run_code_that_others_may_change(tmp_path):
    tree = tmp_path / "casemate"
    tree.mkdir()
    python = str(tree / "python")
    tree.chmod(0o777)
    with pytest.raises(ConfigError, match=r"others than root|cannot enter"):
        plan.require_system_place(render.Place(python, (str(tree),)))
    with pytest.raises(ConfigError, match="home"):
        plan.require_system_place(render.Place("/home/ada/.venv/bin/python", ("/home/ada/.venv",)))
    plan.require_system_place(render.Place("/usr/bin/python3", ("/usr",)))


# --- the command ------------------------------------------------------------------------------------------------------


def test_dry_run_shows_every_file_and_command_and_touches_nothing(image, capsys):
    before = census(image)
    assert run(["service", "install", "--root", str(image), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(path in shown and text in shown for path, text in PLAN.files.items())
    assert census(image) == before


def test_live_dry_run_names_the_commands(capsys):
    assert run(["service", "install", "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["installed"] is False
    assert result["commands"][0] == "systemd-sysusers /etc/sysusers.d/casemate.conf"
    assert result["commands"][-1] == "systemctl start casemate.target"


def test_an_image_is_installed_and_cleaned_without_any_command(image, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("no command may run for an image"))
    before = census(image)
    assert run(["service", "install", "--root", str(image), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["commands"] == []
    assert (
        "ExecStart=/opt/casemate/.venv/bin/python -P"
        in (image / "etc/systemd/system/casemate-agent.service").read_text()
    )
    assert run(["service", "uninstall", "--root", str(image), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["removed"]) == {*PLAN.files, *PLAN.links}
    assert result["home"] == "/var/lib/casemate"
    assert census(image) == before


def test_purge_removes_the_images_home(image):
    home = image / "var/lib/casemate/models"
    home.mkdir(parents=True)
    assert run(["service", "install", "--root", str(image), "--json"]) == 0
    assert run(["service", "uninstall", "--root", str(image), "--purge", "--yes", "--json"]) == 0
    assert not home.parent.exists()


def test_an_ordinary_user_is_told_to_use_sudo(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(["service", "install", "--json"]) == 4
    assert "sudo" in json.loads(capsys.readouterr().out)["error"]["hint"]
