"""The event log beside the PCRs it explains, with a TPM that fails when it is told to."""

from __future__ import annotations

import hashlib

import pytest

from casemate.device.attester.book import Book
from casemate.errors import OperationError
from casemate.formats.evidence import OWN_PCRS, ZERO, extended
from support.evidence import event


class Chip:
    """PCRs; *fails* says how the next extension fails: before the TPM did it, or after."""

    def __init__(self):
        self.held = dict.fromkeys(OWN_PCRS, ZERO)
        self.fails = ""

    def extend(self, pcr, digest):
        failing, self.fails = self.fails, ""
        if failing != "before":
            self.held[pcr] = extended(self.held[pcr], digest)
        if failing:
            raise OperationError("the TPM does not answer")

    def pcrs(self, indexes):
        return {index: self.held[index] for index in indexes}

    def quote(self, nonce, pcrs):
        return b"", hashlib.sha256(nonce).digest()


@pytest.mark.parametrize("fails", ["before", "after"])
@pytest.mark.parametrize("first", [(), ("engine",)], ids=["a fresh boot", "after others"])
def test_what_a_tpm_failed_to_measure_is_measured_once_before_it_counts_as_seen(tmp_path, fails, first):
    chip, book = Chip(), Book(tmp_path)
    book.open(chip)
    book.measure(chip, [event(kind) for kind in first])
    chip.fails = fails
    with pytest.raises(OperationError):
        book.measure(chip, [event("model")])
    book.measure(chip, [event("model"), event("guard")])
    again = Book(tmp_path)
    again.open(chip)
    assert (again.broken, book.broken) == ("", "")
    assert len(again.log) == len(first) + 2
