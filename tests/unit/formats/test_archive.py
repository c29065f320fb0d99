"""The bytes of a backup: what is written any tar reads, and nothing but what is written is read."""

from __future__ import annotations

import io
import tarfile

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import archive
from casemate.formats.archive import Header, Manifest, Row

HEADER = Header(1, "00112233445566aa", 1, "0.1.0", 1_700_000_000, "recovery", 2, 100)
part = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}", fullmatch=True)
paths = st.one_of(
    st.just("home.json"),
    st.just("keystore/keystore.json"),
    part.map("models/{}.cmodel".format),
    part.map("apps/{}.toml".format),
    st.lists(part, min_size=1, max_size=5).map(lambda parts: "journal/" + "/".join(parts)),
)
sizes = st.one_of(st.integers(0, 10_000), st.sampled_from([8**11 - 1, 8**11, archive.FILE_LIMIT]))


@given(paths, sizes, st.integers(0, 1 << 33))
def test_a_block_comes_back_and_tar_agrees(path, size, created):
    block = archive.member_block(path, size, created)
    assert len(block) == archive.BLOCK
    assert archive.parse_block(block, created) == archive.Member(path, size)
    theirs = tarfile.TarInfo.frombuf(block, "ascii", "strict")
    assert (theirs.name, theirs.size, theirs.mtime, theirs.isreg(), theirs.mode) == (path, size, created, True, 0o600)


@given(st.binary(min_size=archive.BLOCK, max_size=archive.BLOCK))
def test_random_blocks_are_refused(block):
    if block != bytes(archive.BLOCK):
        with pytest.raises(UntrustedDataError) as caught:
            archive.parse_block(block)
        assert caught.value.check == "archive-header"


@given(st.integers(0, archive.BLOCK - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_block_is_seen(at, change):
    block = bytearray(archive.member_block("models/saffron.cmodel", 12345, HEADER.created))
    block[at] ^= change
    with pytest.raises(UntrustedDataError):
        archive.parse_block(bytes(block), HEADER.created)


@pytest.mark.parametrize(
    "change",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/shadow"},
        {"type": tarfile.LNKTYPE, "linkname": "home.json"},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.XHDTYPE},
        {"type": tarfile.GNUTYPE_LONGNAME},
        {"type": tarfile.GNUTYPE_SPARSE},
        {"mode": 0o4755},
        {"uid": 1},
        {"uname": "root"},
    ],
)
def test_what_tar_can_say_and_a_backup_never_does_is_refused(change):
    info = tarfile.TarInfo("home.json")
    info.size, info.mtime, info.mode = 10, HEADER.created, 0o600
    for name, value in change.items():
        setattr(info, name, value)
    block = info.tobuf(tarfile.USTAR_FORMAT)[: archive.BLOCK]
    assert tarfile.TarInfo.frombuf(block, "ascii", "strict").name.rstrip("/") == "home.json"  # control: tar takes it
    with pytest.raises(UntrustedDataError):
        archive.parse_block(block)


@given(paths)
def test_every_path_of_a_home_is_allowed(path):
    assert archive.is_home_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/home.json",
        "../home.json",
        "models/../home.json",
        "models/x/../../y.cmodel",
        "models/.cmodel",
        "models/.hidden.cmodel",
        "models/x.gguf",
        "models/a/b.cmodel",
        "run/agent.sock",
        "run/default-app.key",
        "keystore/other.json",
        "apps/x.sh",
        "journal/",
        "journal//x",
        "journal/..",
        "journal/x/",
        "home.json\n",
        "home.json\0",
        "models/x.cmodel/",
        "models/caf\u00e9.cmodel",
        "journal/" + "a/" * 20 + "b",
        "journal/" + "a" * 101,
        "manifest.json",
        "casemate-backup.json",
    ],
)
def test_every_other_path_is_refused(path):
    assert not archive.is_home_path(path)


def test_documents_come_back():
    manifest = Manifest(1, (Row("home.json", 3, "0" * 64),))
    for document in (HEADER, manifest):
        assert archive.parse(archive.encode(document), type(document)) == document


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"home": "../../etc"},
        {"files": 0},
        {"files": archive.MEMBER_LIMIT + 1},
        {"bytes": -1},
        {"keys": "all"},
        {"version": "x" * 100},
        {"extra": 1},
    ],
)
def test_a_header_out_of_bounds_is_refused(change):
    fields = {**msgspec.to_builtins(HEADER), **change}
    with pytest.raises(UntrustedDataError) as caught:
        archive.parse(msgspec.json.encode(fields), Header)
    assert caught.value.check == "archive-format"


@given(st.binary(max_size=300))
def test_random_documents_are_refused(data):
    for kind in (Header, Manifest):
        with pytest.raises(UntrustedDataError):
            archive.parse(data, kind)


@given(st.lists(st.tuples(paths, st.integers(0, 2000)), max_size=5, unique_by=lambda row: row[0]))
def test_the_size_of_an_archive_is_known_beforehand(members):
    whole = io.BytesIO()
    for path, size in members:
        whole.write(archive.member_block(path, size, 0) + bytes(size) + bytes(archive.padding(size)))
    whole.write(archive.END)
    assert archive.archive_size(iter(members)) == whole.tell()
    whole.seek(0)
    with tarfile.open(fileobj=whole) as theirs:
        assert [(item.name, item.size) for item in theirs] == members
