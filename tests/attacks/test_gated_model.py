"""A gated model on a disk that was stolen, on a device its fleet no longer trusts, or after its lease.

Each attack has its control: the same thing with the defence off, or one step before it holds, works.
"""

from __future__ import annotations

import contextlib
import time

import msgspec
import pytest

from casemate.crypto.secret import Secret
from casemate.device import containers, models
from casemate.errors import CasemateError, NotAuthorisedError, PolicyDeniedError, UntrustedDataError
from casemate.fleet.keybroker import Gate, Result, decide
from casemate.fleet.states import State
from casemate.formats import container as fmt
from casemate.formats import ipc, lease
from casemate.formats.container import SlotArea
from casemate.formats.keystore import key_id
from casemate.formats.lease import LeasedKey
from casemate.keystores import tss
from support import gated, homes
from support.swtpm import needs_swtpm, software_tpm

pytestmark = needs_swtpm


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    return tmp_path_factory.mktemp("maker") / "ca"


@pytest.fixture(scope="module")
def chip(tmp_path_factory, maker):
    with software_tpm(tmp_path_factory.mktemp("chip") / "t", maker) as made:
        yield made


@pytest.fixture
def site(chip, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)
    return gated.Site(homes.make(tmp_path, monkeypatch), chip)


def test_control_a_leased_key_opens_the_model(site):
    site.add()
    site.obtain()
    with site.use() as leased:
        assert isinstance(site.load(leased), ipc.Loaded)


def test_the_devices_own_keystore_does_not_open_it(site):
    """Passphrase, key file and recovery code all lead to the home's key: none of them leads to a gated model."""
    site.add()
    reply = site.load(None)
    assert (reply.code, reply.exit_code) == ("policy_denied", 11), reply
    with pytest.raises(PolicyDeniedError):
        site.bench.verify()
    site.bench.add(name="tiny", replace=True)  # the control: the same model, not gated
    assert isinstance(site.load(None), ipc.Loaded)


def test_a_stolen_disk_is_no_use_without_its_tpm(site, tmp_path, maker, monkeypatch):
    """The thief has the container and the kept lease, and a TPM of the same maker."""
    site.add()
    site.obtain()
    with software_tpm(tmp_path / "thief", maker) as other, tss.open_tpm(other.tcti) as opened:
        with pytest.raises(PolicyDeniedError):
            site.ring.use(opened, gated.MODEL)
        with pytest.raises(NotAuthorisedError):
            opened.activate(*site.grant(b"n" * 32)["sealed"])
    site.use().secret.wipe()  # the control: the same bytes, beside the TPM they were made for


def test_another_models_key_does_not_open_it(site):
    site.add()
    with Secret.random() as other:
        reply = site.load(LeasedKey("shop", "tiny", key_id(other), "L2", other))
        assert reply.check == "wrong-lease"
        reply = site.load(LeasedKey("shop", "tiny", key_id(site.key), "L2", other))  # and under the right name
        assert reply.check == "container-slot"
    assert site.load(LeasedKey("shop", "other", key_id(site.key), "L2", site.key)).check == "wrong-lease"


def test_a_revoked_or_quarantined_device_and_a_stale_result_get_nothing():
    gate, now = Gate("L2", 3600, None), 1_000_000.0
    good = Result(1, "affirming", "L3", now - 60, now + 600)
    assert decide(gate, good, State.ENROLLED, now).granted  # the control
    for state in (State.REVOKED, State.QUARANTINED, State.WIPING, State.WIPED):
        assert not decide(gate, good, state, now).granted
    stale = Result(1, "affirming", "L3", now - 901, now + 600)
    assert not decide(gate, stale, State.ENROLLED, now).granted
    assert not decide(gate, good, State.ENROLLED, now + 700).granted


def test_a_grant_works_once(site, monkeypatch):
    """Whoever carries the broker's answer keeps a copy and gives it to the attester again when the lease is over."""
    nonce = site.ring.begin(gated.MODEL)
    answer = site.grant(nonce)
    assert site.take(answer) == 3600
    with tss.open_tpm(site.chip.tcti) as opened:  # the TPM itself would open it as often as it is asked
        assert opened.activate(*answer["sealed"])
    with pytest.raises(PolicyDeniedError):
        site.take(answer)
    site.ring.begin(gated.MODEL)
    with pytest.raises(UntrustedDataError, match="another question"):
        site.take(answer)
    monkeypatch.setattr("os.urandom", lambda _size: nonce)  # the control: an attester that asks the same thing twice
    site.ring.begin(gated.MODEL)
    assert site.take(answer) == 3600


@pytest.mark.parametrize(
    ("change", "check"),
    [({"lease_s": 86_400}, "grant-seal"), ({"min_assurance": "L3"}, "grant-seal"), ({"model": "other"}, "grant-model")],
)
def test_terms_cannot_be_bettered_on_their_way(site, change, check):
    answer = site.grant(site.ring.begin(gated.MODEL))
    terms, wrapped = answer["grant"]
    better = msgspec.json.encode(msgspec.structs.replace(msgspec.json.decode(terms, type=lease.Terms), **change))
    with pytest.raises(UntrustedDataError) as caught:
        site.take({**answer, "grant": (better, wrapped)})
    assert caught.value.check == check
    site.obtain()  # the control: unchanged terms are taken


def obtain_short(site, then=lambda: None):
    """Obtain a lease, do *then*, show that it runs (the control), and wait until its seconds are over.

    A busy machine takes longer than a second to show it: then a longer lease is asked for.
    """
    for seconds in (1, 2, 4, 8, 16, 32):
        site.obtain(lease_s=seconds)
        then()
        with contextlib.suppress(PolicyDeniedError):
            site.use().secret.wipe()
            time.sleep(seconds + 0.1)
            return
    raise AssertionError("no lease runs")


def test_setting_the_clock_back_does_not_lengthen_a_lease(site):
    """Root sets the machine's clock to the moment of the grant, again and again; the TPM's own clock goes on."""
    obtain_short(site)
    assert lease.seconds_left(  # the control: a lease by the machine's clock alone would run for ever
        until_ms=1000, clock_ms=0, granted=int(site.clock.at), ends=int(site.clock.at) + 1, now=site.clock.at
    )
    with pytest.raises(PolicyDeniedError):
        site.use()


def test_a_clock_from_before_the_grant_or_after_the_end_is_no_lease(site):
    site.obtain()
    granted = site.clock.at
    for at in (granted - 86_400, granted + 3601):
        site.clock.at = at
        with pytest.raises(PolicyDeniedError):
            site.use()
    site.clock.at = granted + 60
    site.use().secret.wipe()


def test_a_kept_lease_cannot_be_rewritten(site):
    """Its limits stand in the file, and in the TPM's policy: who writes later ones gets nothing."""
    site.obtain(lease_s=1)
    kept = lease.parse_kept(site.lease.read_bytes())
    time.sleep(1.1)
    for change in ({"until_ms": kept.until_ms + 10**9}, {"resets": 2**31, "until_ms": kept.until_ms + 10**9}):
        site.lease.write_bytes(lease.encode_kept(msgspec.structs.replace(kept, **change)))
        with pytest.raises(PolicyDeniedError):
            site.use()
    longer = int(site.clock.at) + 86_400  # the end by the machine's clock is sealed, too
    site.obtain()
    kept = lease.parse_kept(site.lease.read_bytes())
    site.lease.write_bytes(lease.encode_kept(msgspec.structs.replace(kept, ends=longer)))
    site.clock.at += 3601
    with pytest.raises(PolicyDeniedError):
        site.use()


def test_a_dropped_lease_that_is_put_back_ends_when_it_would_have(site):
    def put_back():
        copy = site.lease.read_bytes()
        site.ring.drop()
        with pytest.raises(CasemateError):
            site.use()
        site.lease.write_bytes(copy)

    obtain_short(site, put_back)  # it runs again: the offline grace that was granted
    with pytest.raises(PolicyDeniedError):
        site.use()


def test_cutting_the_power_again_and_again_does_not_stretch_a_lease(site, tmp_path, maker):
    """Each cut may cost a TPM's clock some minutes: so a lease ends with its fifth start, whatever the clock says."""
    with software_tpm(tmp_path / "t", maker) as chip:
        site.chip = chip
        site.obtain()
        for _ in range(lease.RESTARTS):
            chip.power_cycle()
            site.use().secret.wipe()  # the control: a lease outlives a restart
        chip.power_cycle()
        with pytest.raises(PolicyDeniedError):
            site.use()


def test_a_passphrase_slot_beside_the_brokers_is_refused_though_its_key_is_right(site, monkeypatch):
    """An insider who saw the data key once writes a second way in, properly sealed, to have one after the lease."""
    site.add()
    path = homes.container_of(site.bench)
    with Secret(b"correct horse battery staple") as passphrase:
        with containers.open_container(path) as opened:
            leased = LeasedKey("shop", gated.MODEL, key_id(site.key), "L2", site.key)
            with containers.unwrap_leased(opened.container, leased) as data_key:
                header = opened.container.header
                second = containers.passphrase_slot(header, data_key, passphrase)
                area = SlotArea((*opened.container.slots, second), opened.container.claimed)
                with monkeypatch.context() as defence_off:
                    defence_off.setattr(fmt, "_require_one_gate", lambda _slots: None)
                    containers.replace_area(path, header, area, data_key)
                    with containers.open_container(path) as both:  # the control: the MAC holds, the passphrase opens
                        opened_again = containers.unwrap_export(both.container, passphrase=passphrase, keystore=None)
                        fmt.verify(both.container, opened_again)
        with pytest.raises(UntrustedDataError) as caught:
            containers.open_container(path)
    assert caught.value.check == "container-gate"
