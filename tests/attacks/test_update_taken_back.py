"""A publisher takes an update back; devices that had fetched it must not arm it.

Taking back is promoting the version before. A device that runs that version finds nothing new, and what it had staged
lay there, proven and ready: the next `apply` armed it.
"""

from __future__ import annotations

import pytest

from casemate import config
from casemate.device import store as containers
from casemate.device.home import Home
from casemate.device.update import desk
from support import gguf_files, mirror
from support.updates import Follower, ReleaseHost

FIRST, SECOND = "model/saffron/1.0", "model/saffron/2.0"


@pytest.fixture
def host(tmp_path):
    host = ReleaseHost(tmp_path / "host")
    host.init()
    files = {"saffron.gguf": gguf_files.tiny()}
    host.publish(host.build("1.0", security=1, files=files), host.build("2.0", security=1, files=files))
    host.offer(FIRST)
    return host


@pytest.fixture
def device(tmp_path, host):
    """A device for which 1.0 is good and 2.0 is staged."""
    device = Follower(tmp_path / "device" / "home")
    device.home.parent.mkdir()
    host.grant(device.recipient, FIRST, SECOND)
    with mirror.serving(host.public) as server:
        device.follow(host, server.url)
        device.update("apply")
        home = Home(device.home)
        store = desk.store(home.update, config.load({}), lambda: tuple(containers.names(home)))
        store.boot()
        store.mark_good(1)
        host.offer(SECOND)
        assert device.update("fetch")["state"] == "STAGED"
        yield device


def test_control_what_is_staged_and_still_offered_is_armed(device):
    assert device.update("apply")["state"] == "ARMED"


def test_an_update_that_was_taken_back_is_never_armed(host, device):
    host.offer(FIRST)
    done = device.update("apply")
    assert (done["applied"], done["state"], done["generation"]) == (False, "IDLE", 1)
    status = device.status
    assert (status["good"], status["trial"], status["pending"], status["denied"]) == (1, None, None, [])
    host.offer(SECOND)
    assert device.update("apply")["state"] == "ARMED"
