"""An old repository is played back: genuine, signed, not expired, and with the holes that were closed since.

Who may write to the device's disk for a moment deletes the metadata cache; who answers for the server serves the state
of this morning. The control is a plain TUF client, which accepts it: its memory of what it had seen is that cache.
"""

from __future__ import annotations

import shutil
import time

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from casemate.device.update import trust
from casemate.errors import NotFoundError, UntrustedDataError
from support.forge import Directory, client_of, trusting, with_one_target

NOW = float(int(time.time()))
PATH = "channels/stable.json"


class Plain(FetcherInterface):
    """What a web server would answer."""

    def __init__(self, source):
        self.source = source

    def _fetch(self, url):
        try:
            yield self.source.get(url, 10_000_000)
        except NotFoundError:
            raise DownloadHTTPError("404", 404) from None


@pytest.fixture
def forge(tmp_path):
    return with_one_target(tmp_path / "public", NOW, "channels", "channels/*.json", (PATH, b"vulnerable"))


@pytest.fixture
def device(tmp_path, forge):
    return trusting(tmp_path / "update", forge)


@pytest.fixture
def old(forge, device):
    """The repository as it was before the device saw the newer one."""
    saved = forge.save()
    forge.put("channels", PATH, b"repaired")
    forge.publish("channels")
    assert read(device, forge) == b"repaired"
    return saved


def read(directory, forge, now=NOW):
    client = client_of(directory, Directory(forge.public), now)
    client.refresh()
    return client.read(PATH, 1000).data


def plain(cache, forge):
    cache.mkdir(exist_ok=True)
    fetcher = Plain(Directory(forge.public))
    updater = Updater(str(cache), "metadata/", str(cache), "targets/", fetcher, bootstrap=forge.first_root)
    updater.refresh()
    with open(updater.download_target(updater.get_targetinfo(PATH)), "rb") as file:
        return file.read()


def refused(check, directory, forge, **how):
    with pytest.raises(UntrustedDataError) as caught:
        read(directory, forge, **how)
    assert caught.value.check == check
    assert caught.value.exit_code == 10
    assert caught.value.hint


def test_control_a_plain_client_accepts_the_replay(tmp_path, forge):
    cache = tmp_path / "plain"
    saved = forge.save()
    forge.put("channels", PATH, b"repaired")
    forge.publish("channels")
    assert plain(cache, forge) == b"repaired"
    shutil.rmtree(cache)
    forge.restore(saved)
    assert plain(cache, forge) == b"vulnerable"


def test_after_the_cache_was_deleted_the_replay_is_refused(device, forge, old):
    trust.clear_cache(device)
    forge.restore(old)
    refused("metadata-replay", device, forge)
    refused("metadata-replay", device, forge)  # the refused state was not kept either


def test_the_refusal_ends_when_the_server_is_honest_again(device, forge, old):
    current = forge.save()
    trust.clear_cache(device)
    forge.restore(old)
    refused("metadata-replay", device, forge)
    forge.restore(current)
    assert read(device, forge) == b"repaired"


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "channels.json", "targets.json", "root_history"])
def test_deleting_a_part_of_the_cache_is_no_way_around(device, forge, old, name):
    path = device / "tuf" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    forge.restore(old)
    with pytest.raises(UntrustedDataError) as caught:
        read(device, forge)
    assert caught.value.check in {"metadata-replay", "metadata-rollback"}


@pytest.mark.parametrize("names", [("floors",), ("floors.key",), ("floors", "floors.key")])
def test_deleting_the_floors_too_is_no_way_around(device, forge, old, names):
    trust.clear_cache(device)
    for name in names:
        (device / name).unlink()
    forge.restore(old)
    refused("floors-missing", device, forge)


def test_floors_that_were_edited_are_refused(device, forge, old):
    trust.clear_cache(device)
    path = device / "floors"
    path.write_bytes(path.read_bytes().replace(b'"timestamp":3', b'"timestamp":1'))
    forge.restore(old)
    with pytest.raises(UntrustedDataError) as caught:
        read(device, forge)
    assert caught.value.check in {"floors-mac", "floors-form"}


def test_floors_of_another_device_are_refused(device, forge, old, tmp_path):
    other = trusting(tmp_path / "other", forge)
    trust.clear_cache(device)
    shutil.copy(other / "floors", device / "floors")
    forge.restore(old)
    refused("floors-mac", device, forge)


def test_a_thief_of_the_snapshot_key_takes_no_role_back(device, forge, old):
    """New versions of both online roles over the old list of channels: only the floor of that list tells."""
    forge.md["channels"].signed.version -= 1
    forge.current()
    trust.clear_cache(device)
    refused("metadata-replay", device, forge)


def test_hiding_a_new_root_is_no_way_to_keep_a_stolen_key(device, forge, old):
    stolen = forge.keys["timestamp"]
    forge.rotate("timestamp")
    forge.write("root")
    forge.current()
    assert read(device, forge) == b"repaired"
    (forge.public / "metadata/2.root.json").unlink()
    forge.keys["timestamp"] = stolen
    forge.write("timestamp")
    trust.clear_cache(device)
    refused("metadata-replay", device, forge)


def test_a_clock_set_back_does_not_bring_an_expired_state_to_life(device, forge, old):
    later = NOW + 2 * 86_400
    forge.now = later
    forge.current()
    read(device, forge, now=later)
    refused("clock", device, forge, now=NOW)
