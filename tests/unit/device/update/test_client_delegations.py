"""In which order roles are asked, and which keys of root count: tables of repositories (TUF 5.3.4 and 5.6.7)."""

from __future__ import annotations

import itertools
import time

import pytest
from securesystemslib.signer import CryptoSigner

from casemate.device.update.floors import FileFloorStore
from casemate.errors import NotFoundError, UntrustedDataError
from support import forge as forges
from support.forge import Directory, Forge, trusting

NOW = float(int(time.time()))
DAY = 86_400.0
ANY = ("*",)


@pytest.fixture
def forge(tmp_path):
    return Forge(tmp_path / "public", NOW)


def client_of(tmp_path, forge, now=NOW):
    source = Directory(forge.public)
    return forges.client_of(trusting(tmp_path / "update", forge), source, now), source


def asked(source):
    """The delegated roles, in the order they were asked for."""
    names = [path.removeprefix("metadata/").split(".") for path in source.asked if path.startswith("metadata/")]
    return "".join(name[1] for name in names if len(name) == 3 and len(name[1]) == 1)


# parent, role, terminating, paths
GRAPHS = {
    "one": ([("targets", "a", False, ANY)], "a"),
    "in order": ([("targets", "b", False, ANY), ("targets", "a", False, ANY)], "ba"),
    "down before across": (
        [("targets", "a", False, ANY), ("targets", "b", False, ANY), ("a", "c", False, ANY), ("c", "d", False, ANY)],
        "acdb",
    ),
    "a terminating role ends the search": ([("targets", "a", True, ANY), ("targets", "b", False, ANY)], "a"),
    "its own delegations are still asked": (
        [("targets", "a", True, ANY), ("targets", "b", False, ANY), ("a", "c", False, ANY)],
        "ac",
    ),
    "a terminating one further down ends it all": (
        [("targets", "a", False, ANY), ("targets", "b", False, ANY), ("a", "c", True, ANY), ("a", "d", False, ANY)],
        "ac",
    ),
    "a terminating one for other paths ends nothing": (
        [("targets", "a", True, ("*.py",)), ("targets", "b", False, ANY)],
        "b",
    ),
    "whole branches without the path are left out": (
        [("targets", "a", False, ("*.py",)), ("a", "c", False, ANY), ("targets", "b", False, ANY)],
        "b",
    ),
    "a circle": (
        [("targets", "a", False, ANY), ("a", "b", False, ANY), ("b", "c", False, ANY), ("c", "a", False, ANY)],
        "abc",
    ),
    "a role that two delegate to is asked once": (
        [("targets", "a", False, ANY), ("targets", "b", False, ANY), ("a", "c", False, ANY), ("b", "c", False, ANY)],
        "acb",
    ),
    "by the way that has the path": (
        [("targets", "a", False, ANY), ("targets", "b", False, ANY), ("a", "c", False, ("*.py",)),
         ("b", "c", False, ANY)],
        "abc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_roles_are_asked_depth_first_in_the_order_they_are_named(tmp_path, forge, name):
    edges, order = GRAPHS[name]
    for parent, role, terminating, paths in edges:
        forge.delegate(role, list(paths), parent=parent, terminating=terminating)
    forge.publish(*dict.fromkeys(["targets", *(edge[1] for edge in edges)]))
    client, source = client_of(tmp_path, forge)
    client.refresh()
    with pytest.raises(NotFoundError):
        client.read("nowhere", 100)
    assert asked(source) == order


@pytest.mark.parametrize(("path", "found", "order"), [("top", True, ""), ("x/one", True, "bc"), ("x/y/one", False, ""),
                                                     ("z/one", False, "b")])  # fmt: skip
def test_a_target_is_found_only_where_every_role_on_the_way_may_have_it(tmp_path, forge, path, found, order):
    forge.delegate("b", ["?/*"], terminating=False)
    forge.delegate("c", ["x/*"], parent="b", terminating=False)
    forge.put("targets", "top", b"data")
    for target in ("x/one", "x/y/one", "z/one"):
        forge.put("c", target, b"data")
    forge.publish("targets", "b", "c")
    client, source = client_of(tmp_path, forge)
    client.refresh()
    if found:
        assert client.read(path, 100).data == b"data"
    else:
        with pytest.raises(NotFoundError):
            client.read(path, 100)
    assert asked(source) == order


def test_a_chain_of_delegations_has_an_end(tmp_path, forge):
    """Thirty-two, as python-tuf has it: a targets key cannot make a device walk for ever."""
    roles = ["targets", *(f"r{chr(97 + at // 26)}{chr(97 + at % 26)}" for at in range(50))]
    for parent, role in itertools.pairwise(roles):
        forge.delegate(role, ["*"], parent=parent)
    forge.put(roles[-1], "far", b"data")
    forge.publish(*roles)
    client, source = client_of(tmp_path, forge)
    client.refresh()
    with pytest.raises(NotFoundError):
        client.read("far", 100)
    assert sum(1 for path in source.asked if ".r" in path and "root" not in path) <= 33


def test_a_cached_role_that_has_expired_is_not_used_and_a_newer_one_is(tmp_path, forge):
    forge.delegate("a", ["*"])
    forge.put("a", "one", b"data")
    forge.write("a", days=2)
    forge.publish("targets")
    client, _ = client_of(tmp_path, forge)
    client.refresh()
    assert client.read("one", 100).data == b"data"
    forge.now += 3 * DAY
    forge.current()
    client, _ = client_of(tmp_path, forge, forge.now)
    client.refresh()
    with pytest.raises(UntrustedDataError) as caught:
        client.read("one", 100)
    assert caught.value.check == "metadata-expired"
    forge.publish("a")
    client, _ = client_of(tmp_path, forge, forge.now)
    client.refresh()
    assert client.read("one", 100).data == b"data"


# keys, threshold, who signs: of each version of root after the first
ROOTS = {
    "a key replaced": ([((1, 2, 3), 2, (0, 1, 2))], True),
    "all keys replaced": ([((3, 4, 5), 2, (0, 1, 3, 4))], True),
    "and again, without the first ones": ([((3, 4, 5), 2, (0, 1, 3, 4)), ((3, 4, 5), 2, (4, 5))], True),
    "signatures of strangers beside enough": ([((0, 1, 2), 2, (7, 0, 8, 2, 9))], True),
    "any two of three": ([((0, 1, 2), 2, (1, 2)), ((0, 1, 2), 2, (0, 2))], True),
    "a higher threshold": ([((0, 1, 2), 3, (0, 1, 2))], True),
    "a lower threshold, signed by the old one": ([((0, 1, 2), 1, (0, 1)), ((0, 1, 2), 1, (2,))], True),
    "a lower threshold, signed by the new one only": ([((0, 1, 2), 1, (0,))], False),
    "a higher threshold not reached": ([((0, 1, 2), 3, (0, 1))], False),
    "new keys that the old ones did not sign": ([((3, 4, 5), 2, (3, 4))], False),
    "new keys that did not sign themselves": ([((3, 4, 5), 2, (0, 1))], False),
    "one old and one new": ([((1, 2, 3), 2, (0, 3))], False),
    "strangers only": ([((0, 1, 2), 2, (7, 8, 9))], False),
}


@pytest.mark.parametrize("name", ROOTS)
def test_a_root_is_followed_when_old_and_new_thresholds_signed_it(tmp_path, forge, name):
    versions, good = ROOTS[name]
    signers = [*forge.keys["root"], *(CryptoSigner.generate_ed25519() for _ in range(7))]
    for keys, threshold, by in versions:
        forge.rotate("root", only=[signers[at] for at in keys])
        forge.md["root"].signed.roles["root"].threshold = threshold
        forge.write("root", by=[signers[at] for at in by])
    client, _ = client_of(tmp_path, forge)
    if good:
        client.refresh()
        assert FileFloorStore(tmp_path / "update").read().versions["root"] == 1 + len(versions)
    else:
        with pytest.raises(UntrustedDataError) as caught:
            client.refresh()
        assert caught.value.check == "metadata-threshold"
