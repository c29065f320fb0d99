"""Our client as the suite tuf-conformance drives it: commands, exit codes, files it leaves, requests it makes.

`make tuf-conformance DIR=CHECKOUT` runs the suite itself. Here is what its command line promises, on a repository of
our own; the rules of the workflow are in tests/unit/device/update/test_client_workflow.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile

from support import mirror
from support.forge import Forge

CLIENT = Path(__file__).with_name("tuf_client.py")


class Suite:
    def __init__(self, tmp_path, forge, server):
        self.forge, self.server = forge, server
        self.metadata, self.artefacts = tmp_path / "metadata", tmp_path / "targets"
        self.metadata.mkdir()
        self.artefacts.mkdir()
        self.root = tmp_path / "initial_root.json"
        self.root.write_bytes(forge.first_root)

    def run(self, *arguments):
        self.server.asked.clear()
        command = [sys.executable, str(CLIENT), "--metadata-dir", str(self.metadata), *map(str, arguments)]
        return subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        ).returncode

    def init(self):
        return self.run("init", self.root)

    def refresh(self):
        return self.run("--metadata-url", f"{self.server.url}metadata/", "refresh")

    def download(self, *names):
        wanted = [word for name in names for word in ("--target-name", name)]
        places = ["--target-dir", self.artefacts, "--target-base-url", f"{self.server.url}targets/"]
        return self.run("--metadata-url", f"{self.server.url}metadata/", *wanted, *places, "download")

    def trusted(self):
        found = {path.stem: json.loads(path.read_bytes())["signed"]["version"] for path in self.metadata.glob("*.json")}
        return dict(sorted(found.items()))

    def contents(self):
        return sorted(path.read_bytes() for path in self.artefacts.iterdir())


@pytest.fixture
def suite(tmp_path):
    forge = Forge(tmp_path / "public", time.time())
    with mirror.serving(forge.public) as server:
        yield Suite(tmp_path, forge, server)


def test_init_asks_nobody_and_refresh_asks_for_what_the_workflow_says(suite):
    assert suite.init() == 0
    assert (suite.server.asked, suite.trusted()) == ([], {"root": 1})
    assert suite.refresh() == 0
    first = ["metadata/2.root.json", "metadata/timestamp.json", "metadata/1.snapshot.json", "metadata/1.targets.json"]
    assert suite.server.asked == first
    assert suite.trusted() == {"root": 1, "snapshot": 1, "targets": 1, "timestamp": 1}
    assert suite.refresh() == 0
    assert suite.server.asked == first[:2]


def test_a_refused_state_leaves_what_was_trusted(suite):
    suite.init()
    assert suite.refresh() == 0
    suite.forge.current()
    good = suite.forge.save()
    assert suite.refresh() == 0
    suite.forge.write("timestamp", by=[CryptoSigner.generate_ed25519()])
    assert suite.refresh() == 1
    assert suite.trusted()["timestamp"] == 2
    suite.forge.restore(good)
    assert suite.refresh() == 0


def test_an_initial_root_that_is_not_signed_is_refused_before_a_request(suite):
    raw = json.loads(suite.root.read_bytes())
    raw["signatures"] = []
    suite.root.write_text(json.dumps(raw))
    suite.init()
    assert (suite.refresh(), suite.server.asked) == (1, [])


def test_roots_are_followed_and_kept(suite):
    suite.init()
    for _ in range(2):
        suite.forge.write("root")
    assert suite.refresh() == 0
    assert suite.trusted()["root"] == 3
    assert suite.refresh() == 0
    assert suite.server.asked == ["metadata/4.root.json", "metadata/timestamp.json"]


def test_recovery_from_a_fast_forward_by_new_keys(suite):
    suite.init()
    suite.forge.write("snapshot", version=99_999)
    suite.forge.md["timestamp"].signed.snapshot_meta = MetaFile(99_999)
    suite.forge.write("timestamp", version=99_999)
    assert suite.refresh() == 0
    for role in ("snapshot", "timestamp"):
        suite.forge.md[role].signed.version = 1
        suite.forge.rotate(role)
    suite.forge.write("root")
    suite.forge.current()
    assert suite.refresh() == 0
    assert suite.trusted() == {"root": 2, "snapshot": 2, "targets": 1, "timestamp": 2}


def test_targets_recover_when_only_the_snapshots_key_is_new(suite):
    suite.init()
    suite.forge.publish("targets", version=100)
    assert suite.refresh() == 0
    suite.forge.rotate("snapshot")
    suite.forge.write("root")
    suite.forge.md["targets"].signed.version = 1
    suite.forge.publish("targets")
    assert suite.refresh() == 0
    assert suite.trusted()["targets"] == 2


def test_artefacts_are_fetched_once_and_keep_their_name(suite):
    suite.init()
    suite.forge.put("targets", "a file/with an odd+name.txt", b"one")
    suite.forge.put("targets", "other", b"two")
    suite.forge.publish("targets")
    assert suite.download("a file/with an odd+name.txt", "other") == 0
    names = sorted(path.name for path in suite.artefacts.iterdir())
    assert suite.contents() == [b"one", b"two"]
    assert suite.download("other") == 0
    assert not [path for path in suite.server.asked if path.startswith("targets/")]
    suite.forge.put("targets", "other", b"three")
    suite.forge.publish("targets")
    assert suite.download("other") == 0
    assert suite.contents() == [b"one", b"three"]
    assert sorted(path.name for path in suite.artefacts.iterdir()) == names


def test_the_first_failure_ends_a_download(suite):
    suite.init()
    suite.forge.put("targets", "good", b"good")
    suite.forge.publish("targets")
    assert suite.download("none", "good") == 1
    assert suite.contents() == []
    assert suite.download("good", "none") == 1
    assert suite.contents() == [b"good"]


def test_a_substituted_artefact_is_not_kept(suite):
    suite.init()
    suite.forge.put("targets", "good", b"good")
    suite.forge.publish("targets")
    (file,) = (suite.forge.public / "targets").iterdir()
    file.write_bytes(b"evil")
    assert suite.download("good") == 1
    assert suite.contents() == []


def test_delegated_roles_with_odd_names_are_asked_for_by_their_quoted_name(suite):
    suite.init()
    suite.forge.delegate("../odd role", ["x/*"])
    suite.forge.put("../odd role", "x/y", b"data")
    odd = suite.forge.md.pop("../odd role")
    signer = suite.forge.keys["../odd role"][0]
    odd.signed.version = 1
    odd.sign(signer)
    suite.forge.raw("metadata/1...%2Fodd role.json", odd.to_bytes())
    suite.forge.md["snapshot"].signed.meta["../odd role.json"] = MetaFile(1)
    suite.forge.publish("targets")
    suite.download("x/y")
    assert "metadata/1...%2Fodd%20role.json" in suite.server.asked
    assert not list(suite.metadata.parent.glob("*odd*"))
