"""Transparency logs as the C2SP specifications write them: hashes, notes, checkpoints, tiles, proofs. Pure."""

from casemate.formats.tlog.checkpoint import Checkpoint, open_checkpoint
from casemate.formats.tlog.hashes import (
    EMPTY_ROOT,
    HASH_SIZE,
    TILE_WIDTH,
    FullTile,
    TreeState,
    leaf_hash,
    node_hash,
    root_of,
)
from casemate.formats.tlog.note import VerifierKey
from casemate.formats.tlog.proof_file import ProofFile, parse_proof
from casemate.formats.tlog.proofs import (
    Subtree,
    check_consistency,
    check_inclusion,
    prove_consistency,
    prove_inclusion,
    tree_hash,
)
from casemate.formats.tlog.tiles import (
    MAX_ENTRY,
    entries_path,
    pack_bundle,
    pack_tile,
    parse_bundle,
    parse_tile,
    partial_tiles,
    tile_path,
)
from casemate.formats.tlog.witness import AddCheckpoint, cosign, cosigned_at, parse_add_checkpoint

__all__ = [
    "EMPTY_ROOT",
    "HASH_SIZE",
    "MAX_ENTRY",
    "TILE_WIDTH",
    "AddCheckpoint",
    "Checkpoint",
    "FullTile",
    "ProofFile",
    "Subtree",
    "TreeState",
    "VerifierKey",
    "check_consistency",
    "check_inclusion",
    "cosign",
    "cosigned_at",
    "entries_path",
    "leaf_hash",
    "node_hash",
    "open_checkpoint",
    "pack_bundle",
    "pack_tile",
    "parse_add_checkpoint",
    "parse_bundle",
    "parse_proof",
    "parse_tile",
    "partial_tiles",
    "prove_consistency",
    "prove_inclusion",
    "root_of",
    "tile_path",
    "tree_hash",
]
