"""A thief opens a model with a keystore of their own, plants one, guesses a passphrase, or lowers the cost of a guess.

The control opens the same model with the right keystore; each attack then differs in one thing.
"""

from __future__ import annotations

import json
import shutil

import msgspec
import pytest

from casemate import keystores
from casemate.clock import SystemClock
from casemate.crypto import kdf
from casemate.crypto.secret import Secret
from casemate.device import containers, models, vault
from casemate.device.channel import pair
from casemate.device.home import Home
from casemate.errors import NotAuthorisedError, UntrustedDataError
from casemate.formats import container as fmt
from casemate.formats import ipc
from support import homes


@pytest.fixture
def victim(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "inspect_file", homes.inspect_here)
    bench = homes.make(tmp_path, monkeypatch, "victim")
    bench.add()
    return bench


@pytest.fixture
def thief(tmp_path, monkeypatch, victim):
    return homes.make(tmp_path, monkeypatch, "thief")


def test_control_the_right_keystore_opens_it(victim):
    assert victim.verify() == ""


def test_a_container_in_another_home_is_refused_and_journaled(victim, thief):
    shutil.copy(homes.container_of(victim), homes.container_of(thief))
    assert thief.verify() == "wrong-keystore"
    assert "model_refused" in thief.said()
    ours, theirs = pair()
    with ours, theirs, thief.unlock() as keystore:
        made = vault.Vault(thief.home, keystore, lambda *events: thief.events.extend(events), SystemClock(), {})
        reply = made.load(ipc.Load("tiny", ""), ours, lambda: None)
    assert (reply.exit_code, reply.check) == (10, "wrong-keystore")


def test_a_slot_renamed_to_the_thiefs_key_does_not_open(victim, thief):
    """The name of the key is only a hint: the wrapping itself is what refuses."""
    data = homes.container_of(victim).read_bytes()
    with victim.unlock() as theirs, thief.unlock() as own:
        forged = data.replace(theirs.key_id.encode(), own.key_id.encode())
    assert forged != data
    homes.container_of(thief).write_bytes(forged)
    assert thief.verify() == "container-slot"


def test_a_planted_keystore_does_not_open_the_models(victim, thief):
    """Keystore, key file and identity of the thief in the victim's home: everything but the right key."""
    shutil.copy(thief.home.keystore / "keystore.json", victim.home.keystore / "keystore.json")
    with pytest.raises(NotAuthorisedError):
        victim.unlock()
    shutil.copy(thief.home.path / "home.json", victim.home.path / "home.json")
    planted = homes.Bench(Home(victim.home.path), thief.keyfile)
    assert planted.verify() == "wrong-keystore"


def test_a_wrapped_key_moved_to_another_file_does_not_open(victim):
    """The wrapping is bound to the header of its own file."""
    victim.add(name="second")
    parsed = {}
    for name in ("tiny", "second"):
        data = homes.container_of(victim, name).read_bytes()
        parsed[name] = fmt.parse(data[: fmt.HEAD_BYTES], len(data))
    swapped = msgspec.structs.replace(parsed["tiny"], slots=parsed["second"].slots)
    with victim.unlock() as keystore, pytest.raises(UntrustedDataError) as refused:
        containers.unwrap_for_home(swapped, keystore)
    assert refused.value.check == "container-slot"


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A home whose keystore has a passphrase, and a way to try one."""
    monkeypatch.setattr(kdf, "DEFAULT_COST", homes.CHEAP)
    home = Home(tmp_path / "locked").create()

    def attempt(guess):
        return keystores.unlock(home, keystores.from_environment(home, {}, ask=lambda _new: Secret(guess)))

    asked = keystores.from_environment(home, {}, ask=lambda _new: Secret(b"correct horse battery"))
    keystores.create(home, asked).wipe()
    return home, attempt


def test_guesses_do_not_open_it_and_the_right_one_does(locked):
    _, attempt = locked
    attempt(b"correct horse battery").wipe()
    for guess in (b"x", b"correct horse batterz", b"Correct horse battery", b"correct horse battery ", b"\0" * 64):
        with pytest.raises(NotAuthorisedError):
            attempt(guess)


def test_the_cost_of_a_guess_cannot_be_lowered_by_editing_the_file(locked):
    """Two bounds: the parser refuses silly costs, and the wrapped key is bound to the cost it was made with."""
    home, attempt = locked
    path = home.keystore / "keystore.json"
    fields = json.loads(path.read_bytes())
    for cost, kind in (
        ({"memory_kib": 8, "passes": 1, "lanes": 1}, UntrustedDataError),
        ({"memory_kib": 1 << 30, "passes": 1, "lanes": 1}, UntrustedDataError),
        ({"memory_kib": 8192, "passes": 2, "lanes": 1}, NotAuthorisedError),
    ):
        fields["slots"][0]["cost"] = cost
        path.write_text(json.dumps(fields))
        with pytest.raises(kind):
            attempt(b"correct horse battery")


def test_a_salt_cannot_be_replaced(locked):
    home, attempt = locked
    path = home.keystore / "keystore.json"
    fields = json.loads(path.read_bytes())
    fields["slots"][0]["salt"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    path.write_text(json.dumps(fields))
    with pytest.raises(NotAuthorisedError):
        attempt(b"correct horse battery")


def test_what_is_made_by_default_costs_a_guess_128_mib():
    assert kdf.DEFAULT_COST.memory_kib == 128 * 1024
