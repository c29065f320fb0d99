"""A device that is not what it was asks for a model's key. Each defence is off once: then the attack works."""

from __future__ import annotations

import dataclasses
import hashlib

import msgspec
import pytest

from casemate import keystores
from casemate.crypto.tpm import make_credential
from casemate.crypto.tpm_policy import pcr_digest
from casemate.device import rotation
from casemate.device.home import Home
from casemate.errors import NotAuthorisedError, UntrustedDataError
from casemate.fleet import verifier
from casemate.fleet.verifier import TpmClock
from casemate.formats import evidence, tpm
from casemate.formats.evidence import OWN_PCRS, ZERO, UntrustedEvidence
from casemate.keystores import tss
from support.evidence import AK_ATTRIBUTES, FIRMWARE, FULL, NONCE, NOW, Signer, event, log_of, verified
from support.swtpm import needs_swtpm, software_tpm

WANTED = frozenset(FIRMWARE) | OWN_PCRS
ALTERED = {**FIRMWARE, 7: b"x" * 32}


def judge(given, known, *, nonce=NONCE):
    """What the fleet's server does with evidence."""
    proven = verifier.prove(given, nonce=nonce, known=known, wanted=WANTED)
    return verifier.appraise(proven, policy=verified(), known=known, now=NOW)


def check_of(given, known, **keywords):
    with pytest.raises(UntrustedDataError) as caught:
        judge(given, known, **keywords)
    return caught.value.check


def trusting(given, golden):
    """A verifier that believes a log about every PCR and takes a PCR it does not know for zero: our first one."""
    values = dict(golden)
    for record in given.log:
        digest = bytes.fromhex(record.digests[0].digest)
        values[record.pcr] = hashlib.sha256(values.get(record.pcr, ZERO) + digest).digest()
    quote = tpm.parse_quote(given.attest)
    return pcr_digest({index: values.get(index, ZERO) for index in quote.pcrs}) == quote.digest


def test_control_a_whole_device_is_affirmed():
    signer = Signer()
    assert judge(signer.answer(), signer.known).status == "affirming"


def test_a_log_that_explains_altered_firmware_convinces_only_a_verifier_that_believes_logs():
    """The attacker owns the log. He boots firmware of his own and appends a record that makes PCR 7 come out right."""
    signer = Signer()
    lie = msgspec.structs.replace(evidence.record(0, event("agent")), pcr=7)
    booted = hashlib.sha256(FIRMWARE[7] + bytes.fromhex(lie.digests[0].digest)).digest()
    pcrs = {**FIRMWARE, 7: booted, **dict.fromkeys(OWN_PCRS, ZERO)}
    attest = signer.attest(NONCE, pcrs)
    given = UntrustedEvidence(1, NONCE, attest, signer.sign(attest), pcrs, (lie,))
    assert trusting(given, FIRMWARE)
    assert check_of(given, signer.known) == "log-pcr"


def test_a_quote_that_leaves_the_altered_pcr_out_convinces_only_a_verifier_that_does_not_count():
    signer = Signer()
    pcrs = {0: FIRMWARE[0], **evidence.replay(log_of(FULL))[1]}
    attest = signer.attest(NONCE, pcrs)
    given = UntrustedEvidence(1, NONCE, attest, signer.sign(attest), pcrs, log_of(FULL))
    assert trusting(given, {0: FIRMWARE[0]})
    assert check_of(given, signer.known) == "quote-selection"


def test_evidence_from_better_days_works_only_for_its_own_challenge():
    signer = Signer()
    kept = signer.answer()
    assert judge(kept, signer.known).status == "affirming"  # the control: the challenge it was made for
    assert check_of(kept, signer.known, nonce=b"m" * 32) == "evidence-nonce"
    relabelled = msgspec.structs.replace(kept, nonce=b"m" * 32)
    assert check_of(relabelled, signer.known, nonce=b"m" * 32) == "quote-nonce"


def test_a_key_that_signs_anything_signs_a_quote_that_never_was(monkeypatch):
    forger = Signer(attributes=AK_ATTRIBUTES & ~tpm.RESTRICTED)
    invented = forger.answer()
    with monkeypatch.context() as defence_off:
        defence_off.setattr(tpm, "check_attestation_key", lambda _public: None)
        assert judge(invented, forger.known).status == "affirming"
    assert check_of(invented, forger.known) == "ak-attributes"


def test_a_tpm_whose_state_was_copied_and_put_back_is_found_by_its_age():
    signer = Signer()
    assert judge(signer.answer(), signer.known).status == "affirming"  # the control: nothing newer was ever seen
    known = dataclasses.replace(signer.known, last=TpmClock(signer.resets, 0, signer.clock + 1))
    assert check_of(signer.answer(), known) == "quote-clock"


def test_altered_firmware_and_software_are_contraindicated_however_honest_the_log():
    signer = Signer()
    assert judge(signer.answer(firmware=ALTERED), signer.known).status == "contraindicated"
    assert judge(signer.answer((*FULL, event("engine", digest="0" * 64))), signer.known).status == "contraindicated"


@needs_swtpm
def test_a_models_key_for_one_tpm_is_no_use_to_another(tmp_path):
    with software_tpm(tmp_path / "a") as victim, software_tpm(tmp_path / "b") as thief:
        with tss.open_tpm(victim.tcti) as chip:
            ek, ak = tpm.parse_public(chip.endorsement()[1]), tpm.parse_public(chip.attestation_key())
            sealed = make_credential(ek.key, ek.name_algorithm, ek.symmetric_bits, ak.name, b"k" * 32)
            assert chip.activate(*sealed) == b"k" * 32
        with tss.open_tpm(thief.tcti) as chip, pytest.raises(NotAuthorisedError):
            chip.activate(*sealed)


@needs_swtpm
def test_an_old_copy_of_the_keystore_opens_until_the_rotation_and_never_after(tmp_path, home_path):
    home = Home(home_path).create()
    with software_tpm(tmp_path / "t") as chip:
        sources = keystores.Sources(home, tpm=chip.tcti)
        keystores.create(home, sources).wipe()
        place = home.keystore / "keystore.json"
        copy = place.read_bytes()
        keystores.unlock(home, sources).wipe()  # the control: the copy is as good as the original
        rotation.rotate(home, sources, sources, to="tpm", show=lambda _: None)
        place.write_bytes(copy)
        with pytest.raises(NotAuthorisedError, match="does not release"):
            keystores.unlock(home, sources)
