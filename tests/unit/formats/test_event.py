"""Every kind has a builder, every built event passes the journal's check, and no text of a conversation fits in."""

from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats import event, event_schema

NOW = 1_700_000_000.5
ROLES = ("agent", "cli", "vault", "gateway", "journal", "engine", "")
HOSTILE = "line\nbreak \x1b[31mred\x1b[0m \u202eoverride " + "x" * 5000


def sample(parameter: inspect.Parameter, text: str) -> object:
    kind = str(parameter.annotation)
    if parameter.name == "now":
        return NOW
    return {"int": 3, "float": 1.5, "bool": True, "Iterable[str]": ["injection", text]}.get(kind, text)


def build(code: str, text: str = "name") -> event.Event:
    builder = getattr(event, code)
    return builder(**{p.name: sample(p, text) for p in inspect.signature(builder).parameters.values()})


@pytest.mark.parametrize("code", event.KINDS)
def test_every_kind_is_built_and_passes_only_for_its_roles(code):
    built = build(code)
    for role in ROLES:
        if role in event.KINDS[code].roles:
            assert event_schema.check(built, role=role).metadata.event_code == code
        else:
            with pytest.raises(UntrustedDataError) as refused:
                event_schema.check(built, role=role)
            assert refused.value.check == "event-role"


@pytest.mark.parametrize("code", event.KINDS)
def test_ocsf_required_fields(code):
    built = build(code)
    assert built["class_uid"] // 1000 == built["category_uid"]
    assert built["type_uid"] == built["class_uid"] * 100 + built["activity_id"]
    assert built["time"] == 1_700_000_000_500
    assert built["metadata"]["version"] == "1.6.0"
    assert built["metadata"]["product"]["name"] == "Casemate"
    assert 1 <= built["severity_id"] <= 6
    needs = {event.LIFECYCLE: ["app"], event.FINDING: ["finding_info"], event.AUTHENTICATION: ["user"]}
    needs |= {event.ENTITY: ["entity"], event.PROCESS: ["process", "actor", "device"], event.CONFIG: ["device"]}
    needs |= {event.API: ["actor", "api", "src_endpoint"], event.LOG: ["log_name"]}
    assert all(name in built for name in needs[built["class_uid"]])


@pytest.mark.parametrize("code", event.KINDS)
def test_hostile_text_is_bounded_and_flat(code):
    data = event_schema.stamp(build(code, HOSTILE), role="vault", device="home", now=NOW)
    event_schema.check(build(code, HOSTILE), role=min(event.KINDS[code].roles))
    shown = event_schema.decode(data)
    assert len(shown.message) <= event.TEXT_LIMIT
    assert len(data) < 3000
    assert not any(mark in data.decode() for mark in ("\\n", "\\u001b", "\x1b", "\u202e"))


def test_a_verdict_carries_labels_only():
    prompt = "my card is 4111 1111 1111 1111"
    built = event.guard_verdict(app="a", request=prompt, channel=prompt, action="block", reasons=[prompt] * 99, now=NOW)
    assert "4111" not in json.dumps(built)
    assert built["metadata"]["labels"] == ["unlabelled"] * event.MAX_LABELS
    assert built["severity_id"] == event.Severity.MEDIUM


def test_stamp_overrides_what_a_sender_claims():
    built = build("sandbox_started")
    built["metadata"]["log_provider"] = "vault"
    data = json.loads(event_schema.stamp(built, role="gateway", device="casemate/1", now=NOW + 1))
    assert data["metadata"]["log_provider"] == "gateway"
    assert data["metadata"]["logged_time"] == 1_700_000_001_500
    assert data["device"]["uid"] == "casemate/1"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda e: e.update(prompt="secret"),
        lambda e: e.update(class_uid=1007),
        lambda e: e.update(activity_id=4),
        lambda e: e.update(type_uid=1),
        lambda e: e.update(message="x" * 257),
        lambda e: e.update(message="\x1b]0;own your terminal\x07"),
        lambda e: e.update(message="two\nlines"),
        lambda e: e["app"].update(name="txt.\u202eexe"),
        lambda e: e.update(severity_id=7),
        lambda e: e.update(time=-1),
        lambda e: e.pop("metadata"),
        lambda e: e["metadata"].update(event_code="no_such_kind"),
        lambda e: e["metadata"].update(event_code="bad\n"),
        lambda e: e["app"].update(note="x"),
        lambda e: e.update(unmapped={"text": "x" * 257}),
        lambda e: e["metadata"].update(labels=["not a label"]),
        lambda e: e.update(unmapped={f"k{n}": 1 for n in range(17)}),
        lambda e: e["metadata"].update(labels=["x"] * 17),
        lambda e: e.update(unmapped={"list": ["x"]}),
        lambda e: e.update(unmapped={"deep": {"a": "b"}}),
    ],
)
def test_spoiled_events_are_refused(spoil):
    built = build("model_loaded")
    spoil(built)
    with pytest.raises(UntrustedDataError, match=r"not an event|no event|wrong class") as refused:
        event_schema.check(built, role="vault")
    assert refused.value.check == "event"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(event_schema.OcsfEvent.__struct_fields__), json_values))
def test_check_only_ever_refuses(fields):
    try:
        event_schema.check({**build("model_loaded"), **fields}, role="vault")
    except UntrustedDataError:
        pass


@given(st.binary(max_size=200))
def test_decode_only_ever_refuses(data):
    try:
        event_schema.decode(data)
    except UntrustedDataError:
        pass


@given(st.text(max_size=600))
def test_any_text_makes_an_acceptable_event(text):
    built = event.engine_crashed(model=text, cause=text, now=NOW)
    event_schema.check(built, role="agent")
    event_schema.decode(event_schema.stamp(built, role="agent", device="d", now=NOW))
