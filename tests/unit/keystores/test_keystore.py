"""Making, opening and changing a keystore."""

from __future__ import annotations

import json
import os
import stat

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate import keystores
from casemate.crypto import hpke
from casemate.crypto.secret import Secret
from casemate.device.home import Home
from casemate.errors import BusyError, CasemateError, NotAuthorisedError, NotFoundError, UntrustedDataError
from casemate.formats import keystore as document_format
from casemate.keystores.recovery import format_code, parse_code
from support import homes


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return homes.make(tmp_path, monkeypatch)


def with_passphrase(bench, text):
    path = bench.home.path.parent / "passphrase"
    path.write_text(text)
    path.chmod(0o600)
    return keystores.from_environment(bench.home, {**bench.environ, "CASEMATE_PASSPHRASE_FILE": str(path)})


def test_a_new_keystore_opens_with_what_made_it(bench):
    with bench.unlock() as first, bench.unlock() as second:
        assert first.kek.matches(second.kek)
        assert first.opened_by == "keyfile"
        assert hpke.public_of(first.owner_private()) == first.owner_public


def test_keys_never_lie_in_a_file_unwrapped(bench):
    with bench.unlock() as keystore:
        secrets = [keystore.kek.reveal(), keystore.owner_private().reveal()]
    for path in [*bench.home.path.rglob("*"), bench.keyfile]:
        if path.is_file():
            assert not any(secret in path.read_bytes() for secret in secrets)


def test_files_are_private(bench):
    document = bench.home.keystore / "keystore.json"
    assert stat.S_IMODE(document.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.keyfile.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.keyfile.parent.stat().st_mode) == 0o700


def test_a_second_keystore_is_not_made(bench):
    with pytest.raises(BusyError):
        keystores.create(bench.home, bench.sources)


def test_a_home_without_one_says_so(tmp_path):
    home = Home(tmp_path / "other").create()
    with pytest.raises(NotFoundError):
        keystores.unlock(home, keystores.from_environment(home, {}))
    assert not keystores.exists(home.keystore)


def test_a_passphrase_keystore_opens_with_it_and_with_nothing_else(tmp_path, monkeypatch):
    bench = homes.make(tmp_path, monkeypatch)
    other = homes.Bench(Home(tmp_path / "second").create(), tmp_path / "unused" / "x.key")
    keystores.create(other.home, with_passphrase(other, "correct horse\n")).wipe()
    assert keystores.describe(other.home).kind == "passphrase"
    keystores.unlock(other.home, with_passphrase(other, "correct horse")).wipe()
    with pytest.raises(NotAuthorisedError, match="passphrase does not open"):
        keystores.unlock(other.home, with_passphrase(other, "correct mouse"))
    with pytest.raises(NotAuthorisedError, match="needs its passphrase"):
        keystores.unlock(other.home, keystores.from_environment(other.home, {}))
    assert not other.keyfile.exists()
    assert bench.keyfile.exists()


def test_a_person_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setattr("casemate.crypto.kdf.DEFAULT_COST", homes.CHEAP)
    home = Home(tmp_path / "home").create()
    asked = []

    def ask(new):
        asked.append(new)
        return Secret(b"correct horse")

    sources = keystores.from_environment(home, {}, ask=ask)
    keystores.create(home, sources).wipe()
    keystores.unlock(home, sources).wipe()
    for fd in sources.descriptors().values():
        os.close(fd)
    assert asked == [True]
    sources.forget()
    keystores.unlock(home, sources).wipe()
    assert asked == [True, False]


def test_without_terminal_and_passphrase_a_key_file_is_made(tmp_path):
    home = Home(tmp_path / "home").create()
    sources = keystores.from_environment(
        home, {"CASEMATE_KEYFILE": str(tmp_path / "k" / "x.key")}, ask=lambda _new: None
    )
    with keystores.create(home, sources) as keystore:
        assert keystore.opened_by == "keyfile"


def test_a_short_new_passphrase_is_refused(tmp_path):
    other = homes.Bench(Home(tmp_path / "second").create(), tmp_path / "unused" / "x.key")
    with pytest.raises(NotAuthorisedError, match="too short"):
        keystores.create(other.home, with_passphrase(other, "seven77"))
    assert not keystores.exists(other.home.keystore)


@pytest.mark.parametrize("kind", ["pipe", "file", "memory"])
def test_a_passphrase_comes_through_a_descriptor(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("casemate.crypto.kdf.DEFAULT_COST", homes.CHEAP)
    home = Home(tmp_path / "home").create()

    def descriptor():
        if kind == "pipe":
            ours, theirs = os.pipe()
            os.write(theirs, b"correct horse\n")
            os.close(theirs)
            return ours
        fd = os.memfd_create("x") if kind == "memory" else os.open(tmp_path / "p", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"correct horse\n")
        return fd

    for attempt in (keystores.create, keystores.unlock):
        fd = descriptor()
        sources = keystores.from_environment(home, {"CASEMATE_PASSPHRASE_FD": str(fd)})
        with attempt(home, sources) as keystore:
            assert keystore.opened_by == "passphrase"
            expected = "not stored" if kind != "file" else "same owner"
            assert any(expected in reason for reason in keystore.assurance.reasons) or os.geteuid() == 0
        os.close(fd)


def test_the_vault_opens_it_from_descriptors(bench):
    fds = bench.sources.descriptors()
    assert list(fds) == ["keyfile"]
    with keystores.unlock(bench.home, keystores.from_handover(bench.home, fds)) as there, bench.unlock() as here:
        assert there.kek.matches(here.kek)
        assert there.assurance == here.assurance
    os.close(fds["keyfile"])


def test_another_key_file_does_not_open_it(bench, tmp_path, monkeypatch):
    other = homes.make(tmp_path, monkeypatch, "other")
    with pytest.raises(NotAuthorisedError, match="does not open"):
        keystores.unlock(bench.home, other.sources)
    bench.keyfile.unlink()
    with pytest.raises(NotAuthorisedError, match="no key file"):
        bench.unlock()


def test_several_homes_share_one_key_file(tmp_path, monkeypatch):
    first = homes.make(tmp_path, monkeypatch, "first")
    second = homes.Bench(Home(tmp_path / "second").create(), first.keyfile)
    keystores.create(second.home, second.sources).wipe()
    assert len(first.keyfile.read_text().splitlines()) == 2
    first.unlock().wipe()
    second.unlock().wipe()


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", "casemate-key-1 00 00 AA\n", f"casemate-key-1 {0:016} {0:016} " + "1" * 52]
)
def test_a_damaged_key_file_is_refused(bench, text):
    bench.keyfile.write_text(text)
    with pytest.raises(CasemateError):
        bench.unlock()


# --- recovery -------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.data())
def test_a_recovery_code_survives_paper_but_not_a_typing_error(key, data):
    code = format_code(Secret(key))
    assert [len(group) for group in code.split("-")] == [4] * 14
    assert parse_code(code.lower().replace("-", " ").replace("o", "0").replace("b", "8")).reveal() == key
    at = data.draw(st.integers(0, len(code) - 1).filter(lambda n: code[n] != "-"))
    other = data.draw(st.sampled_from([c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" if c != code[at]]))
    with pytest.raises(NotAuthorisedError):
        parse_code(code[:at] + other + code[at + 1 :])


@given(st.text(max_size=80))
def test_any_other_text_is_not_a_code(text):
    with pytest.raises(NotAuthorisedError):
        parse_code(text)


def test_the_recovery_code_opens_what_a_lost_key_file_does_not(bench):
    codes = []
    with bench.unlock() as keystore:
        keystores.add_recovery(keystore, codes.append)
        expected = keystore.kek.reveal()
    bench.keyfile.unlink()
    sources = keystores.from_environment(bench.home, bench.environ, recovery=parse_code(codes[0]))
    with keystores.unlock(bench.home, sources) as keystore:
        assert keystore.kek.reveal() == expected
        assert keystore.opened_by == "recovery"
    assert keystores.describe(bench.home, bench.sources).recovery


def test_a_new_recovery_code_replaces_the_old(bench):
    codes = []
    for _ in range(2):
        with bench.unlock() as keystore:
            keystores.add_recovery(keystore, codes.append)
    old = keystores.from_environment(bench.home, bench.environ, recovery=parse_code(codes[0]))
    with pytest.raises(NotAuthorisedError, match="not of this keystore"):
        keystores.unlock(bench.home, old)


def test_without_a_slot_a_recovery_code_opens_nothing(bench):
    sources = keystores.from_environment(bench.home, bench.environ, recovery=Secret.random())
    with pytest.raises(NotAuthorisedError, match="no recovery code"):
        keystores.unlock(bench.home, sources)


# --- changes by somebody without the key ------------------------------------------------------------------------------


def document_of(bench):
    return bench.home.keystore / "keystore.json"


def test_any_change_to_the_document_is_refused(bench):
    """A flip in every byte: what still opens differs in white space only."""
    raw = document_of(bench).read_bytes()
    parsed = document_format.parse(raw)
    refused = 0
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        document_of(bench).write_bytes(changed)
        try:
            bench.unlock().wipe()
        except CasemateError:
            refused += 1
        else:
            assert document_format.parse(changed) == parsed
    assert refused > 0.75 * len(raw)


def test_the_owner_key_cannot_be_replaced(bench):
    """Whoever could would have the journal sealed to a key of their own."""
    fields = json.loads(document_of(bench).read_bytes())
    private, public = hpke.generate()
    fields["owner_public"] = json.loads(msgspec.json.encode(public))
    document_of(bench).write_text(json.dumps(fields))
    with pytest.raises(UntrustedDataError) as refused:
        bench.unlock()
    assert refused.value.check == "keystore-mac"
    private.wipe()


@given(st.binary(max_size=300))
def test_random_bytes_are_not_a_keystore(data):
    with pytest.raises(UntrustedDataError):
        document_format.parse(data)


# --- rotation ---------------------------------------------------------------------------------------------------------


def test_rotation_keeps_the_owner_and_changes_everything_else(bench):
    with bench.unlock() as before:
        owner = before.owner_private().reveal()
        with keystores.begin_rotation(before, bench.sources.keyfile_keystore(), print) as during:
            assert during.key_for(before.key_id).matches(before.kek)
            assert not during.kek.matches(before.kek)
            assert during.owner_private().reveal() == owner
            with keystores.finish_rotation(during) as after:
                assert after.key_for(before.key_id) is None
    with bench.unlock() as again:
        assert again.previous is None
        assert again.owner_private().reveal() == owner


def test_an_unfinished_rotation_opens_both_keys(bench):
    with bench.unlock() as before:
        keystores.begin_rotation(before, bench.sources.keyfile_keystore(), print).wipe()
        old = before.key_id
    assert keystores.describe(bench.home, bench.sources).rotating
    with bench.unlock() as keystore:
        assert keystore.key_for(old) is not None
        with pytest.raises(CasemateError, match="unfinished"):
            keystores.begin_rotation(keystore, bench.sources.keyfile_keystore(), print)


def test_rotation_to_a_passphrase_leaves_no_other_way_in(bench):
    with bench.unlock() as before:
        during = keystores.begin_rotation(before, with_passphrase(bench, "correct horse").passphrase_keystore(), print)
        keystores.finish_rotation(during).wipe()
    assert keystores.describe(bench.home, bench.sources).kind == "passphrase"
    with pytest.raises(NotAuthorisedError):
        bench.unlock()
    keystores.unlock(bench.home, with_passphrase(bench, "correct horse")).wipe()


def test_rotation_replaces_the_recovery_code(bench):
    codes = []
    with bench.unlock() as keystore, keystores.add_recovery(keystore, codes.append) as keystore:
        keystores.begin_rotation(keystore, bench.sources.keyfile_keystore(), codes.append).wipe()
    for code, works in ((codes[0], False), (codes[1], True)):
        sources = keystores.from_environment(bench.home, bench.environ, recovery=parse_code(code))
        if works:
            keystores.unlock(bench.home, sources).wipe()
        else:
            with pytest.raises(NotAuthorisedError):
                keystores.unlock(bench.home, sources)


# --- two at once ------------------------------------------------------------------------------------------------------


def test_a_change_based_on_an_older_keystore_is_refused(bench):
    """Otherwise a recovery code made during a rotation would bring the old KEK back, and the models would be lost."""
    stale = bench.unlock()
    with bench.unlock() as keystore, keystores.begin_rotation(keystore, bench.sources.keyfile_keystore(), print) as new:
        keystores.finish_rotation(new).wipe()
    for change in (
        lambda: keystores.add_recovery(stale, print),
        lambda: keystores.begin_rotation(stale, bench.sources.keyfile_keystore(), print),
        lambda: keystores.finish_rotation(stale),
    ):
        with pytest.raises(BusyError, match="meanwhile"):
            change()
    with bench.unlock() as keystore:
        assert keystore.key_id != stale.key_id


def test_two_that_make_a_keystore_at_once_make_one(bench, monkeypatch):
    monkeypatch.setattr(keystores, "exists", lambda _directory: False)
    before = document_of(bench).read_bytes()
    with pytest.raises(BusyError):
        keystores.create(bench.home, bench.sources)
    assert document_of(bench).read_bytes() == before
