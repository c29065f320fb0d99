"""Signing and verifying a model of 2 GiB against `openssl dgst -sha256` of the same file; granting one to a fleet.

CPU seconds (user + system), the least of some runs: what is left over a bare digest is our own cost. The PyPI
`model-signing` package does the same work in the same run.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import Row, options, publish

from casemate.crypto import hpke, x509
from casemate.crypto.ecdsa import Curve, EcKey
from casemate.crypto.secret import Secret
from casemate.crypto.signing import SigningKey
from casemate.formats import grant, oms, signature_log, tlog
from casemate.release import sign
from casemate.release.siglog import SignatureLog

ROUNDS = 3
DEVICES = 10_000


def cpu_of(action: Callable[[], object]) -> float:
    """Return the least CPU seconds of several runs, children included."""
    best = float("inf")
    for _ in range(ROUNDS):
        before = _spent()
        action()
        best = min(best, _spent() - before)
    return best


def _spent() -> float:
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def write_model(path: Path, size: int) -> None:
    block = bytes(range(256)) * 4096
    with path.open("wb") as file:
        for number in range(size >> 20):
            file.write(number.to_bytes(8, "big") + block[8:])


class Machine:
    """A release authority and a log, as the repository has them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, time.time()
        self.authority = EcKey.generate(Curve.P384)
        self.root = x509.make_root(self.authority, "bench", self.now - 3600)
        self.log_key = SigningKey.generate()
        self.origin = "casemate.release/bench"
        self.trust = signature_log.SigningTrust(
            1, (x509.to_pem(self.root),), (str(tlog.VerifierKey(self.origin, self.log_key.public)),)
        )
        self.signed: signature_log.SignedRelease

    def sign(self, tree: Path) -> None:
        key = EcKey.generate()
        start, end = self.now - 60, self.now + 600
        leaf = x509.issue_leaf(self.authority, self.root, key.public, "bench", not_before=start, not_after=end)
        statement = oms.statement(tree.name, sign.digest_directory(tree))
        bundle = oms.sign_with_certificate(statement, key, [leaf, self.root])
        entry = signature_log.entry_of(bundle, leaf, self.now)
        proof = SignatureLog(self.folder / "log", self.origin).append(entry, self.log_key)
        self.signed = signature_log.SignedRelease(bundle.decode(), entry.decode(), proof.decode())

    def verify(self, tree: Path) -> None:
        sign.verify_directory(tree, self.signed, self.trust)


def their_sign(tree: Path, folder: Path, key: Path) -> None:
    command = ["sign", "key", str(tree), "--signature", str(folder / "theirs.sig"), "--private_key", str(key)]
    subprocess.run([sys.executable, "-m", "model_signing", *command], check=True, capture_output=True)


def main() -> None:
    args = options(__doc__)
    size = (64 << 20) if args.quick else (2 << 30)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "model"
        tree.mkdir()
        write_model(tree / "model.gguf", size)
        private = folder / "key.pem"
        subprocess.run(
            ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)], check=True
        )
        digest = ["openssl", "dgst", "-sha256", str(tree / "model.gguf")]
        peer = cpu_of(lambda: subprocess.run(digest, check=True, capture_output=True))
        machine = Machine(folder)
        ours = cpu_of(lambda: machine.sign(tree))
        checked = cpu_of(lambda: machine.verify(tree))
        theirs = cpu_of(lambda: their_sign(tree, folder, private))
        what = f"of {size >> 20} MiB, CPU"
        for label, value in ((f"sign {what}", ours), (f"verify {what}", checked)):
            goal = "<= 1.2x"
            rows.append(Row(label, value, "s", "openssl dgst -sha256", peer, goal, value <= 1.2 * peer))
        rows.append(Row(f"model-signing: sign {what}", theirs, "s", "openssl dgst -sha256", peer))
    key, public = Secret.random(), hpke.generate()[1]
    count = DEVICES // 100 if args.quick else DEVICES
    spent = cpu_of(lambda: [grant.make(key, "0" * 32, public) for _ in range(count)])
    rows.append(Row(f"wrap a release key for {count} devices, CPU", spent, "s", goal="< 5 s", met=spent < 5))
    publish("signing", rows, args)


if __name__ == "__main__":
    main()
