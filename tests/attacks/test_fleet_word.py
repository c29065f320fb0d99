"""Who has a device's connection and its key, and not its TPM, says that it runs a release that it does not run.

The word is signed, the check-in agrees with it; only the TPM does not. The control: the very same lie of a device that
has no TPM is believed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json

import pytest
import sqlalchemy as sa

from casemate.cli.main import run
from casemate.fleet.home import FleetHome
from casemate.fleet.store import Store, tables
from casemate.formats import director
from support import published
from support.evidence import event
from support.fleet import Device, running, until
from support.swtpm import needs_swtpm, software_tpm
from support.tpm_device import STACK, TpmDevice

pytestmark = needs_swtpm
OLD = "0" * 64
GROUP = ("--group", "till")
TERMS = ("--soak", "1s", "--patience", "300s", "--install", "300s", "--control", "0", "--first", "4")


def offline(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run(["fleet", *map(str, words), "--json"]) == 0, out.getvalue()
    return json.loads(out.getvalue())


def serving(*contents):
    """Return what a device measures that served generations with these contents, one after the other."""
    return (*STACK, *(event("generation", "generation", each) for each in contents))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("word")
    repository = published.create(directory / "repository")
    published.put(repository, directory / "made", "1.0.0")
    with running(directory / "fleet") as started:
        started.cli("policy", "trust", offline("policy", "author", directory / "author")["public"])
        root = repository.metadata / "1.root.json"
        started.cli("release", "import", str(repository.directory), "--root", str(root))
        yield started


def joined(server, directory, name, chip):
    (directory / f"{name}.pem").write_bytes(chip.maker)
    server.cli("tpm", "maker", str(directory / f"{name}.pem"), "--software")
    device = TpmDevice(server, directory / name, name, chip).boot()
    return device.join(server.token(name, *GROUP))


def learn(server, device, directory):
    """Have a person sign a policy of all that *device* measured."""
    device.attest()
    proposal, signed = directory / "proposal.json", directory / "signed"
    server.cli("policy", "learn", device.asset, "--out", str(proposal))
    offline("policy", "sign", proposal, "--key-file", server.directory.parent / "author", "--out", signed)
    server.cli("policy", "add", str(signed))


def started(server):
    """Start a rollout; the author alone may after ten minutes, so a second person approves."""
    tokens = {
        role: server.cli("api-token", "create", role, "--role", role)["token"]
        for role in ("release-manager", "security-officer")
    }
    name = server.cli("rollout", "create", "stable", *GROUP, *TERMS)["id"]
    for role, verb in (("security-officer", "approve"), ("release-manager", "start")):
        headers = {"Authorization": f"Bearer {tokens[role]}", "content-type": "application/json"}
        assert server.ask("people", "POST", f"/api/v1/rollouts/{name}/{verb}", b"{}", headers).status == 200
    return name


def offered(device):
    raw = device.checkin(pick=1).json().get("pick")
    return raw is not None and payload(base64.b64decode(raw))["action"] == "take"


def payload(envelope):
    return json.loads(base64.b64decode(json.loads(envelope)["payload"]))


def say(server, device, content):
    charter = payload((server.directory / "ca" / "charter.json").read_bytes())
    word = director.Word(1, charter["fleet"], device.id, content, "good", 1)
    raw = director.sign_word(director.encode_word(word), device.key)
    assert device.ask("POST", "/device/v1/generation", {"word": base64.b64encode(raw).decode()}).status == 204


def proven(server):
    """Return which generations the server keeps as proven, by device, oldest first."""

    async def read():
        store, result = Store(FleetHome(server.directory).settings().database), tables.attest_result.c
        async with store.read() as connection:
            rows = (await connection.execute(sa.select(result.device_id, result.generation).order_by(result.id))).all()
        await store.close()
        return rows

    found = {}
    for row in asyncio.run(read()):
        found.setdefault(row.device_id, []).append(row.generation)
    return found


def test_a_signed_lie_about_a_release_fails_by_the_tpm_and_passes_without_one(server, tmp_path):
    new = server.cli("release", "list")["releases"][0]["content"]
    with software_tpm(tmp_path / "one", tmp_path / "ca") as one, software_tpm(tmp_path / "two", tmp_path / "ca") as two:
        honest, liar = joined(server, tmp_path, "honest", one), joined(server, tmp_path, "liar", two)
        believed = Device(server, tmp_path, "believed").enrol(None, *GROUP)
        honest.boot(serving(OLD, new))
        learn(server, honest, tmp_path)
        liar.boot(serving(OLD))
        assert liar.attest()["status"] == "affirming", "what it runs is good: it only is not what it says"
        everybody = (honest, liar, believed)
        for device in everybody:
            device.checkin()
        server.has_heard_of(*(device.asset for device in everybody))
        name = started(server)
        for device in everybody:
            until(lambda device=device: offered(device), 30)
            say(server, device, new)
        assert honest.attest()["status"] == liar.attest()["status"] == "affirming"

        def settled():
            for device in everybody:
                device.checkin(generation=new)
            found = server.cli("rollout", "status", name)
            return found if found["good"] + found["failed"] == 3 else None

        found = until(settled, 60)
    assert (found["good"], found["failed"], found["silent"]) == (2, 1, 0)
    kept = proven(server)
    assert kept[honest.id][-1] == new
    assert set(kept[liar.id]) == {OLD}
    assert believed.id not in kept
    token = server.cli("api-token", "create", "eve", "--role", "viewer")["token"]
    answer = server.ask("people", "GET", f"/api/v1/rollouts/{name}", None, {"Authorization": f"Bearer {token}"})
    told = json.dumps(answer.json())
    assert "it proves another generation than it says" in told
