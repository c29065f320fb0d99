"""What a witness makes of a log: a decision over what it remembers and what it is shown."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.signing import SigningKey
from casemate.fleet.witness import Seen, Verdict, judge
from casemate.formats import tlog
from casemate.formats.tlog import AddCheckpoint, Checkpoint, VerifierKey

ORIGIN = "casemate/0123456789abcdef"
KEY = VerifierKey(ORIGIN, SigningKey.generate().public)


class Log:
    """A log in memory."""

    def __init__(self, *entries: bytes, origin: str = ORIGIN) -> None:
        self.leaves = [tlog.leaf_hash(entry) for entry in entries]
        self.origin = origin

    def subtree(self, first: int, count: int) -> bytes:
        return tlog.root_of(self.leaves[first : first + count])

    def root(self, size: int) -> bytes:
        return tlog.tree_hash(0, size, self.subtree)

    def seen(self, size: int) -> Seen:
        return Seen(self.origin, str(KEY), size, self.root(size))

    def show(self, seen: Seen | None, size: int, *, old: int | None = None, key: VerifierKey = KEY) -> Verdict:
        start = (seen.size if seen else 0) if old is None else old
        proof = tlog.prove_consistency(start, size, self.subtree) if start <= size else []
        asked = AddCheckpoint(start, tuple(proof), b"")
        return judge(seen, key, asked, Checkpoint(self.origin, size, self.root(size)))


def entries(count: int, salt: bytes = b"") -> list[bytes]:
    return [hashlib.sha256(salt + bytes([number])).digest() for number in range(count)]


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_log_that_grew_is_cosigned_and_one_that_shrank_is_caught(old, new):
    log = Log(*entries(60))
    verdict = log.show(log.seen(old), new)
    assert verdict.status == (200 if new >= old else 422)
    assert bool(verdict.fault) == (new < old)


@given(st.integers(1, 40), st.integers(0, 20), st.data())
def test_a_log_whose_history_was_rewritten_is_caught_whichever_entry_it_was(old, more, data):
    written = entries(old + more)
    seen = Log(*written).seen(old)
    at = data.draw(st.integers(0, old - 1))
    rewritten = Log(*written[:at], b"something else", *written[at + 1 :])
    verdict = rewritten.show(seen, old + more)
    assert (verdict.status, verdict.remember) == (422, False)
    assert "rewritten" in verdict.fault


def test_the_first_checkpoint_is_taken_from_nothing_only():
    log = Log(*entries(5))
    assert log.show(None, 5).status == 200
    assert log.show(None, 5, old=3) == Verdict(409)


def test_a_log_that_believes_we_saw_less_is_told_what_we_saw():
    log = Log(*entries(9))
    assert log.show(log.seen(6), 9, old=2) == Verdict(409)


def test_another_key_or_name_is_refused():
    log = Log(*entries(9))
    assert log.show(log.seen(6), 9, key=VerifierKey(ORIGIN, SigningKey.generate().public)).status == 403
    other = Log(*entries(9), origin="casemate/fedcba9876543210")
    assert other.show(log.seen(6), 9, old=0).status == 404
    assert Log(*entries(9), origin="example.com/log").show(None, 9).status == 404


def test_an_archived_journal_may_be_followed_and_never_preceded():
    log, after = Log(*entries(9)), Log(*entries(4, b"x"), origin=ORIGIN + "/2")
    verdict = after.show(log.seen(6), 4, old=0)
    assert (verdict.status, verdict.remember) == (200, True)
    assert "put aside" in verdict.fault
    assert log.show(after.seen(4), 9, old=0).status == 404
