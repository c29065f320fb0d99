from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.guard.bundle import shipped_bundle
from casemate.release.scan import scan
from casemate.release.spec import Input
from support import gguf_files


def wheel(name="package/__init__.py"):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(name, "x = 1\n" * 50)
    return held.getvalue()


GOOD = {
    "model": {"m.gguf": gguf_files.tiny(), "NOTICE": b"text\n"},
    "policy": {
        "kitchen.toml": b'schema = 1\nsystem_prompt = "x"\n',
        "rules.json": b'{"a": 1}',
        "guard.json": shipped_bundle(),
    },
    "app": {"index.html": b"<p>hello</p>\n", "logo.png": b"\x89PNG\r\n\x1a\n" + bytes(40)},
    "engine": {"engine.whl": wheel(), "run": b"\x7fELF" + bytes(60)},
    "os": {"image.raucb": b"hsqs" + bytes(60)},
}


def inputs(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [Input(name, folder / name) for name in sorted(files)]


@pytest.mark.parametrize("kind", GOOD)
def test_each_kind_takes_its_own_formats(kind, tmp_path):
    assert set(scan(kind, inputs(tmp_path, GOOD[kind]))) == set(GOOD[kind])


def test_a_policy_is_one_by_its_name_in_the_release(tmp_path):
    """Under another name on the release host it was text, which anything is, and devices took it for a policy."""
    source = tmp_path / "kitchen.txt"
    source.write_bytes(b"schema = 1\n")
    assert scan("policy", [Input("kitchen.toml", source)]) == {"kitchen.toml": "policy"}
    source.write_bytes(b"schema = 1\nno_such_key = 1\n")
    with pytest.raises(UntrustedDataError):
        scan("policy", [Input("kitchen.toml", source)])


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("app", "run", b"\x7fELF" + bytes(60)),
        ("app", "run.sh", b"#!/bin/sh\nrm -rf /\n"),
        ("app", "package.whl", wheel()),
        ("app", "page.html", b"<p>\x00</p>"),
        ("model", "m.bin", gguf_files.OTHER_FORMATS["pickle"]),
        ("model", "m.safetensors", gguf_files.OTHER_FORMATS["safetensors"]),
        ("policy", "bad.json", b'{"a": '),
        ("policy", "guard.json", b'{"a": 1}'),
        ("policy", "bad.toml", b"schema = 1\nno_such_key = 1\n"),
        ("engine", "climbs.whl", wheel("../../etc/cron.d/x")),
        ("engine", "damaged.whl", wheel()[:-30].replace(b"x = 1", b"x = 2", 1) + wheel()[-30:]),
        ("os", "image.iso", bytes(60)),
    ],
)
def test_what_is_not_recognised_has_failed(kind, name, data, tmp_path):
    with pytest.raises(UntrustedDataError) as error:
        scan(kind, inputs(tmp_path, GOOD[kind] | {name: data}))
    assert error.value.check == "release-format"
    assert error.value.message.isprintable()


@pytest.mark.parametrize("name", gguf_files.OTHER_FORMATS)
def test_no_other_format_is_a_model(name, tmp_path):
    with pytest.raises(UntrustedDataError):
        scan("model", inputs(tmp_path, {"m.gguf": gguf_files.OTHER_FORMATS[name]}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=300))
def test_noise_is_judged_and_never_crashes(tmp_path, data):
    for kind in GOOD:
        try:
            scan(kind, inputs(tmp_path, {"noise.json": data}))
        except UntrustedDataError as error:
            assert error.check == "release-format"
