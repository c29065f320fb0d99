"""A release repository with something in it, and a device that trusts it: all real, but cheap passphrases."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from pathlib import Path

from casemate.device.update import trust
from casemate.device.update.client import Client
from casemate.device.update.floors import FileFloorStore
from casemate.device.update.transport import Bounds, Transport, parse_endpoint
from casemate.release import build, channels, licences, publish, setup
from casemate.release.repository import Repository
from support import gguf_files
from support.release import FixedClock, keystore

SPEC = """
kind = "model"
name = "tiny"
version = "{version}"
security_version = {security}
licence = "Apache-2.0"
files = ["tiny.gguf", "NOTICE.txt"]
smoke = [{{ prompt = "Hello", expect = "." }}]
base_models = [{{ name = "parent", sha256 = "{digest}" }}]
{more}
"""
QUICK = Bounds(connect=2.0, gap=2.0, grace=2.0, tries=3)


@contextmanager
def silent(total, label):
    yield lambda count: None


def create(directory: Path) -> Repository:
    return setup.create(directory, keystore(directory), FixedClock(time.time()))


def copy(template: Path, directory: Path, *, now: float | None = None) -> Repository:
    shutil.copytree(template, directory)
    return Repository(directory, keystore(directory), FixedClock(now or time.time()))


def bundle(folder: Path, version: str, *, security: int = 1, model: bytes | None = None, more: str = "") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "tiny.gguf").write_bytes(gguf_files.tiny() if model is None else model)
    (folder / "NOTICE.txt").write_text(f"made for tests, {version}\n")
    (folder / "SPEC.toml").write_text(SPEC.format(version=version, security=security, digest="ab" * 32, more=more))
    target = folder / f"{version}.release"
    build.build(
        folder / "SPEC.toml", target, policy=licences.LicencePolicy(), evaluate=None, progress=silent, environ={}
    )
    return target


def put(
    repository: Repository, folder: Path, version: str, *, security: int = 1, model=None, channel="stable", more=""
):
    """Build, publish and promote one release; returns its record."""
    made = bundle(folder, version, security=security, model=model, more=more)
    (record,) = publish.publish(repository, [made], tell=lambda _text: None)
    channels.promote(repository, channel, [record])
    return record


def follow(directory: Path, repository: Repository, url: str = "http://127.0.0.1:9/", **how) -> trust.FirstTrust:
    """Give a device its first trust."""
    directory.mkdir(exist_ok=True, parents=True)
    return trust.establish(directory, (repository.metadata / "1.root.json").read_bytes(), url=url, **how)


def transport(url: str, **how) -> Transport:
    return Transport(
        parse_endpoint(url), bounds=how.pop("bounds", QUICK), sleep=how.pop("sleep", lambda _: None), **how
    )


def client(directory: Path, source, *, now: float | None = None, floors=None) -> Client:
    clock = FixedClock(now or time.time())
    return Client(directory, trust.load(directory), source, floors or FileFloorStore(directory), clock)
