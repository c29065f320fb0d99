from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time

import pytest
from cryptography.hazmat.primitives import serialization as s
from hypothesis import given
from hypothesis import strategies as st

from casemate.crypto import x509
from casemate.crypto.ecdsa import Curve, EcKey
from casemate.errors import UntrustedDataError
from casemate.formats import dsse, oms

FILES = {"a.b/x": "11" * 32, "a/x": "22" * 32, "model.gguf": "33" * 32}
KEY = EcKey.generate()
NOW = 1_790_000_000


def check_of(action):
    with pytest.raises(UntrustedDataError) as error:
        action()
    return error.value.check


def resign(change, key=KEY):
    """Sign a statement that *change* made wrong."""
    body = json.loads(oms.statement("m", FILES))
    change(body)
    return oms.parse(oms.sign_with_key(json.dumps(body).encode(), key))


def test_a_signature_gives_back_what_was_signed():
    signature = oms.parse(oms.sign_with_key(oms.statement("m", FILES), KEY))
    assert signature.verify(KEY.public) == FILES
    oms.check_files(signature.verify(KEY.public), FILES)


def test_names_are_signed_in_the_order_of_code_points():
    body = json.loads(oms.statement("m", FILES))
    assert [item["name"] for item in body["predicate"]["resources"]] == ["a.b/x", "a/x", "model.gguf"]


def test_the_same_input_gives_the_same_bundle():
    assert oms.sign_with_key(oms.statement("m", FILES), KEY) == oms.sign_with_key(oms.statement("m", FILES), KEY)


def test_another_key_is_refused():
    signature = oms.parse(oms.sign_with_key(oms.statement("m", FILES), KEY))
    assert check_of(lambda: signature.verify(EcKey.generate().public)) == "oms-signature"


def set_in(*path, value):
    def change(body):
        for step in path[:-1]:
            body = body[step]
        body[path[-1]] = value

    return change


def twice(body):
    body["predicate"]["resources"].append(body["predicate"]["resources"][0])
    raw = b"".join(bytes.fromhex(item["digest"]) for item in body["predicate"]["resources"])
    body["subject"][0]["digest"]["sha256"] = hashlib.sha256(raw).hexdigest()


WRONG = {
    "another predicate": set_in("predicateType", value="https://model_signing/Digests/v0.1"),
    "another statement": set_in("_type", value="https://in-toto.io/Statement/v0.1"),
    "symlinks": set_in("predicate", "serialization", "allow_symlinks", value=True),
    "ignored paths": set_in("predicate", "serialization", "ignore_paths", value=["a.sig", "weights"]),
    "an ignored subtree": set_in("predicate", "serialization", "ignore_paths", value=["a/b"]),
    "shards": set_in("predicate", "serialization", "method", value="shards"),
    "another hash": set_in("predicate", "serialization", "hash_type", value="blake2b"),
    "an extra key": set_in("predicate", "note", value="x"),
    "a wrong root": set_in("subject", 0, "digest", "sha256", value="00" * 32),
    "two subjects": lambda body: body["subject"].append(body["subject"][0]),
    "a name twice": twice,
    "an upward name": set_in("predicate", "resources", 0, "name", value="../x"),
    "an absolute name": set_in("predicate", "resources", 0, "name", value="/x"),
    "a dotted name": set_in("predicate", "resources", 0, "name", value="./x"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_signed_statement_that_breaks_a_rule_is_refused(fault):
    assert check_of(lambda: resign(WRONG[fault]).verify(KEY.public)) == "oms-statement"


def broken_bundle(change):
    bundle = json.loads(oms.sign_with_key(oms.statement("m", FILES), KEY))
    change(bundle)
    return json.dumps(bundle).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b["dsseEnvelope"]["signatures"].append(b["dsseEnvelope"]["signatures"][0]),
        lambda b: b.update(note=1),
        lambda b: b.update(mediaType="text/plain"),
        lambda b: b["verificationMaterial"].pop("publicKey"),
        lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
        lambda b: b["dsseEnvelope"].update(payload=b["dsseEnvelope"]["payload"] + "\n"),
    ],
)
def test_a_bundle_with_anything_else_in_it_is_refused(change):
    assert check_of(lambda: oms.parse(broken_bundle(change))) == "oms-bundle"


@given(st.binary(max_size=200))
def test_noise_is_refused_by_name(data):
    assert check_of(lambda: oms.parse(data)) == "oms-bundle"


@given(st.integers(min_value=0, max_value=10_000), st.integers(min_value=1, max_value=255))
def test_no_changed_byte_of_the_statement_passes(place, change):
    payload = bytearray(oms.statement("m", FILES))
    good = json.loads(oms.sign_with_key(bytes(payload), KEY))
    payload[place % len(payload)] ^= change
    good["dsseEnvelope"]["payload"] = base64.b64encode(bytes(payload)).decode()
    signature = oms.parse(json.dumps(good).encode())
    assert check_of(lambda: signature.verify(KEY.public)) == "oms-signature"


@pytest.mark.parametrize(
    ("found", "check"),
    [
        ({**FILES, ".git/hook": "44" * 32}, "oms-unsigned-file"),
        ({"a/x": FILES["a/x"]}, "oms-missing-file"),
        ({**FILES, "a/x": "55" * 32}, "oms-digest"),
    ],
)
def test_the_tree_must_be_exactly_what_was_signed(found, check):
    assert check_of(lambda: oms.check_files(FILES, found)) == check


def authority(curve=Curve.P384):
    key = EcKey.generate(curve)
    return key, x509.make_root(key, "test authority", NOW - 1000)


def certified(root_key, root, *, start=NOW - 60, end=NOW + 600):
    key = EcKey.generate()
    leaf = x509.issue_leaf(root_key, root, key.public, "release", not_before=start, not_after=end)
    return oms.parse(oms.sign_with_certificate(oms.statement("m", FILES), key, [leaf, root]))


def test_a_certificate_signature_is_good_only_inside_the_leafs_validity():
    key, root = authority()
    signature = certified(key, root)
    assert oms.verify_certificate(signature, [root], NOW) == FILES
    for moment in (NOW - 61, NOW + 601):
        assert check_of(lambda at=moment: oms.verify_certificate(signature, [root], at)) == "certificate-validity"


def test_another_authority_is_refused_and_one_of_several_is_enough():
    key, root = authority()
    other = authority()[1]
    signature = certified(key, root)
    assert check_of(lambda: oms.verify_certificate(signature, [other], NOW)) == "certificate-issuer"
    assert oms.verify_certificate(signature, [other, root], NOW) == FILES
    assert check_of(lambda: oms.verify_certificate(signature, [], NOW)) == "certificate-issuer"


def test_a_leaf_cannot_issue_leaves():
    key, root = authority()
    middle = EcKey.generate()
    leaf = x509.issue_leaf(key, root, middle.public, "release", not_before=NOW - 60, not_after=NOW + 600)
    signature = certified(middle, leaf)
    assert check_of(lambda: oms.verify_certificate(signature, [leaf], NOW)) == "certificate-authority"


# --- with the package others use


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub.d").mkdir(parents=True)
    (folder / "sub").mkdir()
    for name in ("weights.gguf", "sub/x", "sub.d/x"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def theirs(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def write_key(path, key):
    path.write_bytes(key.key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    return path


def test_interop_by_key_both_ways(model, tmp_path):
    public = tmp_path / "key.pub"
    public.write_bytes(KEY.public.pem())
    ours = tmp_path / "ours.sig"
    ours.write_bytes(oms.sign_with_key(oms.statement("model", digests(model)), KEY))
    done = theirs("verify", "key", model, "--signature", ours, "--public_key", public)
    assert done.returncode == 0, done.stderr
    other = tmp_path / "theirs.sig"
    done = theirs("sign", "key", model, "--signature", other, "--private_key", write_key(tmp_path / "k.pem", KEY))
    assert done.returncode == 0, done.stderr
    oms.check_files(oms.parse(other.read_bytes()).verify(KEY.public), digests(model))


def test_interop_by_certificate_both_ways(model, tmp_path):
    root_key, root = authority()
    key, now = EcKey.generate(Curve.P256), time.time()
    leaf = x509.issue_leaf(root_key, root, key.public, "release", not_before=now - 60, not_after=now + 600)
    chain = {"root.pem": root, "leaf.pem": leaf}
    for name, certificate in chain.items():
        (tmp_path / name).write_text(x509.to_pem(certificate))
    ours = tmp_path / "ours.sig"
    ours.write_bytes(oms.sign_with_certificate(oms.statement("model", digests(model)), key, [leaf, root]))
    done = theirs("verify", "certificate", model, "--signature", ours, "--certificate_chain", tmp_path / "root.pem")
    assert done.returncode == 0, done.stderr
    other = tmp_path / "theirs.sig"
    done = theirs(
        "sign", "certificate", model, "--signature", other, "--private_key", write_key(tmp_path / "k.pem", key),
        "--signing_certificate", tmp_path / "leaf.pem", "--certificate_chain", tmp_path / "root.pem",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    oms.check_files(oms.verify_certificate(oms.parse(other.read_bytes()), [root], now), digests(model))


def test_pae_is_the_specifications_example():
    assert dsse.pae(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
