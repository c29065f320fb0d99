from __future__ import annotations

import pytest

from casemate.crypto.secret import Secret
from casemate.crypto.signing import verify
from casemate.errors import NotAuthorisedError, NotFoundError, UntrustedDataError
from casemate.release.keys import KeyStore, Passphrases
from support.release import CHEAP, keystore


def test_each_kind_of_key_comes_back(tmp_path):
    keys = keystore(tmp_path)
    public = keys.make_signing("models-1")
    authority = keys.make_authority("authority-1")
    secret = keys.make_secret("content-1").reveal()
    again = keystore(tmp_path)
    assert verify(public, again.signing("models-1").sign(b"x"), b"x")
    assert again.authority("authority-1").public.pem() == authority.public.pem()
    assert again.secret("content-1").reveal() == secret


def test_a_directory_gives_each_key_its_own_passphrase(tmp_path):
    folder = tmp_path / "passphrases"
    folder.mkdir()
    (folder / "root-1").write_text("the first passphrase\n")
    (folder / "root-2").write_text("another passphrase\n")
    environ = {"CASEMATE_RELEASE_PASSPHRASE_FILE": str(folder)}
    keys = KeyStore(tmp_path / "keys", Passphrases(environ), environ={}, cost=CHEAP)
    keys.make_signing("root-1")
    keys.make_signing("root-2")
    (folder / "root-2").write_text("the first passphrase\n")
    again = KeyStore(tmp_path / "keys", Passphrases(environ), environ={}, cost=CHEAP)
    again.signing("root-1")
    with pytest.raises(NotAuthorisedError, match="does not open the key root-2"):
        again.signing("root-2")
    with pytest.raises(NotFoundError):
        again.make_signing("root-3")


def test_a_short_passphrase_makes_no_key(tmp_path):
    keys = KeyStore(tmp_path, Passphrases({}, lambda name, new: Secret(b"short")), environ={}, cost=CHEAP)
    with pytest.raises(NotAuthorisedError, match="too short"):
        keys.make_signing("root-1")
    assert not list(tmp_path.iterdir())


def test_nobody_there_means_a_file_beside_the_keys_and_it_is_said(tmp_path):
    beside = tmp_path / "keys" / "passphrase"
    passphrases = Passphrases({}, None, beside)
    keys = KeyStore(tmp_path / "keys", passphrases, environ={}, cost=CHEAP)
    public = keys.make_signing("root-1")
    assert passphrases.beside == beside
    assert beside.stat().st_mode & 0o777 == 0o600
    again = KeyStore(tmp_path / "keys", Passphrases({}, None, beside), environ={}, cost=CHEAP)
    assert verify(public, again.signing("root-1").sign(b"x"), b"x")
    given = Passphrases({"CASEMATE_RELEASE_PASSPHRASE_FILE": str(beside)}, None, tmp_path / "other")
    assert given.beside is None


def test_nobody_and_no_place_is_a_refusal(tmp_path):
    keys = KeyStore(tmp_path, Passphrases({}, None), environ={}, cost=CHEAP)
    with pytest.raises(NotAuthorisedError, match="needs its passphrase"):
        keys.make_signing("root-1")


@pytest.mark.parametrize("change", [(b'"kind":"ed25519"', b'"kind":"aes-256"'), (b'"schema"', b'"shema"'), (b"{", b"")])
def test_a_changed_key_file_is_refused(tmp_path, change):
    keystore(tmp_path).make_signing("root-1")
    path = tmp_path / "keys" / "root-1.json"
    path.write_bytes(path.read_bytes().replace(*change, 1))
    with pytest.raises(UntrustedDataError):
        keystore(tmp_path).signing("root-1")


def test_the_public_half_is_bound_to_the_sealed_one(tmp_path):
    keys = keystore(tmp_path)
    keys.make_signing("root-1")
    keys.make_signing("root-2")
    one, two = (tmp_path / "keys" / f"root-{number}.json" for number in (1, 2))
    public = two.read_bytes().partition(b'"public":"')[2].partition(b'"')[0]
    own = one.read_bytes().partition(b'"public":"')[2].partition(b'"')[0]
    one.write_bytes(one.read_bytes().replace(own, public))
    with pytest.raises(NotAuthorisedError):
        keystore(tmp_path).signing("root-1")
