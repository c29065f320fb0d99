"""The bytes of a log: notes, keys, checkpoints, tiles, bundles and proof files; each parser only ever refuses."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto.secret import Secret
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import tlog
from casemate.formats.tlog import note
from casemate.formats.tlog.checkpoint import parse_text
from casemate.formats.tlog.tiles import index_path

KEY = SigningKey(Secret(bytes(range(32))))
ORIGIN = "casemate/test"
VERIFIER = tlog.VerifierKey(ORIGIN, KEY.public)
ROOT = tlog.leaf_hash(b"x")
SIGNED = tlog.Checkpoint(ORIGIN, 7, ROOT).sign(KEY)

# A published key and note of Go's x/mod/sumdb/note, made by other code.
PUBLISHED_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PUBLISHED_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PUBLISHED_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
PUBLISHED_NOTE = f"{PUBLISHED_TEXT}\n\u2014 PeterNeumann {PUBLISHED_SIGNATURE}\n".encode()


def check_of(call, *args, **kwargs):
    with pytest.raises(UntrustedDataError) as refused:
        call(*args, **kwargs)
    return refused.value.check


# --- notes and keys ---------------------------------------------------------------------------------------------------


def test_a_published_note_verifies():
    key = tlog.VerifierKey.parse(PUBLISHED_KEY)
    assert str(key) == PUBLISHED_KEY
    assert note.open_note(PUBLISHED_NOTE, [key]) == PUBLISHED_TEXT


def test_a_published_note_with_one_letter_changed_does_not():
    key = tlog.VerifierKey.parse(PUBLISHED_KEY)
    assert check_of(note.open_note, PUBLISHED_NOTE.replace(b"answer", b"Answer"), [key]) == "note-signature"


def test_signatures_stand_after_the_last_blank_line():
    text = "a\n\nb\n\nc\n"
    assert note.open_note(note.sign(text, ORIGIN, KEY), [VERIFIER]) == text


def test_unknown_signatures_are_ignored_a_bad_known_one_refuses_the_note():
    other = SigningKey.generate()
    stranger = note.sign("t\n", "stranger", other).decode().split("\n\n")[1]
    mine = note.sign("t\n", ORIGIN, KEY).decode()
    assert note.open_note((mine + stranger).encode(), [VERIFIER]) == "t\n"
    bad = mine.split("\n\n")[1]
    body = base64.b64decode(bad.split(" ")[2])
    forged = f"\u2014 {ORIGIN} {base64.b64encode(body[:-1] + bytes([body[-1] ^ 1])).decode()}\n"
    assert check_of(note.open_note, (mine + forged).encode(), [VERIFIER]) == "note-signature"
    assert check_of(note.open_note, mine.encode(), [tlog.VerifierKey("stranger", other.public)]) == "note-signature"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"text\n\n- name AAAAAAAAAAA=\n",
        "text\n\n\u2014 name\n".encode(),
        "text\n\n\u2014 name ====\n".encode(),
        "text\n\n\u2014 na+me AAAAAAAAAAA=\n".encode(),
        "text\n\n\u2014 name AAAAAA==\n".encode(),
        "text\n\n\u2014 name AAAAAAAAAAA=".encode(),
        "te\x00xt\n\n\u2014 name AAAAAAAAAAA=\n".encode(),
        "te\rxt\n\n\u2014 name AAAAAAAAAAA=\n".encode(),
        b"\xff\xfe\n\n",
        b"x" * 70_000,
        ("text\n\n" + "\u2014 name AAAAAAAAAAA=\n" * 65).encode(),
    ],
)
def test_malformed_notes(data):
    assert check_of(note.open_note, data, [VERIFIER]) == "note-format"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000",
        "name+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        PUBLISHED_KEY[:-1],
        PUBLISHED_KEY.replace("+AR", "+BB"),
        PUBLISHED_KEY.replace("PeterNeumann", "Peter Neumann"),
    ],
)
def test_malformed_keys(text):
    assert check_of(tlog.VerifierKey.parse, text) == "vkey"


@given(st.binary(max_size=300))
def test_note_parser_only_refuses(data):
    try:
        note.open_note(data, [VERIFIER])
    except UntrustedDataError:
        pass


@given(st.text(max_size=100))
def test_vkey_parser_only_refuses(text):
    try:
        tlog.VerifierKey.parse(text)
    except UntrustedDataError:
        pass


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back():
    assert tlog.open_checkpoint(SIGNED, [VERIFIER]) == tlog.Checkpoint(ORIGIN, 7, ROOT)
    assert SIGNED.decode().split("\n")[:2] == [ORIGIN, "7"]


def test_a_checkpoint_of_another_log_or_key_is_refused():
    assert check_of(tlog.open_checkpoint, SIGNED, [VERIFIER], origin="casemate/other") == "checkpoint-origin"
    other = tlog.VerifierKey(ORIGIN, SigningKey.generate().public)
    assert check_of(tlog.open_checkpoint, SIGNED, [other]) == "checkpoint-signature"
    assert check_of(tlog.open_checkpoint, SIGNED[:-30], [VERIFIER]) == "checkpoint-format"


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(at, change):
    bad = bytearray(SIGNED)
    bad[at] ^= change
    assert check_of(tlog.open_checkpoint, bytes(bad), [VERIFIER]).startswith("checkpoint")


@pytest.mark.parametrize(
    "text",
    [
        "origin\n",
        "origin\n01\nAAAA\n",
        "\n1\nAAAA\n",
        f"origin\n-1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"origin\n1\n{base64.b64encode(bytes(31)).decode()}\n",
        f"origin\n0\n{base64.b64encode(bytes(32)).decode()}\n",
        f"origin\n99999999999999999999\n{base64.b64encode(bytes(32)).decode()}\n",
        "origin\n1\n!!!!\n",
    ],
)
def test_malformed_checkpoints(text):
    assert check_of(parse_text, text) == "checkpoint-format"


def test_extension_lines_are_ignored():
    text = tlog.Checkpoint(ORIGIN, 7, ROOT).text() + "extension\n"
    assert tlog.open_checkpoint(note.sign(text, ORIGIN, KEY), [VERIFIER]).size == 7


# --- tiles and bundles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "path"),
    [
        (0, "000"),
        (5, "005"),
        (999, "999"),
        (1000, "x001/000"),
        (1234067, "x001/x234/067"),
        (10**9, "x001/x000/x000/000"),
    ],
)
def test_paths_group_by_three_digits(index, path):
    assert index_path(index) == path
    assert tlog.tile_path(0, index) == f"tile/0/{path}"
    assert tlog.entries_path(index, 112) == f"tile/entries/{path}.p/112"


def test_partial_tiles_of_70000():
    assert list(tlog.partial_tiles(70_000)) == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert list(tlog.partial_tiles(0)) == []
    assert list(tlog.partial_tiles(256)) == [(1, 0, 1)]


@given(st.lists(st.binary(max_size=300), max_size=256))
def test_bundles_come_back(entries):
    assert tlog.parse_bundle(tlog.pack_bundle(entries)) == entries


@given(st.binary(max_size=600))
def test_bundle_parser_only_refuses(data):
    try:
        assert tlog.pack_bundle(tlog.parse_bundle(data)) == data
    except UntrustedDataError:
        pass


def test_bundle_limits():
    assert tlog.parse_bundle(tlog.pack_bundle([bytes(65_535)])) == [bytes(65_535)]
    with pytest.raises(ValueError, match="over the limit"):
        tlog.pack_bundle([bytes(65_536)])
    assert check_of(tlog.parse_bundle, tlog.pack_bundle([b""] * 257)) == "bundle-format"
    assert check_of(tlog.parse_bundle, b"\x00\x05abc") == "bundle-format"
    assert check_of(tlog.parse_bundle, b"\x00") == "bundle-format"


def test_tiles_come_back():
    hashes = [tlog.leaf_hash(bytes([n])) for n in range(200)]
    data = tlog.pack_tile(hashes)
    assert tlog.parse_tile(data, 200) == hashes
    assert tlog.parse_tile(data, 100) == hashes[:100]
    for bad, width in ((data, 201), (data[:-1], 100), (data * 2, 200), (b"", 1)):
        assert check_of(tlog.parse_tile, bad, width) == "tile-size"


# --- proof files ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**62), st.lists(st.binary(min_size=32, max_size=32), max_size=63), st.binary(max_size=40))
def test_proof_files_come_back(index, parts, extra):
    made = tlog.ProofFile(index, tuple(parts), SIGNED, extra)
    assert tlog.parse_proof(made.pack()) == made


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"c2sp.org/tlog-proof@v1\n",
        b"c2sp.org/tlog-proof@v2\nindex 0\n\nx",
        b"c2sp.org/tlog-proof@v1\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex -1\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex 01\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex 1\nAAAA\n\nx",
        b"c2sp.org/tlog-proof@v1\nindex 1\n####\n\nx",
        b"c2sp.org/tlog-proof@v1\nextra ##\nindex 1\n\nx",
        b"c2sp.org/tlog-proof@v1\nextra AA==\n\nx",
        tlog.ProofFile(0, (bytes(32),) * 64, SIGNED).pack(),
        b"x" * 200_000,
    ],
)
def test_malformed_proof_files(data):
    assert check_of(tlog.parse_proof, data) == "proof-format"


@given(st.binary(max_size=200))
def test_proof_parser_only_refuses(data):
    try:
        tlog.parse_proof(b"c2sp.org/tlog-proof@v1\n" + data)
    except UntrustedDataError:
        pass


def test_a_proof_file_proves_one_entry_and_no_other():
    entries = [f"e{n}".encode() for n in range(9)]
    hashes = [tlog.leaf_hash(entry) for entry in entries]
    signed = tlog.Checkpoint(ORIGIN, 9, tlog.root_of(hashes)).sign(KEY)
    path = tlog.prove_inclusion(4, 9, lambda first, count: tlog.root_of(hashes[first : first + count]))
    proof = tlog.parse_proof(tlog.ProofFile(4, tuple(path), signed).pack())
    assert proof.verify(entries[4], [VERIFIER]).size == 9
    assert check_of(proof.verify, entries[5], [VERIFIER]) == "inclusion-proof"
