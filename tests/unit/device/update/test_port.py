"""What the update process hears from the device: an answer belongs to its question, and silence frees nobody."""

from __future__ import annotations

import contextlib

import pytest

from casemate.device import channel
from casemate.device.admin import NoAnswerError
from casemate.device.fleet import direction
from casemate.device.update import port as ports
from casemate.device.update.port import Port
from casemate.errors import UntrustedDataError
from casemate.formats import ipc


def test_a_late_answer_is_not_taken_for_what_the_director_says(monkeypatch):
    monkeypatch.setattr(ports, "_TPM_SECONDS", 0.01)
    ours, theirs = channel.pair()
    port, device = Port(ours, running=True), channel.Channel(theirs, ipc.UpdateToAgent)
    port.count_commit(1)  # the TPM is slow: whoever asked goes on without
    with contextlib.suppress(channel.ChannelClosed):
        device.send(ipc.Answer(ok=True, data=direction.FREE.as_message()))
    with pytest.raises(NoAnswerError):
        port.direction()
    ours.close()
    device.close()


@pytest.mark.parametrize("said", [{}, {"index": 3}, {"directed": "no"}, {"directed": False, "more": 1}])
def test_what_is_no_direction_is_not_freedom(said):
    with pytest.raises(UntrustedDataError) as caught:
        direction.decode(said)
    assert caught.value.check == "fleet-direction"


def test_control_a_direction_is_read_as_it_was_said():
    for one in (direction.FREE, direction.Direction(directed=True)):
        assert direction.decode(one.as_message()) == one
