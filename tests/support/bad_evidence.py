"""Attempts with a real TPM in hand: joining, proving, policies. Each says what came back; each defect stands alone."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Mapping

import msgspec

from casemate.crypto import client_certificate
from casemate.crypto.ecdsa import EcKey
from casemate.errors import NotAuthorisedError
from casemate.formats import evidence
from casemate.formats.evidence import UntrustedEvidence
from support.bad_input import Said, Scene, offline, said
from support.evidence import event, log_of
from support.tpm_device import STACK, TpmDevice

PROOF = "enroll/tpm/complete"


# --- joining ----------------------------------------------------------------------------------------------------------


def hello(scene: Scene, **changes: bytes) -> Said:
    """Refused, and the token is as good as before."""
    device = scene.stranger()
    token = scene.server.token(device.asset)
    answer = said(device.hello(token, **changes))
    if not answer.accepted:
        assert device.hello(token).status == 200
    return answer


def noise_in(field: str) -> Callable[[Scene], Said]:
    return lambda scene: hello(scene, **{field: b"not that"})


def attestation_key_with(attributes: int) -> Callable[[Scene], Said]:
    """The TPM's own key, said to be another kind of key: `attributes` are flipped in its public area.

    Where the kind would do, the key has another name: the credential for it opens in no TPM, and a guess is one.
    """

    def attempt(scene: Scene) -> Said:
        device = scene.stranger()
        public = bytearray(device.keys()[2])
        public[4:8] = (int.from_bytes(public[4:8], "big") ^ attributes).to_bytes(4, "big")
        answer = device.hello(scene.server.token(device.asset), ak_public=bytes(public))
        return _opened(answer.json(), device) if answer.status == 200 else said(answer)

    return attempt


def certificate_of_another_chip(scene: Scene) -> Said:
    return hello(scene, ek_certificate=scene.proven.keys()[0])


def no_way_in(scene: Scene) -> Said:
    """A TPM that nobody listed, and no token."""
    return said(scene.stranger().hello())


def credential(scene: Scene) -> tuple[TpmDevice, dict[str, str]]:
    """Return a device that was challenged, and what proves it."""
    device = scene.stranger()
    answer = device.hello(scene.server.token(device.asset))
    return device, {"secret": base64.b64encode(device.activate(answer.json())).decode()}


def proof_replayed(scene: Scene) -> Said:
    device, proof = credential(scene)
    assert device.open(PROOF, proof).status == 200
    return said(device.open(PROOF, proof))


def proof_guessed(scene: Scene) -> Said:
    device, _ = credential(scene)
    return said(device.open(PROOF, {"secret": base64.b64encode(bytes(32)).decode()}))


def credential_swapped(scene: Scene) -> Said:
    """The victim's endorsement key with the thief's attestation key: neither TPM opens what comes; a guess is one."""
    victim, thief = scene.stranger(), scene.proven
    foreign = thief.keys()[2]
    sealed = victim.hello(scene.server.token(victim.asset), ak_public=foreign).json()
    return _opened(sealed, victim, thief)


def credential_altered(scene: Scene) -> Said:
    device = scene.stranger()
    sealed = device.hello(scene.server.token(device.asset)).json()
    changed = _flipped(base64.b64decode(sealed["identity"]), -2)
    return _opened({**sealed, "identity": base64.b64encode(changed).decode()}, device)


def _opened(sealed: dict[str, str], *chips: TpmDevice) -> Said:
    """Return 200 when one of *chips* opens a credential, else what the fleet says to somebody who guesses."""
    for each in chips:
        with contextlib.suppress(NotAuthorisedError):
            return Said(200, f"{len(each.activate(sealed))} bytes came out")
    return said(chips[0].open(PROOF, {"secret": base64.b64encode(b"x" * 32).decode()}))


def revoked_with_its_tpm(scene: Scene) -> Said:
    device = scene.stranger()
    device.join(scene.server.token(device.asset))
    scene.server.cli("device", "revoke", device.asset)
    secret = device.activate(device.hello().json())
    return said(device.open(PROOF, {"secret": base64.b64encode(secret).decode()}))


def used_token_without_its_tpm(scene: Scene) -> Said:
    device = scene.stranger()
    token = scene.server.token(device.asset)
    device.join(token)
    scene.end_certificates(device.id)
    return said(scene.server.enrol(token, client_certificate.make_request(EcKey.generate())))


# --- proving ----------------------------------------------------------------------------------------------------------


def shown(device: TpmDevice, given: UntrustedEvidence) -> Said:
    """Return what evidence came to. Judged bad it is 200 on the wire; its first reason names the check it failed."""
    answer = device.show(given)
    if answer.status != 200:
        return said(answer)
    found = answer.json()
    if found["status"] == "affirming":
        return Said(200, found["assurance"])
    assert found["assurance"] == "L0", found
    return Said(0, found["reasons"][0].split(": ")[1])


def altered(change: Callable[[UntrustedEvidence], UntrustedEvidence]) -> Callable[[Scene], Said]:
    def attempt(scene: Scene) -> Said:
        device = scene.proven
        return shown(device, change(device.evidence(device.challenge())))

    return attempt


def _flipped(data: bytes, index: int) -> bytes:
    changed = bytearray(data)
    changed[index] ^= 1
    return bytes(changed)


_change = msgspec.structs.replace
OTHER_ENGINE = event("engine", digest="0" * 64)


def _without_7(pcrs: Mapping[int, bytes]) -> dict[int, bytes]:
    return {index: value for index, value in pcrs.items() if index != 7}


Alteration = Callable[[UntrustedEvidence], UntrustedEvidence]
ALTERED: tuple[tuple[str, str, Alteration, str], ...] = (
    ("signature", "a byte of the quote", lambda it: _change(it, attest=_flipped(it.attest, 60)), "quote-signature"),
    ("signature", "the quote's end", lambda it: _change(it, attest=it.attest[:-1]), "quote-signature"),
    ("signature", "a byte of it", lambda it: _change(it, signature=_flipped(it.signature, 40)), "quote-signature"),
    ("log", "its end", lambda it: _change(it, log=it.log[:-1]), "log-replay"),
    ("log", "its order", lambda it: _change(it, log=it.log[::-1]), "log-order"),
    ("log", "a PCR", lambda it: _change(it, pcrs={**it.pcrs, 7: bytes(32)}), "quote-digest"),
    ("log", "a PCR left out", lambda it: _change(it, pcrs=_without_7(it.pcrs)), "quote-selection"),
    ("event", "its digest", lambda it: _change(it, log=log_of((*STACK[:2], OTHER_ENGINE))), "log-replay"),
    ("event", "its PCR", lambda it: _change(it, log=(_change(it.log[0], pcr=7), *it.log[1:])), "log-pcr"),
)  # fmt: skip
"""What is altered, and the check that finds it."""


def evidence_of_another_chip(scene: Scene) -> Said:
    device, thief = scene.proven, scene.stranger().boot()
    return shown(device, thief.evidence(device.challenge()))


def evidence_replayed(scene: Scene) -> Said:
    device = scene.proven
    given = device.evidence(device.challenge())
    assert shown(device, given).accepted
    return shown(device, given)


def nonce_made_up(scene: Scene) -> Said:
    device = scene.proven
    return shown(device, _change(device.evidence(device.challenge()), nonce=b"m" * 32))


def nonce_of_before(scene: Scene) -> Said:
    """An older challenge is void once there is a newer one."""
    device = scene.proven
    first = device.challenge()
    device.challenge()
    return shown(device, device.evidence(first))


def evidence_over_anothers_connection(scene: Scene) -> Said:
    device = scene.proven
    raw = evidence.encode(device.evidence(device.challenge()))
    return scene.post("/device/v1/attest/evidence", raw)


def log_of_before_the_power_cycle(scene: Scene) -> Said:
    """The machine was switched off and on with nothing measured since: the log it kept explains PCRs that are gone."""
    device = scene.proven
    device.chip.power_cycle()
    found = shown(device, device.evidence(device.challenge()))
    device.boot()
    return found


def quote_of_before_the_power_cycle(scene: Scene) -> Said:
    """A quote from better days in answer to today's question."""
    device = scene.proven
    old = device.evidence(device.challenge())
    device.boot()
    challenge = device.challenge()
    return shown(device, _change(old, nonce=base64.b64decode(challenge["nonce"])))


def state_put_back(scene: Scene) -> Said:
    """The TPM's state was copied, it lived on, and the copy is put back: it is younger than it was."""
    device, old, newest = scene.proven, scene.scratch / "old-chip", scene.scratch / "newest-chip"
    device.chip.copy_state(old)
    for _ in range(2):
        assert device.boot().attest()["status"] == "affirming"
    device.chip.copy_state(newest)
    device.chip.put_back(old)
    device.boot()
    found = shown(device, device.evidence(device.challenge()))
    device.chip.put_back(newest)
    device.boot()
    return found


def key_question_that_is_short(scene: Scene) -> Said:
    return said(scene.proven.ask_key("no-such-model", b"short"))


def key_after_an_altered_log(scene: Scene) -> Said:
    """Judged bad a moment ago: what was good before does not count."""
    device = scene.proven
    scene.server.cli("model", "gate", "matrix")
    assert not altered(lambda it: _change(it, log=it.log[:-1]))(scene).accepted
    return said(device.ask_key("matrix"))


# --- policies ---------------------------------------------------------------------------------------------------------


def policy_rolled_back(scene: Scene) -> Said:
    old = scene.signed_policy(scene.proven)
    assert scene.new_policy(scene.proven) == Said(200)
    return scene.add_policy(old)


def policy_of_a_stranger(scene: Scene) -> Said:
    offline("policy", "author", scene.scratch / f"stranger-{(name := scene.name())}")
    return scene.add_policy(scene.signed_policy(scene.proven, f"stranger-{name}"))


def policy_altered(scene: Scene) -> Said:
    path = scene.signed_policy(scene.proven)
    envelope = msgspec.json.decode(path.read_bytes())
    payload = bytearray(base64.b64decode(envelope["payload"]))
    payload[payload.index(b'"version":') + 10] = ord("9")
    path.write_bytes(msgspec.json.encode({**envelope, "payload": base64.b64encode(payload).decode()}))
    return scene.add_policy(path)


# --- the same without a defect ----------------------------------------------------------------------------------------


def good_hello(scene: Scene) -> Said:
    device = scene.stranger()
    return said(device.hello(scene.server.token(device.asset)))


def good_proof(scene: Scene) -> Said:
    device, proof = credential(scene)
    return said(device.open(PROOF, proof))


def good_evidence(scene: Scene) -> Said:
    device = scene.proven
    return shown(device, device.evidence(device.challenge()))


def good_key(scene: Scene) -> Said:
    assert good_evidence(scene).accepted
    scene.server.cli("model", "gate", "matrix")
    return said(scene.proven.ask_key("matrix"))


def good_policy(scene: Scene) -> Said:
    return scene.new_policy(scene.proven)
