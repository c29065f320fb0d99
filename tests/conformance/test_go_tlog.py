"""The journal judged by tools we did not write: Go's sumdb packages, and pymerkle for roots."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pymerkle
import pytest

from casemate.crypto import hpke
from casemate.crypto.signing import SigningKey
from casemate.device.journal import JournalWriter, LogFiles, prove
from casemate.device.journal.tree import TileTree
from casemate.formats import tlog

SOURCE = Path(__file__).with_name("go_tlog") / "main.go"
SUMDB = Path("/usr/share/gocode/src/golang.org/x/mod/sumdb/tlog")
ORIGIN = "casemate/conformance"
SIZES = [1, 2, 3, 7, 8, 255, 256, 257, 613, 1000, 65_535, 65_536, 65_537, 70_000]


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """Build the Go verifier once; return a function that asks it many questions."""
    if not shutil.which("go") or not SUMDB.is_dir():
        pytest.skip("needs Debian's golang-go and golang-golang-x-mod-dev")
    place = tmp_path_factory.mktemp("go")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "GOCACHE": str(place / "cache"),
        "GOFLAGS": "-p=1",
        "GO111MODULE": "off",
        "GOPATH": "/usr/share/gocode",
        "CGO_ENABLED": "0",
    }
    program = place / "go_tlog"
    subprocess.run(["go", "build", "-o", program, SOURCE], env=environment, check=True, timeout=240)

    def ask(questions):
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True, timeout=120)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def b64(data):
    return base64.b64encode(data).decode()


class Tree:
    """A big tree without a disk: made-up entries, hashes kept by level."""

    def __init__(self, size):
        self.entries = [f"entry {n}".encode() for n in range(size)]
        level = [tlog.leaf_hash(entry) for entry in self.entries]
        self.levels = [level]
        while len(level) > 1:
            level = [tlog.node_hash(level[n], level[n + 1]) for n in range(0, len(level) - 1, 2)]
            self.levels.append(level)

    def subtree(self, first, count):
        height = count.bit_length() - 1
        return self.levels[height][first >> height]

    def checkpoint(self, size, key):
        return tlog.Checkpoint(ORIGIN, size, tlog.tree_hash(0, size, self.subtree)).sign(key)


@pytest.fixture(scope="module")
def tree():
    return Tree(max(SIZES))


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate()


def base(key, tree, size):
    return {"vkey": str(tlog.VerifierKey(ORIGIN, key.public)), "checkpoint": b64(tree.checkpoint(size, key))}


def inclusion(key, tree, index, size):
    proof = tlog.prove_inclusion(index, size, tree.subtree)
    return {
        **base(key, tree, size),
        "index": index,
        "entry": b64(tree.entries[index]),
        "inclusion": [b64(part) for part in proof],
    }


def consistency(key, tree, old, new):
    proof = tlog.prove_consistency(old, new, tree.subtree)
    return {
        **base(key, tree, new),
        "old": b64(tree.checkpoint(old, key)),
        "consistency": [b64(part) for part in proof],
    }


def test_go_accepts_our_inclusion_and_consistency_proofs(go, tree, key):
    dice = random.Random(7)
    questions = []
    for size in [*SIZES, *(dice.randrange(2, max(SIZES)) for _ in range(30))]:
        indexes = {0, size - 1, size // 2, dice.randrange(size)}
        questions += [inclusion(key, tree, index, size) for index in indexes]
        olds = {1, max(1, size - 1), size, dice.randrange(1, size + 1)}
        questions += [consistency(key, tree, old, size) for old in olds]
    answers = go(questions)
    assert len(answers) == len(questions) > 250
    assert [answer["error"] for answer in answers if not answer["ok"]] == []


def test_go_refuses_what_was_tampered_with(go, tree, key):
    good = inclusion(key, tree, 432, 1000)
    grown = consistency(key, tree, 613, 1000)
    other = SigningKey.generate()
    spoiled = [
        {**good, "index": 433},
        {**good, "entry": b64(tree.entries[432] + b"x")},
        {**good, "inclusion": [*good["inclusion"][1:], good["inclusion"][0]]},
        {**good, "checkpoint": b64(tree.checkpoint(1000, other))},
        {**good, "vkey": str(tlog.VerifierKey(ORIGIN, other.public))},
        {**good, "checkpoint": b64(base64.b64decode(good["checkpoint"]).replace(b"\n1000\n", b"\n1001\n"))},
        {**grown, "old": b64(Tree(613).checkpoint(612, key))},
        {**grown, "consistency": grown["consistency"][:-1]},
        {**grown, "old": b64(tlog.Checkpoint(ORIGIN, 613, tlog.leaf_hash(b"lie")).sign(key))},
    ]
    assert [answer["ok"] for answer in go([good, grown])] == [True, True]
    assert not any(answer["ok"] for answer in go(spoiled))


class Clock:
    def wall(self):
        return 1_700_000_000.0

    def monotonic(self):
        return 1.0


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "journal"
    path.mkdir()
    _, public = hpke.generate()
    return path, lambda: JournalWriter(path, home_id="conformance", owner_public=public, clock=Clock())


def read_bundles(path, size):
    """Collect entries from the public files alone, as any tlog-tiles client does."""
    entries = []
    for start in range(0, size, 256):
        name = tlog.entries_path(start // 256, min(256, size - start))
        entries += tlog.parse_bundle((path / name).read_bytes())
    return entries


def test_go_rebuilds_a_real_journal_from_its_public_files(go, journal):
    path, opened = journal
    vkey, kept, questions = "", [], []
    dice = random.Random(11)
    for _ in range(6):
        with opened() as writer:
            writer.append([os.urandom(dice.randrange(1, 400)) for _ in range(dice.randrange(1, 300))])
        vkey = (path / "log.vkey").read_text().strip()
        kept.append(((path / "checkpoint").read_bytes(), writer.size))
    signed, size = kept[-1]
    common = {"vkey": vkey, "checkpoint": b64(signed)}
    questions.append({**common, "entries": [b64(entry) for entry in read_bundles(path, size)]})
    tree = TileTree(LogFiles(path), size)
    for old_signed, old in kept:
        proof = [b64(part) for part in tree.consistency(old)]
        questions.append({**common, "old": b64(old_signed), "consistency": proof})
    for index in {0, 1, size - 1, *(dice.randrange(size) for _ in range(40))}:
        proof, entry = prove(LogFiles(path), index)
        assert proof.checkpoint == signed
        parts = [b64(part) for part in proof.proof]
        questions.append({**common, "index": index, "entry": b64(entry), "inclusion": parts})
    answers = go(questions)
    assert [answer["error"] for answer in answers if not answer["ok"]] == []
    assert {answer["size"] for answer in answers} == {size}


def pymerkle_root(entries):
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in entries:
        tree.append_entry(entry)
    return tree.get_root()


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 613, 1000])
def test_pymerkle_agrees_on_roots(tree, size):
    state = tlog.TreeState()
    for entry in tree.entries[:size]:
        list(state.add(tlog.leaf_hash(entry)))
    assert pymerkle_root(tree.entries[:size]) == state.root() == tlog.tree_hash(0, size, tree.subtree)


def test_pymerkle_agrees_on_a_real_journal(journal):
    path, opened = journal
    with opened() as writer:
        writer.append([os.urandom(50) for _ in range(700)])
    checkpoint = tlog.open_checkpoint(
        (path / "checkpoint").read_bytes(), [tlog.VerifierKey.parse((path / "log.vkey").read_text())]
    )
    assert pymerkle_root(read_bundles(path, checkpoint.size)) == checkpoint.root
