from __future__ import annotations

import os
import tempfile

import pytest

from casemate.device.channel import Channel, pair
from casemate.device.engine import weights
from casemate.errors import OperationError, UntrustedDataError
from casemate.formats import ipc
from support.engine import memory_file, saffron


def test_a_sealed_memory_file_of_the_stated_size_is_taken():
    ours, theirs = pair()
    fd = memory_file(b"GGUF")
    Channel(ours, ipc.Weights).send(ipc.Weights("m", 4), [fd])
    message, received = weights.receive(theirs.detach(), 5.0)
    assert message.model == "m"
    assert os.pread(received, 4, 0) == b"GGUF"
    for each in (fd, received):
        os.close(each)
    ours.close()


@pytest.mark.parametrize(("sealed", "size", "check"), [(False, 4, "engine-seals"), (True, 5, "engine-size")])
def test_anything_that_can_change_or_lies_is_refused(sealed, size, check):
    fd = memory_file(b"GGUF", sealed=sealed)
    with pytest.raises(UntrustedDataError) as caught:
        weights.check_sealed(fd, size)
    os.close(fd)
    assert caught.value.check == check


def test_a_plain_file_is_refused():
    with tempfile.TemporaryFile() as file, pytest.raises(UntrustedDataError):
        weights.check_sealed(file.fileno(), 0)


def test_a_vault_that_is_gone_or_silent_is_an_operation_error():
    ours, theirs = pair()
    with pytest.raises(OperationError):
        weights.receive(os.dup(theirs.fileno()), 0.01)
    ours.close()
    with pytest.raises(OperationError):
        weights.receive(theirs.detach(), 5.0)


def test_the_header_is_read_from_the_descriptor():
    data = saffron()
    fd = memory_file(data)
    header = weights.read_header(fd, len(data))
    os.close(fd)
    assert header.facts.context_length == 512
    assert header.facts.architecture == "llama"


def test_locked_bytes_come_from_the_status_file():
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    with tempfile.TemporaryFile() as file:
        file.write(b"Name:\tx\nVmLck:\t    2732 kB\n")
        file.flush()
        assert weights.locked_bytes(file.fileno()) == 2732 * 1024
