"""From a specification to what a device can open, through the formats a device uses."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager

import msgspec
import pytest
from tuf.api.metadata import Metadata

from casemate.crypto import hpke
from casemate.errors import (
    ConfigError,
    NotAuthorisedError,
    NotFoundError,
    PolicyDeniedError,
    UntrustedDataError,
    UsageError,
)
from casemate.formats import channel_set, grant, manifest, payload, signature_log
from casemate.release import build, bundle, channels, check, export, files, grants, licences, publish, setup, sign
from casemate.release.repository import Repository
from casemate.release.spec import Input
from support import gguf_files
from support.release import FixedClock, keystore

SPEC = """
kind = "model"
name = "tiny"
version = "{version}"
security_version = 1
licence = "Apache-2.0"
files = ["tiny.gguf", "NOTICE.txt"]
smoke = [{{ prompt = "Hello", expect = "." }}]
bounds = {{ first_token_ms = 2000 }}
base_models = [{{ name = "parent", sha256 = "{digest}" }}]
"""


@contextmanager
def silent(total, label):
    yield lambda count: None


def specify(folder, version="1.0", text=SPEC, model=None):
    folder.mkdir(exist_ok=True)
    (folder / "tiny.gguf").write_bytes(gguf_files.tiny() if model is None else model)
    (folder / "NOTICE.txt").write_text(f"made for tests, {version}\n")
    path = folder / "SPEC.toml"
    path.write_text(text.format(version=version, digest="ab" * 32))
    return path


def built(folder, version="1.0", out=None, **how):
    path = specify(folder, version, **how)
    target = out or folder / f"{version}.release"
    build.build(path, target, policy=licences.LicencePolicy(), evaluate=None, progress=silent, environ={})
    return target


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fresh") / "repository"
    setup.create(directory, keystore(directory), FixedClock(time.time()))
    return directory


@pytest.fixture
def repository(fresh, tmp_path):
    directory = tmp_path / "repository"
    shutil.copytree(fresh, directory)
    return Repository(directory, keystore(directory), FixedClock(time.time()))


def put(repository, tmp_path, *versions):
    made = [built(tmp_path / "spec", version) for version in versions]
    return publish.publish(repository, made, tell=lambda text: None)


# --- building


def test_the_same_input_gives_the_same_bytes(tmp_path):
    one, two = built(tmp_path / "a"), built(tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()
    assert built(tmp_path / "a", "1.1").read_bytes() != one.read_bytes()


def test_any_tar_program_reads_a_bundle(tmp_path):
    with tarfile.open(built(tmp_path / "a")) as tar:
        names = tar.getnames()
    assert names == ["release.json", "files/NOTICE.txt", "files/tiny.gguf", "mlbom.cdx.json", "provenance.intoto.json",
                     "release.sha256"]  # fmt: skip


def test_the_papers_say_what_is_in_it_and_what_was_checked(tmp_path):
    opened = bundle.unpack(built(tmp_path / "a"), tmp_path / "out")
    model = hashlib.sha256((tmp_path / "a" / "tiny.gguf").read_bytes()).hexdigest()
    bom, statement = json.loads(opened.mlbom), json.loads(opened.provenance)
    top = bom["metadata"]["component"]
    assert top["type"] == "machine-learning-model"
    assert top["modelCard"]["modelParameters"]["architectureFamily"] == "llama"
    assert top["pedigree"]["ancestors"][0]["name"] == "parent"
    assert model in {row["content"] for part in bom["components"] for row in part["hashes"]}
    assert {"name": "tiny.gguf", "digest": {"sha256": model}} in statement["subject"]
    gates = statement["predicate"]["buildDefinition"]["internalParameters"]["gates"]
    assert gates == ["formats", "gguf", "licence", "evals: not run", "ml-bom"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": gguf_files.MALFORMED["overlapping tensors"][0]}, UntrustedDataError, "gguf"),
        ({"model": gguf_files.OTHER_FORMATS["pickle"]}, UntrustedDataError, "only gguf, text"),
        ({"text": SPEC.replace("Apache-2.0", "GPL-3.0-only")}, PolicyDeniedError, "may not be released"),
        ({"text": SPEC.replace("smoke =", "smokes =")}, ConfigError, "smokes"),
        ({"text": SPEC.replace('expect = "."', 'expect = "("')}, ConfigError, "regular expression"),
        ({"text": SPEC.replace('"NOTICE.txt"', '"missing"')}, ConfigError, "not a regular file"),
        ({"text": SPEC.replace('"NOTICE.txt"', '"tiny.gguf"')}, ConfigError, "twice"),
        ({"text": SPEC.replace('"NOTICE.txt"', '{{path = "NOTICE.txt", as = "../x"}}')}, ConfigError, "cannot be"),
        ({"text": SPEC.replace("NOTICE.txt", "mlbom.cdx.json")}, ConfigError, "not a regular file"),
        ({"text": SPEC.replace('"NOTICE.txt"', '{{path="NOTICE.txt", as="mlbom.cdx.json"}}')}, ConfigError, "be the"),
    ],
)  # fmt: skip
def test_each_gate_fails_the_build_and_leaves_nothing(tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        built(tmp_path / "a", out=tmp_path / "out.release", **change)
    assert not list(tmp_path.glob("*out.release*"))


def test_a_failed_eval_fails_the_build(tmp_path):
    def bad(spec, inputs):
        raise PolicyDeniedError("it told the canary")

    with pytest.raises(PolicyDeniedError):
        build.build(
            specify(tmp_path / "a"),
            tmp_path / "out",
            policy=licences.LicencePolicy(),
            evaluate=bad,
            progress=silent,
            environ={},
        )
    assert not (tmp_path / "out").exists()


def test_a_link_is_never_released(tmp_path):
    path = specify(tmp_path / "a")
    (tmp_path / "a" / "NOTICE.txt").unlink()
    (tmp_path / "a" / "NOTICE.txt").symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match="not a regular file"):
        build.build(path, tmp_path / "out", policy=licences.LicencePolicy(), evaluate=None, progress=silent, environ={})


def test_a_damaged_bundle_is_refused_whole(tmp_path):
    data = bytearray(built(tmp_path / "a").read_bytes())
    for place in range(0, len(data), max(1, len(data) // 60)):
        data[place] ^= 1
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(UntrustedDataError):
            bundle.unpack(tmp_path / "bad", tmp_path / f"out{place}")
        data[place] ^= 1


# --- publishing


def open_as_a_device(repository, record, key):
    """Do what a device does: the manifest's chunks, opened and put together by the plan."""
    part = manifest.open_sealed(record.manifest, (repository.public / record.manifest.sealed.path).read_bytes(), key)
    full = record.manifest.full
    cipher = payload.PayloadCipher(key, record.id, full.id)
    stream = b""
    for index, chunk in enumerate(full.chunks):
        data = (repository.public / chunk.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == chunk.sha256
        stream += bytes(cipher.open(index, data, last=index == len(full.chunks) - 1))
    return part, stream


def test_a_granted_device_opens_exactly_what_was_released(repository, tmp_path):
    (record,) = put(repository, tmp_path, "1.0")
    private, public = hpke.generate()
    (path,) = grants.grant(repository, record, [grant.parse_recipient(grant.show_recipient(public))])
    key = grant.open_grant((repository.public / path).read_bytes(), record.id, private, public)
    part, stream = open_as_a_device(repository, record, key)
    assert len(stream) == record.manifest.full.bytes
    files = {row.path: row.sha256 for row in part.files}
    assert files["tiny.gguf"] == hashlib.sha256((tmp_path / "spec" / "tiny.gguf").read_bytes()).hexdigest()
    signature_log.verify_part(part, sign.trust_of(repository))
    assert abs(signature_log.signed_time(part) - repository.now()) < 60
    stranger, other = hpke.generate()
    with pytest.raises(NotAuthorisedError):
        grant.open_grant((repository.public / path).read_bytes(), record.id, stranger, other)


def test_a_mirror_learns_no_plain_digest_and_no_file_name(repository, tmp_path):
    put(repository, tmp_path, "1.0")
    digest = hashlib.sha256((tmp_path / "spec" / "tiny.gguf").read_bytes())
    for path in repository.public.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for secret in (digest.hexdigest().encode(), digest.digest(), b"tiny.gguf", b"token_embd"):
                assert secret not in data, path


def test_a_second_version_brings_a_delta(repository, tmp_path):
    (first,) = put(repository, tmp_path, "1.0")
    (second,) = put(repository, tmp_path, "1.1")
    delta = second.manifest.delta_from(first.id)
    assert delta is not None
    assert delta.transfer_bytes < second.manifest.full.transfer_bytes
    assert check.check(repository, deep=True).signatures == 2


def test_a_version_is_published_once(repository, tmp_path):
    put(repository, tmp_path, "1.0")
    with pytest.raises(UsageError, match="published already"):
        put(repository, tmp_path, "1.0")
    assert len(list((repository.directory / "private" / "releases").iterdir())) == 1


def test_a_build_that_lies_about_its_gates_is_not_signed(repository, tmp_path):
    honest = bundle.unpack(built(tmp_path / "spec"), tmp_path / "opened")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(gguf_files.MALFORMED["overlapping tensors"][0])
    row = manifest.File("bad.gguf", bad.stat().st_size, hashlib.sha256(bad.read_bytes()).hexdigest())
    papers = {signature_log.MLBOM: honest.mlbom, signature_log.PROVENANCE: honest.provenance}
    lying = msgspec.structs.replace(honest.header, files=(row,))
    bundle.write(tmp_path / "lying", lying, [Input("bad.gguf", bad)], papers, lambda count: None)
    with pytest.raises(UntrustedDataError) as error:
        publish.publish(repository, [tmp_path / "lying"], tell=lambda text: None)
    assert error.value.check == "gguf-layout"
    assert not list((repository.directory / "private" / "releases").iterdir())
    assert not (repository.public / "log" / "log-1" / "checkpoint").exists()


def killed_at(step, repository, bundles):
    """Publish in a child that is killed (-9) at its *step*-th write; whether it was."""
    child = os.fork()
    if child == 0:
        replace, count = files.replace, itertools.count(1)

        def counted(*arguments, **more):
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*arguments, **more)

        files.replace = counted
        publish.publish(repository, bundles, tell=lambda text: None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_publish_killed_at_any_write_leaves_the_old_or_the_new(repository, tmp_path):
    put(repository, tmp_path, "1.0")
    step, outcomes = 0, []
    while True:
        step += 1
        killed = killed_at(step, repository, [built(tmp_path / "spec", f"2.{step}")])
        again = Repository(repository.directory, keystore(repository.directory), FixedClock(time.time()))
        found = check.check(again, deep=False).releases
        assert "model/tiny/1.0" in found
        outcomes.append(f"model/tiny/2.{step}" in found)
        if not killed:
            break
    assert step > 15
    assert outcomes == [False] * (step - 1) + [True]
    put(again, tmp_path, "3.0")
    assert not list((again.directory / "private").glob("tmp*"))
    assert not list((again.directory / "private" / "releases").glob(".*"))
    assert check.check(again, deep=True).log_entries >= 3


def test_verify_finds_every_kind_of_damage(repository, tmp_path):
    (record,) = put(repository, tmp_path, "1.0")
    channels.promote(repository, "stable", [record])
    found = check.check(repository, deep=True)
    assert (found.releases, found.channels, found.signatures) == (("model/tiny/1.0",), ("stable",), 1)
    assert found.log_entries == 1
    damaged = [
        repository.public / record.manifest.sealed.path,
        repository.metadata / "timestamp.json",
        next((repository.public / "targets" / "model").rglob("*.manifest.json")),
        next((repository.public / "log").rglob("checkpoint")),
    ]
    for path in damaged:
        good = path.read_bytes()
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
        with pytest.raises(UntrustedDataError):
            check.check(repository, deep=False)
        path.write_bytes(good)
    check.check(repository, deep=False)


def test_pypi_model_signing_accepts_a_release_under_its_authority(repository, tmp_path):
    (record,) = put(repository, tmp_path, "1.0")
    tree = tmp_path / "tree"
    shutil.copytree(record.directory / "files", tree)
    for name in (signature_log.MLBOM, signature_log.PROVENANCE):
        shutil.copy(record.directory / name, tree / name)
    signed = msgspec.json.decode((record.directory / "signature.json").read_bytes(), type=signature_log.SignedRelease)
    (tmp_path / "model.sig").write_text(signed.bundle)
    (tmp_path / "root.pem").write_text(sign.trust_of(repository).authorities[0])
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", "verify", "certificate", str(tree), "--signature",
         str(tmp_path / "model.sig"), "--certificate_chain", str(tmp_path / "root.pem")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sign.verify_directory(tree, signed, sign.trust_of(repository))


# --- channels, export


def test_promoting_replaces_one_kind_and_counts_generations(repository, tmp_path):
    first, second = put(repository, tmp_path, "1.0", "1.1")
    assert channels.promote(repository, "stable", [first]).generation == 1
    assert channels.promote(repository, "stable", [first]).generation == 1
    offered = channels.promote(repository, "stable", [second])
    assert (offered.generation, [member.version for member in offered.members]) == (2, ["1.1"])
    with pytest.raises(UsageError, match="one release of each kind"):
        channels.promote(repository, "stable", [first, second])
    with pytest.raises(UsageError):
        channels.promote(repository, "../x", [first])


def test_a_yanked_release_is_offered_to_nobody(repository, tmp_path):
    first, second = put(repository, tmp_path, "1.0", "1.1")
    channels.promote(repository, "stable", [second])
    channels.promote(repository, "old", [first])
    assert channels.yank(repository, second) == ["stable"]
    stable, old = channels.current(repository, "stable"), channels.current(repository, "old")
    assert stable is not None
    assert old is not None
    assert (stable.stop, old.stop) == (True, False)
    with pytest.raises(UsageError, match="yanked"):
        channels.promote(repository, "stable", [second])
    assert channels.promote(repository, "stable", [first]).stop is False
    assert check.check(repository, deep=True).releases == ("model/tiny/1.0",)


def test_a_channel_stops_and_goes_on(repository, tmp_path):
    (record,) = put(repository, tmp_path, "1.0")
    channels.promote(repository, "stable", [record])
    assert channels.stop(repository, "stable", stopped=True).stop
    raw = repository.read_target("channels", "channels/stable.json")
    assert channel_set.parse(raw).claimed.stop
    assert not channels.stop(repository, "stable", stopped=False).stop
    with pytest.raises(NotFoundError):
        channels.stop(repository, "beta", stopped=True)


def test_an_export_is_a_whole_repository_and_the_same_each_time(repository, tmp_path):
    first, second = put(repository, tmp_path, "1.0", "1.1")
    grants.grant(repository, second, [hpke.generate()[1]])
    channels.promote(repository, "stable", [second])
    everything, one = tmp_path / "all.tar", tmp_path / "stable.tar"
    export.export(repository, everything, advance=lambda count: None)
    export.export(repository, one, channel="stable", advance=lambda count: None)
    again = tmp_path / "again.tar"
    export.export(repository, again, channel="stable", advance=lambda count: None)
    assert one.read_bytes() == again.read_bytes()
    with tarfile.open(one) as tar:
        names = set(tar.getnames())
        tar.extractall(tmp_path / "out")
    assert f"grants/{second.id}" in {name.rpartition("/")[0] for name in names}
    assert not any(chunk.path in names for chunk in first.manifest.full.chunks)
    assert all(chunk.path in names for chunk in second.manifest.full.chunks)
    with tarfile.open(everything) as tar:
        tar.extractall(tmp_path / "whole")
    copy = Repository(repository.directory, repository.keys, FixedClock(time.time()))
    copy.public = tmp_path / "whole"
    shutil.copytree(repository.public / "log", tmp_path / "whole" / "log")
    assert len(check.check(copy, deep=True).releases) == 2


# --- keys


@pytest.mark.parametrize("name", ["root-2", "targets-1", "snapshot-1", "timestamp-1", "models-1", "os-2", "channels-1"])
@pytest.mark.parametrize("how", [setup.rotate, setup.revoke])
def test_any_key_is_replaced_and_old_devices_follow(repository, tmp_path, name, how):
    put(repository, tmp_path, "1.0")
    new = how(repository, name)
    assert new != name
    role = name.rpartition("-")[0]
    assert name not in repository.key_names(role)
    assert new in repository.key_names(role)
    assert not repository.keys.has(name)
    assert check.check(repository, deep=True).releases == ("model/tiny/1.0",)
    opened = Repository(repository.directory, keystore(repository.directory), FixedClock(time.time()))
    put(opened, tmp_path, "1.1")
    assert len(check.check(opened, deep=True).releases) == 2


def test_a_stolen_root_key_does_not_sign_its_own_successor(repository):
    keyid = repository.description.keys["root-1"]
    setup.revoke(repository, "root-1")
    metadata = Metadata.from_file(str(repository.metadata / "2.root.json"))
    assert keyid not in metadata.signatures


def test_a_rotated_authority_keeps_what_it_signed_a_revoked_one_does_not(repository, tmp_path):
    put(repository, tmp_path, "1.0")
    setup.rotate(repository, "authority-1")
    put(repository, tmp_path, "1.1")
    assert check.check(repository, deep=True).signatures == 2
    setup.revoke(repository, "authority-1")
    with pytest.raises(UntrustedDataError) as error:
        check.check(repository, deep=True)
    assert error.value.check == "certificate-issuer"


@pytest.mark.parametrize("name", ["authority-1", "log-1", "models-1", "targets-1", "snapshot-1"])
def test_without_the_offline_keys_nothing_changes(repository, tmp_path, name):
    stick = tmp_path / "stick"
    stick.mkdir()
    for number in (1, 2, 3):
        for role in ("root", "targets"):
            (repository.keys.directory / f"{role}-{number}.json").rename(stick / f"{role}-{number}.json")
    opened = Repository(repository.directory, keystore(repository.directory), FixedClock(time.time()))
    with pytest.raises(NotAuthorisedError, match="too few keys"):
        setup.rotate(opened, name)
    again = Repository(repository.directory, keystore(repository.directory), FixedClock(time.time()))
    put(again, tmp_path, "1.0")
    assert check.check(again, deep=True).signatures == 1


def test_keys_that_do_not_count_are_not_found(repository):
    with pytest.raises(NotFoundError):
        setup.rotate(repository, "root-9")
    with pytest.raises(UsageError):
        setup.rotate(repository, "nobody-1")
    assert len(setup.list_keys(repository)) == 3 + 3 + 1 + 1 + 7 + 2
