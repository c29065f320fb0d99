"""The attester on a software TPM: measured before use, through crashes and power cycles; judged by the verifier."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time

import msgspec
import pytest

from casemate.crypto.secret import Secret
from casemate.crypto.tpm import make_credential
from casemate.device.attester import measure
from casemate.device.attester.book import FILE, Book
from casemate.device.children import own_launcher, start_child, start_python, wait_ready
from casemate.device.home import Home
from casemate.errors import UntrustedDataError
from casemate.fleet import learning, verifier
from casemate.fleet.verifier import KnownTpm
from casemate.formats import evidence, ipc, lease, reference_policy, tpm
from casemate.formats.evidence import OWN_PCRS
from casemate.formats.keystore import key_id
from casemate.keystores import tss
from support.device import running
from support.evidence import AUTHOR, event
from support.swtpm import needs_swtpm, software_tpm

pytestmark = needs_swtpm
STACK = tuple(event(kind) for kind in ("agent", "sandbox", "engine"))
WANTED = frozenset({0, 7}) | OWN_PCRS


@pytest.fixture
def chip(tmp_path):
    with software_tpm(tmp_path / "tpm") as made:
        boot_firmware(made)
        yield made


def boot_firmware(chip, value=b"f" * 32):
    """What a machine with measured boot does before any of our code runs."""
    with tss.open_tpm(chip.tcti) as opened:
        opened.extend(0, value)
        opened.extend(7, b"s" * 32)


def book_of(tmp_path):
    (tmp_path / "attester").mkdir(exist_ok=True)
    return Book(tmp_path / "attester")


def started(chip, tmp_path, events=STACK):
    book = book_of(tmp_path)
    with tss.open_tpm(chip.tcti) as opened:
        book.open(opened)
        book.measure(opened, events)
    return book


def proven(chip, book, nonce=None, known=None):
    nonce = nonce or os.urandom(32)
    with tss.open_tpm(chip.tcti) as opened:
        given = evidence.parse(evidence.encode(book.answer(opened, nonce, WANTED)))
        known = known or KnownTpm(opened.attestation_key(), trusted=True)
    return verifier.prove(given, nonce=nonce, known=known, wanted=WANTED), known


def signed_policy(found):
    policy = learning.propose(found, name="default", version=1, now=time.time())
    return reference_policy.verify(reference_policy.sign(policy, AUTHOR), public=AUTHOR.public)


def status(chip, book, policy):
    found, known = proven(chip, book)
    appraisal = verifier.appraise(found, policy=policy, known=known, now=time.time())
    return appraisal.status, appraisal.level


def test_a_measured_device_is_affirmed_and_a_restart_of_the_process_measures_nothing_twice(chip, tmp_path):
    book = started(chip, tmp_path)
    policy = signed_policy(proven(chip, book)[0])
    assert status(chip, book, policy) == ("affirming", "L3")
    again = started(chip, tmp_path)
    assert again.log == book.log
    assert status(chip, again, policy) == ("affirming", "L3")


def test_changed_software_and_changed_firmware_are_found(chip, tmp_path):
    policy = signed_policy(proven(chip, started(chip, tmp_path))[0])
    chip.power_cycle()
    boot_firmware(chip)
    other = (*STACK[:2], event("engine", digest="e" * 64))
    assert status(chip, started(chip, tmp_path, other), policy) == ("contraindicated", "L0")
    chip.power_cycle()
    boot_firmware(chip, b"x" * 32)
    assert status(chip, started(chip, tmp_path), policy) == ("contraindicated", "L0")
    chip.power_cycle()
    boot_firmware(chip)
    assert status(chip, started(chip, tmp_path), policy) == ("affirming", "L3")


def test_software_that_ran_since_power_on_is_not_forgotten(chip, tmp_path):
    book = started(chip, tmp_path)
    policy = signed_policy(proven(chip, book)[0])
    started(chip, tmp_path, (event("agent", digest="0" * 64),))
    assert status(chip, started(chip, tmp_path), policy) == ("contraindicated", "L0")


def test_the_last_generation_of_the_log_is_the_one_that_serves_also_after_going_back(chip, tmp_path):
    old, new = (event("generation", "generation", digest * 64) for digest in "ab")
    book = started(chip, tmp_path, (*STACK, old))
    for serves in (old, new, new, old, old):
        book = started(chip, tmp_path, (serves,))
        assert evidence.served(proven(chip, book)[0].events) == serves.digest
    assert [one.content for one in book.log[len(STACK) :]] == [
        evidence.record(0, each).content for each in (old, new, old)
    ]


@pytest.mark.parametrize("lost", ["deleted", "cut", "forged"])
def test_a_log_that_was_taken_away_is_missed_until_the_machine_restarts(chip, tmp_path, lost):
    book = started(chip, tmp_path, (*STACK, event("model"), event("model", "bad")))
    path = tmp_path / "attester" / FILE
    if lost == "deleted":
        path.unlink()
    else:
        forged = (*book.log[:-2], evidence.record(len(book.log) - 2, event("model", "good")))
        path.write_bytes(evidence.encode_log(book.log[:-2] if lost == "cut" else forged))
    again = started(chip, tmp_path)
    assert again.broken
    with pytest.raises(UntrustedDataError) as caught:
        proven(chip, again)
    assert caught.value.check == "log-replay"
    chip.power_cycle()
    assert not started(chip, tmp_path).broken


def test_a_crash_between_writing_and_extending_is_finished(chip, tmp_path):
    book = started(chip, tmp_path)
    book._write((*book.log, evidence.record(len(book.log), event("model"))))
    again = started(chip, tmp_path)
    assert not again.broken
    assert proven(chip, again)[0].events[-1] == event("model")


def test_evidence_from_before_a_power_cycle_is_not_evidence_after_it(chip, tmp_path):
    book = started(chip, tmp_path)
    before, known = proven(chip, book)
    chip.power_cycle()
    boot_firmware(chip)
    after, _ = proven(chip, started(chip, tmp_path), known=known)
    assert after.clock.reset_count == before.clock.reset_count + 1


def test_the_same_installation_has_the_same_digests():
    first = measure.stack_events()
    assert first == measure.stack_events()
    assert [one.kind for one in first] == ["agent", "sandbox", "engine"]
    assert len({one.digest for one in first}) == 3
    assert measure.guard_event().kind == "guard"


def test_a_changed_file_changes_the_digest(tmp_path):
    (tmp_path / "a.py").write_text("a")
    before = measure.tree_digest(tmp_path, measure._files(tmp_path))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert measure.tree_digest(tmp_path, measure._files(tmp_path)) == before
    (tmp_path / "b.py").write_text("")
    assert measure.tree_digest(tmp_path, measure._files(tmp_path)) != before


def test_the_process_measures_quotes_and_gives_a_key_to_whom_the_agent_connected(chip, tmp_path):
    home = Home(tmp_path / "home").create()
    nonce, transport, secret = os.urandom(32), os.urandom(32), Secret.random()
    with tss.open_tpm(chip.tcti) as opened:
        public = opened.attestation_key()
        _, ek = opened.endorsement()
    sealed = credential(ek, public, transport)

    async def talk():
        child = await start_child(
            "attester",
            own_launcher(lambda fds: start_python("attester", None, fds[0])),
            home=str(home.path),
            settings={"tpm": chip.tcti},
            fds={},
        )
        try:
            await wait_ready(child, 30)
            assert child.facts["software_tpm"]
            rows = tuple(msgspec.to_builtins(one) for one in STACK)
            await child.link.send(ipc.Measure(id=1, events=rows))
            measured, _ = await child.recv(30)
            await child.link.send(ipc.Measure(id=2, events=({"kind": "shell"},)))
            refused, _ = await child.recv(30)
            await child.link.send(ipc.Quote(id=3, nonce=nonce, pcrs=tuple(sorted(WANTED))))
            quoted, _ = await child.recv(30)
            await child.link.send(ipc.BeginKey(4, "m"))
            begun, _ = await child.recv(30)
            terms = lease.Terms(1, "f", "d", "m", key_id(secret), "L2", 600, begun.nonce)
            await child.link.send(ipc.TakeKey(5, "m", *sealed, *lease.make_grant(Secret(transport), secret, terms)))
            taken, _ = await child.recv(30)
            reader, writer = os.pipe()
            await child.link.send(ipc.UseKey(6, "m"), [writer])
            os.close(writer)
            used, _ = await child.recv(30)
            got = os.read(reader, 4096)
            os.close(reader)
            await child.link.send(ipc.DropKeys(7))
            dropped, _ = await child.recv(30)
            return measured, refused, quoted, taken, used, got, dropped
        finally:
            await child.stop(2)

    measured, refused, quoted, taken, used, got, dropped = asyncio.run(talk())
    assert measured == ipc.Measured(1, 7)
    assert refused.code == "untrusted_data"
    assert (taken, dropped) == (ipc.KeyHeld(5, 600.0), ipc.KeyHeld(7))
    assert 590 < used.seconds <= 600
    assert lease.handed(got).secret.reveal() == secret.reveal()
    assert list((home.path / "attester" / "leases").iterdir()) == []
    given = evidence.parse(quoted.evidence)
    found = verifier.prove(given, nonce=nonce, known=KnownTpm(public, trusted=True), wanted=WANTED)
    assert found.events == (*measure.stack_events(), measure.guard_event(), *STACK)


def credential(ek_public, ak_public, secret):
    ek, ak = tpm.parse_public(ek_public), tpm.parse_public(ak_public)
    return make_credential(ek.key, ek.name_algorithm, ek.symmetric_bits, ak.name, secret)


def test_what_an_update_brings_is_measured_by_what_the_gateway_gets():
    assert measure.taken_events({}, b"") == []
    first, second, guard = measure.taken_events({"b": "x", "a": "y"}, b"rules")
    assert (first.name, second.name, guard.name) == ("a", "b", "update")
    assert second == measure.policy_event("b", b"x")
    assert guard.digest == hashlib.sha256(b"rules").hexdigest()


def test_a_device_measures_what_it_runs_and_what_it_serves(chip, tmp_path):
    with running(tmp_path / "d" / "home", environ={"CASEMATE_KEYSTORE_TPM": chip.tcti}) as device:
        log = evidence.parse_log((device.home / "attester" / FILE).read_bytes())
        events, explained = evidence.replay(log)
        served = device.status["models"][0]
        with tss.open_tpm(chip.tcti) as opened:
            assert opened.pcrs(OWN_PCRS) == explained
        device.kill("attester")
        device.wait_ready()
        assert evidence.parse_log((device.home / "attester" / FILE).read_bytes()) == log
    kinds = [one.kind for one in events]
    assert kinds == ["agent", "sandbox", "engine", "guard", "policy", "model"]
    assert events[-1].name == served["name"]
    assert f"sha256:{events[-1].digest}" == served["digest"]
