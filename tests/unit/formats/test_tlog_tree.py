"""The RFC 6962 tree: one definition, computed three ways, and proofs that accept nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import tlog
from casemate.formats.tlog.hashes import largest_power_below


def leaves(count):
    return [tlog.leaf_hash(str(n).encode()) for n in range(count)]


def reference(hashes):
    """RFC 6962 section 2.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = largest_power_below(len(hashes))
    return tlog.node_hash(reference(hashes[:k]), reference(hashes[k:]))


LEAVES = leaves(1100)


def subtree(first, count):
    return reference(LEAVES[first : first + count])


def test_rfc_6962_hashes():
    assert tlog.EMPTY_ROOT.hex().startswith("e3b0c44298fc1c14")
    assert tlog.leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    # Certificate Transparency's reference leaves and roots
    data = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    hashes = [tlog.leaf_hash(bytes.fromhex(part)) for part in data]
    assert tlog.root_of(hashes[:2]).hex() == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert tlog.root_of(hashes[:7]).hex() == "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"
    assert tlog.root_of(hashes).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 200, 255, 256, 257, 511, 512, 513, 1024, 1100])
def test_every_way_gives_one_root(size):
    state = tlog.TreeState()
    for leaf in LEAVES[:size]:
        list(state.add(leaf))
    by_tile = tlog.TreeState()
    for start in range(0, size, 256):
        list(by_tile.add_tile(LEAVES[start : min(start + 256, size)]))
    expected = reference(LEAVES[:size])
    assert tlog.root_of(LEAVES[:size]) == expected
    assert state.root() == by_tile.root() == expected
    assert tlog.tree_hash(0, size, subtree) == expected


def test_full_tiles_come_out_in_order_with_their_hashes():
    state, seen = tlog.TreeState(), []
    for leaf in LEAVES:
        seen += state.add(leaf)
    assert [(tile.level, tile.index) for tile in seen] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert seen[2].hashes == tuple(LEAVES[512:768])
    assert state.levels[1] == [tlog.root_of(LEAVES[n * 256 : n * 256 + 256]) for n in range(4)]


def test_upper_tiles_complete_at_65536():
    state, seen = tlog.TreeState(), []
    tile = [tlog.leaf_hash(b"same")] * 256
    for _ in range(257):
        seen += state.add_tile(tile)
    assert [(found.level, found.index) for found in seen[-3:]] == [(0, 255), (1, 0), (0, 256)]
    assert [len(level) for level in state.levels] == [0, 1, 1]
    assert state.root() == tlog.tree_hash(0, 257 * 256, lambda _, count: perfect(count))


def perfect(count):
    found = tlog.leaf_hash(b"same")
    while count > 1:
        found, count = tlog.node_hash(found, found), count // 2
    return found


@given(st.integers(0, 1100))
def test_a_state_continues_from_its_parts(size):
    state = tlog.TreeState()
    for leaf in LEAVES[:size]:
        list(state.add(leaf))
    again = tlog.TreeState(state.size, state.levels)
    for leaf in LEAVES[size:1100]:
        list(again.add(leaf))
    assert again.root() == reference(LEAVES[:1100])


@pytest.mark.parametrize(("size", "levels"), [(3, [[b"x"]]), (256, [[], []]), (1, []), (300, [[b"x"] * 44])])
def test_parts_that_do_not_fit_are_refused(size, levels):
    with pytest.raises(ValueError, match="do not fit"):
        tlog.TreeState(size, levels)


# --- proofs -----------------------------------------------------------------------------------------------------------


def test_all_small_proofs_hold():
    for size in range(1, 40):
        root = reference(LEAVES[:size])
        for index in range(size):
            proof = tlog.prove_inclusion(index, size, subtree)
            tlog.check_inclusion(LEAVES[index], index, size, proof, root)
        for old in range(size + 1):
            proof = tlog.prove_consistency(old, size, subtree)
            tlog.check_consistency(old, reference(LEAVES[:old]), size, root, proof)


damage = st.sampled_from(["flip", "drop", "add", "swap", "reverse"])


def spoil(proof, how, at):
    if not proof:
        return [*proof, bytes(32)] if how == "add" else None
    at %= len(proof)
    out = list(proof)
    if how == "flip":
        out[at] = bytes([out[at][0] ^ 1]) + out[at][1:]
    elif how == "drop":
        del out[at]
    elif how == "add":
        out.insert(at, out[at])
    elif how == "swap":
        out[0], out[at] = out[at], out[0]
    else:
        out.reverse()
    return None if out == proof else out


@settings(max_examples=300)
@given(st.integers(1, 1100), st.data(), damage, st.integers(0, 20))
def test_a_damaged_inclusion_proof_never_passes(size, data, how, at):
    index = data.draw(st.integers(0, size - 1))
    bad = spoil(tlog.prove_inclusion(index, size, subtree), how, at)
    if bad is None:
        return
    with pytest.raises(UntrustedDataError) as refused:
        tlog.check_inclusion(LEAVES[index], index, size, bad, reference(LEAVES[:size]))
    assert refused.value.check == "inclusion-proof"


@settings(max_examples=300)
@given(st.integers(1, 1100), st.data(), damage, st.integers(0, 20))
def test_a_damaged_consistency_proof_never_passes(size, data, how, at):
    old = data.draw(st.integers(0, size))
    bad = spoil(tlog.prove_consistency(old, size, subtree), how, at)
    if bad is None:
        return
    with pytest.raises(UntrustedDataError) as refused:
        tlog.check_consistency(old, reference(LEAVES[:old]), size, reference(LEAVES[:size]), bad)
    assert refused.value.check == "consistency-proof"


@given(st.integers(2, 1100), st.data())
def test_another_place_or_leaf_never_passes(size, data):
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size - 1).filter(lambda n: n != index))
    proof = tlog.prove_inclusion(index, size, subtree)
    root = reference(LEAVES[:size])
    for leaf, place in ((LEAVES[other], index), (LEAVES[index], other)):
        with pytest.raises(UntrustedDataError):
            tlog.check_inclusion(leaf, place, size, proof, root)


@given(st.integers(), st.integers(), st.lists(st.binary(min_size=32, max_size=32), max_size=70))
def test_nonsense_is_refused_not_crashed_on(first, second, proof):
    with pytest.raises(UntrustedDataError):
        tlog.check_inclusion(LEAVES[0], first, second, proof, bytes(32))
    with pytest.raises(UntrustedDataError):
        tlog.check_consistency(first, bytes(32), second, bytes(31) + b"x", proof)


@pytest.mark.parametrize("bad", [(-1, 5), (5, 5), (0, 0)])
def test_no_proof_for_what_is_not_there(bad):
    with pytest.raises(ValueError, match="outside"):
        tlog.prove_inclusion(*bad, subtree)
    with pytest.raises(ValueError, match="only grows"):
        tlog.prove_consistency(6, 5, subtree)
