"""What a device's TPM says to its word: the newest judgement since the word, against the generation the word names.

    no TPM in our record                                      claimed    the word stands alone
    none since the word                                       waiting
    contraindicated                                           refuted
    another generation was proven                             other
    it is over                                                waiting
    affirming, and this generation was proven                 proven
    no reference policy for this device (nobody judges)       claimed
    anything else: a warning, an expired policy, no name      waiting

The first row that fits holds. A word is good when it is claimed or proven; *waiting* never passes. That there is no
policy is said by a judgement since the word too: a device that shows nothing is not one that nobody asks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from casemate.fleet.store import rollout_tables, tables

_one, _result, _tpm = rollout_tables.rollout_device.c, tables.attest_result.c, tables.tpm_identity.c


class Proof(StrEnum):
    """What is known of a word."""

    CLAIMED = "claimed"
    WAITING = "waiting"
    PROVEN = "proven"
    OTHER = "other"
    REFUTED = "refuted"


GOOD: Final = (Proof.CLAIMED.value, Proof.PROVEN.value)
LIES: Final = {
    Proof.OTHER.value: "it proves another generation than it says",
    Proof.REFUTED.value: "it says that it runs this and its attestation is contraindicated",
}
"""What fails a device, and why in words."""
MUTE: Final = "it did not prove what it runs"


def found(content: str, now: float) -> sa.ColumnElement[str]:
    """Return the `Proof` of a row of `rollout_device` that says since `installed` that it runs *content*."""
    judged = sa.case(
        (_result.status == "contraindicated", _is(Proof.REFUTED)),
        (_result.generation.not_in(("", content)), _is(Proof.OTHER)),
        (_result.expires <= now, _is(Proof.WAITING)),
        (sa.and_(_result.status == "affirming", _result.generation == content), _is(Proof.PROVEN)),
        (sa.and_(_result.status == "none", _result.policy == ""), _is(Proof.CLAIMED)),
        else_=_is(Proof.WAITING),
    )
    since = sa.and_(_result.device_id == _one.device_id, _result.created > _one.installed)
    newest = sa.select(judged).where(since).order_by(_result.created.desc(), _result.id.desc()).limit(1)
    has_tpm = sa.exists(sa.select(_tpm.device_id).where(_tpm.device_id == _one.device_id))
    word = newest.correlate(rollout_tables.rollout_device).scalar_subquery()
    return sa.case((has_tpm, sa.func.coalesce(word, _is(Proof.WAITING))), else_=_is(Proof.CLAIMED))


def _is(proof: Proof) -> sa.ColumnElement[str]:
    return sa.literal(proof.value, sa.String())
