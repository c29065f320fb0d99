from __future__ import annotations

import datetime as dt
import shutil
import time

import pytest
from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError, UnsignedMetadataError
from tuf.ngclient import FetcherInterface, Updater

from casemate.errors import NotAuthorisedError, OperationError, UntrustedDataError
from casemate.release import roles
from casemate.release.repository import Repository
from support.release import FixedClock, keystore

PATH = "model/demo/1.0/manifest.json"


class Files(FetcherInterface):
    """What a static web server over `public/` would answer."""

    def __init__(self, root):
        self.root = root
        self.asked = []

    def _fetch(self, url):
        name = url.removeprefix("http://x/")
        self.asked.append(name)
        try:
            yield (self.root / name).read_bytes()
        except FileNotFoundError:
            raise DownloadHTTPError("404", 404) from None


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    directory = tmp_path_factory.mktemp("template") / "repository"
    Repository.create(directory, keystore(directory), FixedClock(time.time()), "0123456789abcdef")
    return directory


@pytest.fixture
def repository(template, tmp_path):
    directory = tmp_path / "repository"
    shutil.copytree(template, directory)
    return Repository(directory, keystore(directory), FixedClock(time.time()))


def updater(repository, cache, root=None):
    cache.mkdir(exist_ok=True)
    bootstrap = root or (repository.metadata / "1.root.json").read_bytes()
    return Updater(
        str(cache), "http://x/metadata/", str(cache), "http://x/targets/", Files(repository.public), bootstrap=bootstrap
    )


def publish(repository, data=b"{}", path=PATH, role="models"):
    info = repository.add_target(path, data)
    repository.edit({role: lambda targets: targets.targets.update({path: info})})


def fetched(repository, cache, path=PATH):
    client = updater(repository, cache)
    client.refresh()
    info = client.get_targetinfo(path)
    if info is None:
        return None
    with open(client.download_target(info), "rb") as file:
        return file.read()


def test_a_public_client_reads_what_was_published(repository, tmp_path):
    publish(repository, b"first")
    assert fetched(repository, tmp_path / "cache") == b"first"
    publish(repository, b"second")
    assert fetched(repository, tmp_path / "cache") == b"second"
    assert repository.read_target("models", PATH) == b"second"


def test_a_role_says_nothing_outside_its_paths(repository, tmp_path):
    publish(repository, b"x", path="policy/demo/1.0/manifest.json", role="models")
    assert fetched(repository, tmp_path / "cache", "policy/demo/1.0/manifest.json") is None


def test_every_role_has_its_threshold_and_its_life(repository):
    root = repository.load("root").signed
    targets = repository.load("targets").signed
    for role in roles.TOP:
        assert (len(root.roles[role.name].keyids), root.roles[role.name].threshold) == (role.keys, role.threshold)
    for role in roles.DELEGATED:
        made = targets.delegations.roles[role.name]
        assert (made.terminating, made.threshold, len(made.keyids)) == (True, role.threshold, role.keys)
    for role in roles.BY_NAME.values():
        left = repository.load(role.name).signed.expires - dt.datetime.now(dt.UTC)
        assert role.days - 1 < left / dt.timedelta(days=1) <= role.days


def test_one_of_two_root_signatures_is_not_enough(repository, tmp_path):
    metadata = repository.load("root")
    metadata.signatures.popitem()
    with pytest.raises(UnsignedMetadataError):
        updater(repository, tmp_path / "cache", metadata.to_bytes())


def test_an_offline_key_is_needed_only_where_it_counts(repository):
    for name in ("root-1", "root-2", "root-3", "targets-1", "targets-2"):
        (repository.keys.directory / f"{name}.json").unlink()
    publish(repository)
    with pytest.raises(NotAuthorisedError, match="too few keys of targets"):
        repository.edit({"targets": lambda targets: None})


def test_keys_are_found_where_they_were_plugged_in(repository, tmp_path):
    stick = tmp_path / "stick"
    stick.mkdir()
    for name in ("targets-1", "targets-2"):
        (repository.keys.directory / f"{name}.json").rename(stick / f"{name}.json")
    opened = Repository(repository.directory, keystore(repository.directory, more=str(stick)), FixedClock(time.time()))
    opened.edit({"targets": lambda targets: None})


def test_a_wrong_passphrase_signs_nothing(repository):
    opened = Repository(repository.directory, keystore(repository.directory, "wrong words"), FixedClock(time.time()))
    with pytest.raises(NotAuthorisedError, match="passphrase"):
        publish(opened)


def test_no_key_file_holds_a_readable_offline_key(repository):
    for role in (*roles.TOP, *roles.DELEGATED):
        for name in roles.key_names(role):
            path = repository.keys.directory / f"{name}.json"
            assert path.stat().st_mode & 0o777 == 0o600
            assert (b'"salt":""' in path.read_bytes()) == role.online


def test_a_key_file_under_another_name_is_refused(repository):
    shutil.copy(repository.keys.directory / "policy-1.json", repository.keys.directory / "models-1.json")
    with pytest.raises(UntrustedDataError, match="another key"):
        publish(repository)


def test_refresh_needs_no_passphrase_and_moves_the_freshness(repository, tmp_path):
    publish(repository, b"x")
    late = FixedClock(time.time() - 2 * 86400)
    stale = Repository(repository.directory, keystore(repository.directory, "not asked for"), late)
    stale.refresh()
    with pytest.raises(ExpiredMetadataError):
        fetched(repository, tmp_path / "old")
    repository.refresh()
    assert fetched(repository, tmp_path / "cache") == b"x"


def test_a_cut_before_the_timestamp_leaves_the_old_repository(repository, tmp_path, monkeypatch):
    publish(repository, b"old")
    write = Repository._write

    def cut(self, role, metadata, signers):
        if role == "timestamp":
            raise KeyboardInterrupt
        return write(self, role, metadata, signers)

    with monkeypatch.context() as patch:
        patch.setattr(Repository, "_write", cut)
        with pytest.raises(KeyboardInterrupt):
            publish(repository, b"half")
    assert fetched(repository, tmp_path / "cache") == b"old"
    before = {path.name: path.read_bytes() for path in repository.metadata.iterdir()}
    publish(repository, b"new")
    assert fetched(repository, tmp_path / "cache") == b"new"
    assert all((repository.metadata / name).read_bytes() == data for name, data in before.items() if name[0].isdigit())


def test_a_directory_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(OperationError):
        Repository.create(tmp_path, keystore(tmp_path), FixedClock(0), "0" * 16)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_changed_target_file_is_refused(repository):
    publish(repository, b"true")
    for path in (repository.public / "targets").rglob("*manifest.json"):
        path.write_bytes(b"fals")
    with pytest.raises(UntrustedDataError, match="not what was signed"):
        repository.read_target("models", PATH)
