"""Every unit as its table says: judged by systemd's own tools, each with a control that shows they bite."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess

import pytest

from casemate.device.service import render, table
from casemate.device.service.render import Place
from casemate.errors import UsageError

LOOPBACK = Place("/usr/bin/python3", ("/opt/casemate",))
PUBLIC = dataclasses.replace(LOOPBACK, loopback=False)
SERVICES = [unit for unit in table.UNITS if unit.service is not None]
analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def names(units):
    return [unit.name for unit in units]


def text_of(unit, place=LOOPBACK):
    return render.unit_file(unit, place)


def service_rows(unit, place=LOOPBACK):
    rows = re.findall(r"^(\w+)=(.*)$", text_of(unit, place).split("[Service]")[1].split("[Install]")[0], re.MULTILINE)
    found: dict[str, list[str]] = {}
    for key, value in rows:
        found.setdefault(key, []).append(value)
    return found


def score(folder, name, text):
    """Return systemd's exposure score of a unit, 0 (tight) to 10."""
    file = folder / name.replace("@.", "@model.")
    file.write_text(text)
    line = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(file)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[-1]
    return float(re.search(r": ([0-9.]+) ", line)[1])


@analyze
@pytest.mark.parametrize("place", [LOOPBACK, PUBLIC], ids=["loopback", "public"])
@pytest.mark.parametrize("unit", SERVICES, ids=names(SERVICES))
def test_no_unit_is_more_exposed_than_its_ceiling(tmp_path, unit, place):
    assert unit.ceiling <= (1.0 if unit.name.startswith("casemate-engine") else 1.5)
    assert score(tmp_path, unit.name, text_of(unit, place)) <= unit.ceiling


@analyze
def test_control_a_unit_without_our_rows_scores_far_above(tmp_path):
    bare = "[Service]\nUser=casemate-engine\nExecStart=/usr/bin/true\n"
    assert score(tmp_path, "bare.service", bare) > 8


@analyze
def test_control_each_dropped_fence_is_seen(tmp_path):
    """The score is not blind: take a fence away and it rises."""
    whole = text_of(table.VAULT)
    base = score(tmp_path, "vault.service", whole)
    for row in ("PrivateNetwork=yes", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict"):
        without = whole.replace(f"\n{row}\n", "\n")
        assert without != whole
        assert score(tmp_path, "vault.service", without) > base


def verify(folder, *units):
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(f"./{unit}" for unit in units)],
        cwd=folder,
        env={"PATH": "/usr/bin", "SYSTEMD_UNIT_PATH": f"{folder}:/lib/systemd/system"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


@analyze
def test_systemd_finds_nothing_wrong_with_any_unit(tmp_path):
    for unit in table.UNITS:
        (tmp_path / unit.name).write_text(text_of(unit))
    assert verify(tmp_path, "casemate.target", "casemate-engine@saffron.service") == ""


@analyze
def test_control_verify_sees_a_misspelt_key(tmp_path):
    (tmp_path / "x.service").write_text(text_of(table.VAULT).replace("PrivateTmp", "PrivatTmp"))
    assert "PrivatTmp" in verify(tmp_path, "x.service")


def test_every_role_has_a_user_of_its_own_and_only_setup_is_root():
    users = {unit.name: service_rows(unit).get("User") for unit in SERVICES}
    assert users.pop("casemate-setup.service") is None
    assert users.pop("casemate-fence.service") == ["casemate-agent"]  # it reads the agent's file and nothing else
    flat = [user for (user,) in users.values()]
    assert len(set(flat)) == len(flat) == len(table.USERS)
    assert set(flat) == {f"casemate-{role}" for role in table.USERS}


def test_only_the_agent_reaches_a_network_and_then_only_loopback_and_who_fetches_updates_or_speaks_to_a_fleet():
    for unit in SERVICES:
        rows = service_rows(unit)
        if unit is table.AGENT:
            assert rows["IPAddressDeny"] == ["any"]
            assert rows["IPAddressAllow"] == ["localhost"]
            assert service_rows(unit, PUBLIC)["IPAddressDeny"] == [""]
        elif unit is table.UPDATE:
            assert rows["PrivateNetwork"] == ["no"]
            assert {"AF_INET", "AF_INET6"} < set(rows["RestrictAddressFamilies"][0].split())
        elif unit is table.LINK:
            assert rows["RestrictAddressFamilies"] == ["AF_UNIX AF_INET AF_INET6"]
            assert rows["CapabilityBoundingSet"] == [""]
        elif unit is table.FENCE:  # it changes what may pass, and sends nothing
            assert rows["RestrictAddressFamilies"] == ["AF_NETLINK"]
            assert rows["CapabilityBoundingSet"] == ["CAP_NET_ADMIN"]
        else:
            assert rows["PrivateNetwork"] == ["yes"]
            assert rows["RestrictAddressFamilies"] == ["AF_UNIX"]


def test_each_process_sees_its_own_part_of_the_home_and_no_other():
    parts = {
        "agent": {"run", "fleet"},
        "link": {"link"},
        "attester": {"attester"},
        "fence": {"fleet"},
        "journal": {"journal"},
        "vault": {"keystore", "models"},
        "gateway": {"apps"},
        "engine": set(),
        "update": {"update"},
    }
    for unit in (
        table.AGENT,
        table.JOURNAL,
        table.VAULT,
        table.GATEWAY,
        table.LINK,
        table.ATTESTER,
        table.ENGINE,
        table.UPDATE,
        table.FENCE,
    ):
        rows = service_rows(unit)
        bound = " ".join(rows.get("BindPaths", []) + rows["BindReadOnlyPaths"])
        seen = set(re.findall(r"/var/lib/casemate/(\w+)(?!\.json|/)\b", bound)) - {"home"}
        role = unit.name.removeprefix("casemate-").partition(".")[0].rstrip("@")
        assert seen - {"run"} == parts[role] - {"run"}
        hidden = rows["TemporaryFileSystem"] == ["/var/lib/casemate:ro,mode=0755"] or "RootDirectory" in rows
        assert hidden


def test_only_the_attester_and_before_it_setup_reach_a_device_node_and_only_the_tpm():
    assert {unit.name for unit in SERVICES if service_rows(unit)["PrivateDevices"] != ["yes"]} == {table.ATTESTER.name}
    reaching = [unit for unit in SERVICES if "DeviceAllow" in service_rows(unit)]
    assert names(reaching) == [table.SETUP.name, table.ATTESTER.name]
    for unit in reaching:
        assert service_rows(unit)["DeviceAllow"] == ["/dev/tpmrm0 rw"]
        assert service_rows(unit)["DevicePolicy"] == ["closed"]
    assert service_rows(table.SETUP)["BindPaths"] == ["-/dev/tpmrm0"]  # no TPM: nothing to bind, and it starts
    assert f"ConditionPathExists={table.TPM}" in text_of(table.ATTESTER)  # no TPM: nothing waits, nothing fails
    assert "m casemate-attester tss\n" in render.files(LOOPBACK)[render.SYSUSERS_FILE]


def test_keys_reach_the_vault_as_credentials_and_nobody_else():
    holders = {unit.name for unit in SERVICES if "LoadCredential" in service_rows(unit)}
    assert holders == {"casemate-vault.service", "casemate-setup.service"}
    for unit in SERVICES:
        if unit is not table.SETUP and unit is not table.ENGINE:  # the engine has no /etc at all
            assert "-/etc/casemate/keys" in service_rows(unit)["InaccessiblePaths"]


def test_files_are_whole_and_the_same_every_time():
    made = render.files(LOOPBACK)
    assert made == render.files(LOOPBACK)
    assert not [path for path, text in made.items() if "{" in text]
    assert {path.rpartition("/")[2] for path in made if path.startswith(render.UNIT_DIRECTORY)} == set(
        names(table.UNITS)
    )
    assert "d /var/lib/casemate/keystore 0700 casemate-vault casemate-vault -" in made[render.TMPFILES_FILE]
    assert json.dumps(made)  # plain text, nothing else


@pytest.mark.parametrize("path", ["relative", "/a b", '/a"b', "/a%b", "/a\nUser=root", "/a;b", "/a$b", ""])
@pytest.mark.parametrize("field", ["python", "home"])
def test_a_path_that_would_mean_something_else_is_refused(path, field):
    with pytest.raises(UsageError, match="unit file"):
        render.files(dataclasses.replace(LOOPBACK, **{field: path}))
