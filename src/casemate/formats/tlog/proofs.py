"""Inclusion and consistency proofs (RFC 6962 section 2.1): making them from subtree hashes, and checking them.

`Subtree` gives the hash of a run of leaves that is a full, aligned subtree; where it comes from (tiles) is the
caller's business. A proof is refused with `UntrustedDataError`, never with a wrong answer.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from casemate.errors import UntrustedDataError
from casemate.formats.tlog.hashes import EMPTY_ROOT, largest_power_below, node_hash

MAX_PROOF: Final = 63

Subtree: TypeAlias = Callable[[int, int], bytes]
"""(first leaf, number of leaves: a power of two that divides the first) -> hash"""


def tree_hash(first: int, count: int, subtree: Subtree) -> bytes:
    """Return the RFC 6962 hash over leaves *first* .. *first* + *count* - 1 of a larger tree's left-aligned run."""
    if count == 0:
        return EMPTY_ROOT
    if count & (count - 1) == 0:
        return subtree(first, count)
    left = largest_power_below(count)
    return node_hash(tree_hash(first, left, subtree), tree_hash(first + left, count - left, subtree))


def prove_inclusion(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Return the audit path of leaf *index* in the tree of *size*, from the leaf up.

    Raises:
        ValueError: no such leaf.

    """
    if not 0 <= index < size:
        raise ValueError("the index is outside the tree")
    return _path(index, 0, size, subtree)


def _path(index: int, first: int, count: int, subtree: Subtree) -> list[bytes]:
    if count == 1:
        return []
    left = largest_power_below(count)
    if index < left:
        return [*_path(index, first, left, subtree), tree_hash(first + left, count - left, subtree)]
    return [*_path(index - left, first + left, count - left, subtree), tree_hash(first, left, subtree)]


def prove_consistency(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """Return the proof that the tree of *new* entries extends the one of *old*; empty for 0 or equal sizes.

    Raises:
        ValueError: *old* is larger than *new*.

    """
    if not 0 <= old <= new:
        raise ValueError("a tree only grows")
    if old in {0, new}:
        return []
    return _consistency(old, 0, new, subtree, whole=True)


def _consistency(old: int, first: int, count: int, subtree: Subtree, *, whole: bool) -> list[bytes]:
    if old == count:
        return [] if whole else [tree_hash(first, count, subtree)]
    left = largest_power_below(count)
    if old <= left:
        right = tree_hash(first + left, count - left, subtree)
        return [*_consistency(old, first, left, subtree, whole=whole), right]
    below = _consistency(old - left, first + left, count - left, subtree, whole=False)
    return [*below, tree_hash(first, left, subtree)]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that *leaf* (a leaf hash) is entry *index* of the tree of *size* with *root*.

    Raises:
        UntrustedDataError: `inclusion-proof`.

    """
    if not 0 <= index < size or len(proof) > MAX_PROOF:
        raise UntrustedDataError("the inclusion proof is outside the tree", check="inclusion-proof")
    if not hmac.compare_digest(_included(index, size, leaf, list(proof)), root):
        raise UntrustedDataError(f"entry {index} is not in the tree of {size}", check="inclusion-proof")


def _included(index: int, size: int, leaf: bytes, proof: list[bytes]) -> bytes:
    if size == 1:
        if proof:
            raise UntrustedDataError("the inclusion proof is too long", check="inclusion-proof")
        return leaf
    if not proof:
        raise UntrustedDataError("the inclusion proof is too short", check="inclusion-proof")
    left, top = largest_power_below(size), proof.pop()
    if index < left:
        return node_hash(_included(index, left, leaf, proof), top)
    return node_hash(top, _included(index - left, size - left, leaf, proof))


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree (*new*, *new_root*) extends the tree (*old*, *old_root*).

    Raises:
        UntrustedDataError: `consistency-proof`.

    """
    if not 0 <= old <= new or len(proof) > MAX_PROOF:
        raise UntrustedDataError("the consistency proof is outside the tree", check="consistency-proof")
    if old == 0:
        fits = not proof and old_root == EMPTY_ROOT
    else:
        fits = _extended(old, new, list(proof), old_root, whole=True) == (old_root, new_root)
    if not fits:
        raise UntrustedDataError(f"the tree of {new} does not extend the tree of {old}", check="consistency-proof")


def _extended(old: int, new: int, proof: list[bytes], old_root: bytes, *, whole: bool) -> tuple[bytes, bytes]:
    if old == new:
        if whole and not proof:
            return old_root, old_root
        if whole or len(proof) != 1:
            raise UntrustedDataError("the consistency proof has the wrong length", check="consistency-proof")
        return proof[0], proof[0]
    if not proof:
        raise UntrustedDataError("the consistency proof is too short", check="consistency-proof")
    left, top = largest_power_below(new), proof.pop()
    if old <= left:
        before, after = _extended(old, left, proof, old_root, whole=whole)
        return before, node_hash(after, top)
    before, after = _extended(old - left, new - left, proof, old_root, whole=False)
    return node_hash(top, before), node_hash(top, after)
