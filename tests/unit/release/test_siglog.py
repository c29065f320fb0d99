from __future__ import annotations

import pytest

from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import tlog
from casemate.release.siglog import SignatureLog

KEY = SigningKey.generate()
KNOWN = tlog.VerifierKey("signatures.test", KEY.public)


def test_every_entry_is_proven_and_the_tree_survives_tile_borders(tmp_path):
    log = SignatureLog(tmp_path / "log", "signatures.test")
    for number in range(259):
        entry = b"entry %d" % number
        if number in {0, 1, 254, 255, 256, 258}:
            assert tlog.parse_proof(log.append(entry, KEY)).verify(entry, [KNOWN]).size == number + 1
        else:
            log.append(entry, KEY)
    assert log.entries(KNOWN) == [b"entry %d" % number for number in range(259)]
    full = (tmp_path / "log" / tlog.tile_path(0, 0)).read_bytes()
    assert (
        tlog.root_of(tlog.parse_tile(full, 256))
        == tlog.parse_tile((tmp_path / "log" / tlog.tile_path(1, 0, 1)).read_bytes(), 1)[0]
    )


def test_a_proof_is_for_one_entry(tmp_path):
    proof = SignatureLog(tmp_path, "signatures.test").append(b"a", KEY)
    with pytest.raises(UntrustedDataError):
        tlog.parse_proof(proof).verify(b"b", [KNOWN])


def test_an_altered_log_is_not_continued(tmp_path):
    log = SignatureLog(tmp_path, "signatures.test")
    log.append(b"a", KEY)
    (tmp_path / tlog.entries_path(0, 1)).write_bytes(tlog.pack_bundle([b"b"]))
    with pytest.raises(UntrustedDataError, match="altered"):
        log.append(b"c", KEY)


def test_a_log_without_its_checkpoint_is_not_begun_again(tmp_path):
    log = SignatureLog(tmp_path, "signatures.test")
    log.append(b"a", KEY)
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(UntrustedDataError, match="no checkpoint"):
        log.append(b"b", KEY)
