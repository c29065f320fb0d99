"""What a generation brings besides models: judged before anything serves it, and put together from what came."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.device.update import kinds, unpack
from casemate.device.update.generation import Generation, Item
from casemate.errors import HostError, UntrustedDataError
from casemate.formats import ipc
from casemate.formats.manifest import Base, File, Plan, SealedPart, Step
from casemate.guard.bundle import BYTE_LIMIT, shipped_bundle
from support.generations import digest

GOOD = b"schema = 1\nmax_input_tokens = 50\n"


def with_policy(root: Path, files: dict[str, bytes]) -> Generation:
    rows = []
    for path, body in sorted(files.items()):
        (root / "policy" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "policy" / path).write_bytes(body)
        rows.append(File(path, len(body), hashlib.sha256(body).hexdigest()))
    item = Item("policy", "kitchen", "1.0", 1, "a" * 32, digest("m"), tuple(rows))
    return Generation(1, 1, "stable", 1, digest("set"), (item,))


def test_a_policy_is_read_by_app_with_the_guards_data(tmp_path: Path) -> None:
    guard = shipped_bundle()
    made = with_policy(tmp_path, {"kitchen.toml": GOOD, "guard.json": guard, "NOTICE.txt": b"by us"})
    assert kinds.read_policy(made, tmp_path) == kinds.Policy({"kitchen": GOOD.decode()}, guard)
    assert kinds.read_policy(None, tmp_path) == kinds.Policy()


@pytest.mark.parametrize(
    ("files", "check"),
    [
        ({"kitchen.toml": b"schema = 1\nno_such_key = 2\n"}, "policy-form"),
        ({"kitchen.toml": b"\xff\xfe"}, "policy-form"),
        ({"Kitchen!.toml": GOOD}, "policy-form"),
        ({"kitchen.toml": GOOD, "old/kitchen.toml": GOOD}, "policy-form"),
        ({f"app{number}.toml": b"#" + b"x" * 60_000 for number in range(36)}, "policy-form"),
        ({"guard.json": b"{}"}, "guard-bundle"),
        ({"guard.json": b'{"schema":1,"lexicons":{},"abuse":"\xff","model":{}}'}, "guard-bundle"),
    ],
)
def test_a_signed_policy_that_is_none_is_refused(tmp_path: Path, files: dict[str, bytes], check: str) -> None:
    with pytest.raises(UntrustedDataError) as caught:
        kinds.read_policy(with_policy(tmp_path, files), tmp_path)
    assert caught.value.check == check


def test_the_largest_policy_that_is_taken_fits_the_frame_it_travels_in() -> None:
    apps = {f"app{number}": '"' * (kinds.APPS_LIMIT // kinds.APP_LIMIT) for number in range(kinds.APP_LIMIT)}
    guard = bytes(BYTE_LIMIT)
    args = {"apps": apps, "guard": base64.b64encode(guard).decode()}
    for message in (ipc.TakePolicy(apps, guard), ipc.Ask("policy", args)):
        assert len(ipc.encode(message)) <= ipc.FRAME_LIMIT


def test_a_release_for_another_runtime_is_refused() -> None:
    item = Item("model", "m", "1", 1, "a" * 32, digest("m"), (File("m.gguf", 1, digest("x")),), container="m.g1")
    kinds.require_runtime(item)
    kinds.require_runtime(msgspec.structs.replace(item, runtime="llama.cpp"))
    with pytest.raises(HostError, match="needs the runtime"):
        kinds.require_runtime(msgspec.structs.replace(item, runtime="other"))
    assert kinds.model_file(item) == "m.gguf"
    two = (File("a.gguf", 1, digest("x")), File("b.gguf", 1, digest("y")))
    with pytest.raises(UntrustedDataError):
        kinds.model_file(msgspec.structs.replace(item, files=two))


def part(rows: dict[str, tuple[Step, bytes]]) -> SealedPart:
    files = tuple(File(path, len(body), hashlib.sha256(body).hexdigest()) for path, (_, body) in sorted(rows.items()))
    steps = tuple(step for _, (step, _) in sorted(rows.items()))
    return SealedPart(1, "a" * 32, "app", "shop", "1", 1, files, (Plan("b" * 32, steps),))


def plain(data: bytes) -> int:
    fd = os.memfd_create("payload")
    os.write(fd, data)
    return fd


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_files_are_cut_out_of_the_payload_in_order(bodies: list[bytes]) -> None:
    rows = {f"f{index}": (Step(f"f{index}", "raw", len(body)), body) for index, body in enumerate(bodies)}
    fd = plain(b"".join(bodies))
    try:
        made = unpack.files(part(rows), "b" * 32, fd, None)
        assert {path: b"".join(pieces) for path, pieces in made.items()} == {p: body for p, (_, body) in rows.items()}
    finally:
        os.close(fd)


def test_an_unchanged_file_comes_from_the_base_and_a_changed_base_is_seen(tmp_path: Path) -> None:
    body = b"the same\n"
    base = Base("same", len(body), hashlib.sha256(body).hexdigest())
    rows = {"same": (Step("same", "same", 0, base), body)}
    fd = plain(b"")
    try:
        with pytest.raises(UntrustedDataError) as gone:
            unpack.prove(part(rows), "b" * 32, fd, tmp_path)
        assert gone.value.check == "delta-base"
        (tmp_path / "same").write_bytes(body)
        unpack.prove(part(rows), "b" * 32, fd, tmp_path)
        (tmp_path / "same").write_bytes(b"the lame\n")
        with pytest.raises(UntrustedDataError) as other:
            unpack.prove(part(rows), "b" * 32, fd, tmp_path)
        assert other.value.check == "release-digest"
    finally:
        os.close(fd)
