"""Our arithmetic against a TPM's own: names, credentials, quotes, policy digests, sealing. A real software TPM."""

from __future__ import annotations

import os
import time

import pytest

from casemate.crypto import endorsement, tpm_policy
from casemate.crypto import tpm as crypto
from casemate.crypto.ecdsa import EcKey
from casemate.crypto.secret import Secret
from casemate.errors import HostError, NotAuthorisedError, UntrustedDataError
from casemate.formats import tpm
from casemate.keystores import tss
from casemate.keystores.tss import Approval
from support.device import running
from support.swtpm import needs_swtpm, software_tpm

pytestmark = needs_swtpm
REFERENCE = b"casemate/1/test"


@pytest.fixture(scope="module")
def chip(tmp_path_factory):
    with software_tpm(tmp_path_factory.mktemp("chip")) as made:
        yield made


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    with software_tpm(tmp_path_factory.mktemp("other")) as made:
        yield made


@pytest.fixture
def opened(chip):
    with tss.open_tpm(chip.tcti) as found:
        yield found


def keys(opened):
    certificate, endorsement_key = opened.endorsement()
    return certificate, tpm.parse_public(endorsement_key), tpm.parse_public(opened.attestation_key())


def test_its_keys_have_the_attributes_we_ask_for_and_its_maker_is_known(opened, chip):
    certificate, ek, ak = keys(opened)
    tpm.check_endorsement_key(ek)
    tpm.check_attestation_key(ak)
    found = endorsement.verify_endorsement(certificate, [endorsement.issuer_certificate(chip.maker)[0]], time.time())
    assert crypto.spki(found.key) == crypto.spki(ek.key)
    assert found.software


def test_a_maker_that_is_not_listed_is_refused(opened, other):
    certificate, *_ = keys(opened)
    for listed in ([], [endorsement.issuer_certificate(other.maker)[0]]):
        with pytest.raises(UntrustedDataError) as caught:
            endorsement.verify_endorsement(certificate, listed, time.time())
        assert caught.value.check == "ek-issuer"


def test_a_credential_opens_in_the_tpm_it_was_made_for(opened):
    _, ek, ak = keys(opened)
    secret = os.urandom(32)
    made = crypto.make_credential(ek.key, ek.name_algorithm, ek.symmetric_bits, ak.name, secret)
    assert opened.activate(*made) == secret


def test_a_credential_for_another_key_or_another_tpm_does_not_open(opened, other):
    _, ek, ak = keys(opened)
    wrong_name = ak.name[:-1] + bytes([ak.name[-1] ^ 1])
    made = crypto.make_credential(ek.key, ek.name_algorithm, ek.symmetric_bits, wrong_name, os.urandom(32))
    with pytest.raises(NotAuthorisedError):
        opened.activate(*made)
    made = crypto.make_credential(ek.key, ek.name_algorithm, ek.symmetric_bits, ak.name, os.urandom(32))
    with tss.open_tpm(other.tcti) as elsewhere, pytest.raises(NotAuthorisedError):
        elsewhere.activate(*made)


def test_a_quote_is_signed_by_the_attestation_key_and_says_what_the_pcrs_hold(opened):
    _, _, ak = keys(opened)
    opened.extend(14, bytes(range(32)))
    wanted = frozenset({0, 7, 14})
    attest, signature = opened.quote(b"nonce" * 4, wanted)
    found = tpm.parse_quote(attest)
    assert tpm.is_signed(ak.key, tpm.parse_signature(signature), attest)
    assert found.pcrs == wanted
    assert found.extra == b"nonce" * 4
    assert found.qualified_signer == tpm.qualified_name(ak)
    assert found.digest == tpm_policy.pcr_digest(opened.pcrs(wanted))


class Sealer:
    """A key sealed to an approver, and the approver."""

    def __init__(self, opened):
        self.opened, self.approver, self.secret = opened, EcKey.generate(), Secret.random()
        self.counter_name = opened.define_counter()
        name = tpm_policy.approver_name(self.approver.public)
        self.sealed = opened.seal(self.secret, tpm_policy.policy_authorize(name, REFERENCE))

    def approve(self, limit, pcrs=frozenset({0, 14}), key=None):
        values = self.opened.pcrs(pcrs)
        policy = tpm_policy.approved_policy(values, self.counter_name, limit)
        return Approval(values, limit, tpm_policy.approve(key or self.approver, policy, REFERENCE))

    def unseal(self, opened, approval, reference=REFERENCE):
        return opened.unseal(self.sealed, self.approver.public.pem(), reference, approval)


@pytest.fixture
def sealer(opened):
    return Sealer(opened)


def test_an_approved_state_opens_the_key_and_an_update_needs_no_sealing(opened, sealer):
    assert sealer.unseal(opened, sealer.approve(opened.counter())).matches(sealer.secret)
    opened.extend(14, b"u" * 32)
    assert sealer.unseal(opened, sealer.approve(opened.counter())).matches(sealer.secret)


def test_a_state_that_was_not_approved_does_not_open_the_key(opened, sealer):
    before = sealer.approve(opened.counter())
    opened.extend(14, b"x" * 32)
    with pytest.raises(NotAuthorisedError):
        sealer.unseal(opened, before)


def test_a_raised_counter_ends_every_older_approval(opened, sealer):
    old = sealer.approve(opened.counter())
    opened.increment()
    with pytest.raises(NotAuthorisedError):
        sealer.unseal(opened, old)
    assert sealer.unseal(opened, sealer.approve(opened.counter())).matches(sealer.secret)


def test_an_approval_by_another_key_for_another_purpose_or_changed_is_refused(opened, sealer):
    good = sealer.approve(opened.counter())
    forged = sealer.approve(opened.counter(), key=EcKey.generate())
    raised = Approval(good.pcrs, good.limit + 1, good.signature)
    for approval, reference in ((forged, REFERENCE), (raised, REFERENCE), (good, b"another")):
        with pytest.raises(NotAuthorisedError):
            sealer.unseal(opened, approval, reference)


def test_another_tpm_does_not_open_it(opened, sealer, other):
    approval = sealer.approve(opened.counter())
    with tss.open_tpm(other.tcti) as elsewhere, pytest.raises(NotAuthorisedError, match="not the TPM"):
        sealer.unseal(elsewhere, approval)


def test_after_a_power_cycle_nothing_opens_before_the_measurements_are_repeated(tmp_path):
    with software_tpm(tmp_path / "c") as chip:
        with tss.open_tpm(chip.tcti) as opened:
            opened.extend(14, b"a" * 32)
            sealer = Sealer(opened)
            approval = sealer.approve(opened.counter())
            key, counter = opened.attestation_key(), opened.counter()
            resets = tpm.parse_quote(opened.quote(b"n", frozenset({14}))[0]).reset_count
        chip.power_cycle()
        with tss.open_tpm(chip.tcti) as opened:
            with pytest.raises(NotAuthorisedError):
                sealer.unseal(opened, approval)
            opened.extend(14, b"a" * 32)
            assert sealer.unseal(opened, approval).matches(sealer.secret)
            assert (opened.attestation_key(), opened.counter()) == (key, counter)
            assert tpm.parse_quote(opened.quote(b"n", frozenset({14}))[0]).reset_count == resets + 1


def test_a_counter_that_is_deleted_and_made_again_is_not_wound_back(tmp_path):
    with software_tpm(tmp_path / "c") as chip, tss.open_tpm(chip.tcti) as opened:
        sealer = Sealer(opened)
        old = sealer.approve(opened.counter())
        opened.increment()
        handle = opened._e.tr_from_tpmpublic(tss.COUNTER)
        opened._e.nv_undefine_space(handle)
        assert opened.define_counter() == sealer.counter_name
        assert opened.counter() > old.limit
        with pytest.raises(NotAuthorisedError):
            sealer.unseal(opened, old)


def test_objects_that_a_dead_program_left_do_not_fill_the_tpm(chip):
    for _ in range(4):
        with tss.open_tpm(chip.tcti) as opened:
            template = opened._t.TPM2B_SENSITIVE_CREATE()
            opened._e.create_primary(template, "ecc", opened._t.ESYS_TR.OWNER)  # never flushed
    with tss.open_tpm(chip.tcti) as opened:
        opened.attestation_key()


@pytest.mark.parametrize("name", ["cmd:id", "", "/dev/tpmrm0"])
def test_a_name_that_is_not_one_of_a_tpm_is_refused(name):
    with pytest.raises(HostError), tss.open_tpm(name):
        pass


def test_a_device_comes_up_on_its_tpm_and_the_vault_never_sees_it(chip, tmp_path):
    with running(tmp_path / "d" / "home", environ={"CASEMATE_KEYSTORE_TPM": chip.tcti}) as device:
        assert device.json("keystore", "status")["kind"] == "tpm"
        device.kill("vault")
        device.wait_ready()
        assert "program" in device.status["assurance_reasons"][0]
