"""A release host with the demo model in several versions, and a device that follows it: everything through commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from casemate.clock import SystemClock
from casemate.formats.gguf import check_header
from casemate.release import build, licences, publish, setup
from casemate.release.repository import Repository
from support.device import cli, environment
from support.published import silent
from support.release import keystore

MODEL = Path(__file__).resolve().parents[2] / "src/casemate/data/saffron/saffron-q8_0.gguf"
SPEC = """
kind = "{kind}"
name = "{name}"
version = "{version}"
security_version = {security}
licence = "Apache-2.0"
files = [{files}]
smoke = [{{ prompt = "Where can we eat pasta?", expect = {expect} }}]
{more}
"""


def other(data: bytes, seed: int) -> bytes:
    """Return the demo model with weights that are a little different: a few KiB of its last tensor."""
    changed = bytearray(data)
    for at in range(len(changed) - 6800 * (seed + 1), len(changed) - 6800 * seed, 34):
        changed[at + 5] ^= 1
    return bytes(changed)


@dataclass
class ReleaseHost:
    """A release repository, driven by `casemate release`."""

    root: Path

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def public(self) -> Path:
        return self.repository / "public"

    @property
    def trust(self) -> Path:
        return self.public / "metadata" / "1.root.json"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.root),
            "CASEMATE_RELEASE_PASSPHRASE_FILE": str(self.root / "passphrase"),
            "CASEMATE_RELEASE_REPO": str(self.repository),
        }

    def run(self, *arguments: object) -> dict[str, Any]:
        return json.loads(cli(self.environ, "release", *map(str, arguments), "--json").stdout)

    def init(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "passphrase").write_text("correct horse battery\n")
        setup.create(
            self.repository, keystore(self.repository), SystemClock()
        )  # the command's passphrases cost seconds

    def build(
        self,
        version: str,
        *,
        security: int,
        files: dict[str, bytes],
        kind: str = "model",
        name: str = "saffron",
        expect: str = "[a-z]",
        more: str = "",
    ) -> Path:
        folder = self.root / f"{kind}-{name}-{version}"
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        listed = ", ".join(json.dumps(path) for path in files)
        spec = SPEC.format(
            kind=kind, name=name, version=version, security=security, files=listed, expect=json.dumps(expect), more=more
        )
        (folder / "SPEC.toml").write_text(spec)
        bundle = self.root / f"{kind}-{name}-{version}.release"
        self.run("build", folder / "SPEC.toml", "--out", bundle, "--no-evals")
        return bundle

    def publish(self, *bundles: Path) -> None:
        self.run("publish", self.repository, *[part for bundle in bundles for part in ("--add", bundle)])

    def offer(self, *labels: str, channel: str = "stable") -> None:
        self.run("promote", *labels, "--channel", channel)

    def grant(self, recipient: str, *labels: str) -> None:
        for label in labels:
            self.run("grant", label, "--to", recipient)


def publish_carelessly(host: ReleaseHost, version: str, model: bytes) -> None:
    """Publish a model that no gate looked at, as a release host that was taken over would; properly signed."""
    folder = host.root / f"careless-{version}"
    folder.mkdir()
    (folder / "saffron.gguf").write_bytes(model)
    spec = SPEC.format(
        kind="model", name="saffron", version=version, security=9, files='"saffron.gguf"', expect='"."', more=""
    )
    (folder / "SPEC.toml").write_text(spec)
    facts = check_header(lambda at, size: MODEL.read_bytes()[at : at + size], MODEL.stat().st_size).facts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "examine", lambda _kind, _inputs: (facts, []))
        build.build(
            folder / "SPEC.toml",
            folder / "release",
            policy=licences.LicencePolicy(),
            evaluate=None,
            progress=silent,
            environ={},
        )
        repository = Repository(host.repository, keystore(host.repository), SystemClock())
        publish.publish(repository, [folder / "release"], tell=lambda _text: None)


@dataclass
class Follower:
    """A device that takes updates, whether it runs or not."""

    home: Path

    @property
    def environ(self) -> dict[str, str]:
        return environment(self.home)

    def update(self, *arguments: object, exit_code: int = 0) -> dict[str, Any]:
        done = cli(self.environ, "update", *map(str, arguments), "--json", check=False)
        assert done.returncode == exit_code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    @property
    def status(self) -> dict[str, Any]:
        return self.update("status")

    @property
    def recipient(self) -> str:
        return json.loads(cli(self.environ, "device", "key", "show", "--json").stdout)["recipient"]

    def follow(self, host: ReleaseHost, url: str, channel: str = "stable") -> None:
        self.update("trust", host.trust, "--url", url, "--channel", channel)


def template(root: Path) -> ReleaseHost:
    """Make a host with four versions of the demo model, all published, none offered.

    1.0 and 2.0 are good; 3.0 does not answer its smoke prompt; 4.0 asks for more memory than it may have.
    """
    host = ReleaseHost(root)
    host.init()
    plain = MODEL.read_bytes()
    bundles = [
        host.build("1.0", security=1, files={"saffron.gguf": plain}),
        host.build(
            "2.0",
            security=2,
            files={"saffron.gguf": other(plain, 0)},
            more="bounds = { first_token_ms = 60000, memory_mib = 4000 }",
        ),
        host.build("3.0", security=3, files={"saffron.gguf": other(plain, 1)}, expect="xyzzy plugh"),
    ]
    for bundle in bundles:
        host.publish(bundle)
    return host


def copied(source: ReleaseHost, root: Path) -> ReleaseHost:
    """Copy a host, so that a test may change it."""
    shutil.copytree(source.root, root)
    return ReleaseHost(root)
