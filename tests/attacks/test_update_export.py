"""A tar on a stick: written by whoever held the stick last. It wants to write outside, or to be read for ever.

The control unpacks each with Python's tar library as it was meant for trusted archives, and finds the damage done.
"""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from casemate.device.update.imports import TarSource
from casemate.errors import UntrustedDataError
from casemate.formats import archive

TRUSTING = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
GOOD = "chunks/ab/" + "ab" * 32


def member(name=GOOD, data=b"x", size=None):
    stored = len(data) if size is None else size
    return archive.member_block(name, stored, 0) + data + bytes(archive.padding(len(data)))


def plain(name, kind=tarfile.REGTYPE, link="", data=b"owned", **attributes):
    """A member as any tar program writes it."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    for key, value in attributes.items():
        setattr(info, key, value)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data) if info.size else None)
    return buffer.getvalue()


def refused(tmp_path, data):
    path = tmp_path / "stick.tar"
    path.write_bytes(data)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UntrustedDataError) as caught:
        TarSource(path)
    assert sorted(os.listdir(tmp_path)) == before
    assert caught.value.exit_code == 10
    return caught.value.check


def test_control_a_tar_library_writes_where_it_is_told(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "stick.tar").write_bytes(plain("../escaped"))
    with tarfile.open(tmp_path / "stick.tar") as tar:
        tar.extractall(inside, **TRUSTING)
    assert (tmp_path / "escaped").read_bytes() == b"owned"


def test_control_a_tar_library_makes_the_link_and_follows_it(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "victim").write_bytes(b"mine")
    link = plain(GOOD, tarfile.SYMTYPE, str(tmp_path / "victim"))
    (tmp_path / "stick.tar").write_bytes(link)
    with tarfile.open(tmp_path / "stick.tar") as tar:
        tar.extractall(inside, **TRUSTING)
    assert (inside / GOOD).read_bytes() == b"mine"


def test_control_a_good_member_is_read(tmp_path):
    path = tmp_path / "stick.tar"
    path.write_bytes(member() + archive.END)
    with TarSource(path) as source:
        assert source.get(GOOD, 10) == b"x"


PATHS = [
    "../escaped", "metadata/../../escaped", "/etc/cron.d/x", "chunks/ab/../../../x", "metadata/.hidden",
    "targets/" + "a" * 64 + ".x/../../../y", "log/log-1/checkpoint", "metadata/x", "METADATA/timestamp.json",
    "grants/" + "a" * 32 + "/../x", "chunks/zz/" + "ab" * 32, "metadata//timestamp.json", "./metadata/timestamp.json",
    "repository.json", "keys/root-1.json",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_no_repository_has_is_refused(tmp_path, path):
    assert refused(tmp_path, member(path) + archive.END) == "import-path"


@pytest.mark.parametrize(
    "data",
    [
        plain(GOOD, tarfile.SYMTYPE, "/etc/shadow"),
        plain(GOOD, tarfile.LNKTYPE, "/etc/shadow"),
        plain(GOOD, tarfile.CHRTYPE, devmajor=1, devminor=3),
        plain(GOOD, tarfile.BLKTYPE, devmajor=8),
        plain(GOOD, tarfile.FIFOTYPE),
        plain(GOOD, tarfile.DIRTYPE),
        plain(GOOD, mode=0o4755),
        plain(GOOD, uid=1000),
        plain(GOOD, mtime=5),
        plain(GOOD, tarfile.GNUTYPE_LONGNAME),
        plain(GOOD, tarfile.XHDTYPE),
        plain(GOOD, tarfile.GNUTYPE_SPARSE),
    ],
    ids=["symlink", "hardlink", "char", "block", "fifo", "dir", "setuid", "owner", "time", "longname", "pax", "sparse"],
)
def test_anything_but_a_plain_file_is_refused(tmp_path, data):
    assert refused(tmp_path, data) == "import-header"


def test_one_path_twice_is_refused(tmp_path):
    assert refused(tmp_path, member() + member(data=b"y") + archive.END) == "import-duplicate"


@pytest.mark.parametrize(
    ("name", "size"),
    [("metadata/timestamp.json", 5_000_001), (GOOD, 6 << 20), (f"grants/{'a' * 32}/{'b' * 32}.json", 4097),
     (f"targets/model/x/1/{'a' * 64}.manifest.json", 1_000_001), (GOOD, 1 << 39)],
)  # fmt: skip
def test_a_file_larger_than_its_kind_is_refused_unread(tmp_path, name, size):
    assert refused(tmp_path, member(name, b"", size=size) + archive.END) == "import-size"


def test_a_size_beyond_the_end_is_refused(tmp_path):
    assert refused(tmp_path, member(data=b"x", size=5000)) == "import-truncated"


@pytest.mark.parametrize("cut", [1, 511, 513, 1024, 1500])
def test_a_tar_cut_short_is_refused(tmp_path, cut):
    whole = member() + archive.END
    assert refused(tmp_path, whole[:-cut]) in {"import-truncated", "import-header"}


@pytest.mark.parametrize("more", [b"\0" * 512, b"x", member()])
def test_something_after_the_end_is_refused(tmp_path, more):
    assert refused(tmp_path, member() + archive.END + more) == "import-header"


def test_something_between_the_files_is_refused(tmp_path):
    raw = bytearray(member() + archive.END)
    raw[600] = 1
    assert refused(tmp_path, bytes(raw)) == "import-header"


def test_a_pipe_a_device_or_a_directory_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(UntrustedDataError):
            TarSource(path)
