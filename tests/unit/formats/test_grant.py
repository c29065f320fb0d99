from __future__ import annotations

import msgspec
import pytest

from casemate.crypto import hpke
from casemate.crypto.secret import Secret
from casemate.errors import NotAuthorisedError, UntrustedDataError
from casemate.formats import grant as fmt

RELEASE = "a" * 32


@pytest.fixture
def device():
    private, public = hpke.generate()
    with private:
        yield private, public


def test_the_device_it_is_for_opens_it(device):
    private, public = device
    with Secret(bytes(range(32))) as key:
        raw = fmt.make(key, RELEASE, public)
    assert b"AAECAw" not in raw  # the key's first bytes, in base64
    with fmt.open_grant(raw, RELEASE, private, public) as opened:
        assert opened.reveal() == bytes(range(32))
    assert fmt.path(RELEASE, fmt.recipient_id(public)).startswith(f"grants/{RELEASE}/")


def test_no_other_device_opens_it(device):
    other, other_public = hpke.generate()
    with other, Secret(bytes(32)) as key:
        raw = fmt.make(key, RELEASE, device[1])
        with pytest.raises(NotAuthorisedError):
            fmt.open_grant(raw, RELEASE, other, other_public)


def test_a_grant_of_one_release_is_none_for_another(device):
    private, public = device
    with Secret(bytes(32)) as key:
        raw = fmt.make(key, RELEASE, public)
    with pytest.raises(UntrustedDataError):
        fmt.open_grant(raw, "b" * 32, private, public)
    renamed = msgspec.json.encode({**msgspec.json.decode(raw), "release": "b" * 32})
    with pytest.raises(NotAuthorisedError):
        fmt.open_grant(renamed, "b" * 32, private, public)


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff", b" " * 5000])
def test_what_is_no_grant_is_refused(device, raw):
    with pytest.raises(UntrustedDataError, match="grant"):
        fmt.open_grant(raw, RELEASE, *device)
