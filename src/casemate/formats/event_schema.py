"""The journal's side of `formats.event`: is this an event, may that process report it, and what it looks like on disk.

Refused: unknown fields, unknown kinds, a class or activity that is not the kind's, text over the bound, a kind the
role may not report. The role comes from the link, so a process cannot speak in another's name.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from casemate.errors import UntrustedDataError
from casemate.formats.decoding import MALFORMED
from casemate.formats.event import KINDS, MAX_LABELS, PRINTABLE, TEXT_LIMIT, Event

MAX_EVENT_BYTES: Final = 16 * 1024
LABEL_LIMIT: Final = 64

Text = Annotated[str, msgspec.Meta(max_length=TEXT_LIMIT, pattern=rf"^[{PRINTABLE}]*\Z")]
Label = Annotated[str, msgspec.Meta(max_length=LABEL_LIMIT, pattern=r"^[A-Za-z0-9][A-Za-z0-9:._/*-]*\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base: an unknown field is an error, a default is not written."""


class Product(_Object, frozen=True):
    """OCSF product."""

    name: Text
    vendor_name: Text
    version: Text


class Metadata(_Object, frozen=True):
    """OCSF metadata. `log_provider` and `logged_time` are set by the journal alone."""

    version: Text
    product: Product
    event_code: Label
    labels: Annotated[list[Label], msgspec.Meta(max_length=MAX_LABELS)] = []
    log_provider: Text = ""
    logged_time: Count = 0


class Named(_Object, frozen=True):
    """OCSF app, entity, user, process, model, device: what we use of them."""

    name: Text
    uid: Text = ""
    type: Text = ""
    vendor_name: Text = ""
    ai_provider: Text = ""
    pid: Count = 0
    type_id: Count = 0


class Actor(_Object, frozen=True):
    """OCSF actor."""

    app_name: Text


class Endpoint(_Object, frozen=True):
    """OCSF network endpoint."""

    ip: Text = ""


class Api(_Object, frozen=True):
    """OCSF api."""

    operation: Text


class FindingInfo(_Object, frozen=True):
    """OCSF finding_info."""

    title: Text
    uid: Text


class OcsfEvent(_Object, frozen=True):
    """One checked event."""

    activity_id: Count
    category_uid: Count
    class_uid: Count
    type_uid: Count
    severity_id: Annotated[int, msgspec.Meta(ge=1, le=6)]
    time: Count
    metadata: Metadata
    message: Text
    status_id: Count = 0
    status_detail: Text = ""
    count: Count = 0
    actor: Actor | None = None
    ai_model: Named | None = None
    api: Api | None = None
    app: Named | None = None
    device: Named | None = None
    entity: Named | None = None
    finding_info: FindingInfo | None = None
    log_name: Text = ""
    process: Named | None = None
    src_endpoint: Endpoint | None = None
    user: Named | None = None
    # no list here: msgspec 0.22 corrupts memory when a `pattern` string stands in a union with a container type
    unmapped: Annotated[dict[Label, int | bool | Text], msgspec.Meta(max_length=16)] = {}


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(OcsfEvent)


def check(raw: Event, *, role: str) -> OcsfEvent:
    """Judge an event that came over the link of *role*.

    Raises:
        UntrustedDataError: `event` it is not an event of a known kind; `event-role` that role may not report it.

    """
    try:
        event = msgspec.convert(raw, OcsfEvent)
    except msgspec.ValidationError as error:
        raise UntrustedDataError(f"not an event: {error}", check="event") from error
    code = event.metadata.event_code
    kind = KINDS.get(code)
    if kind is None:
        raise UntrustedDataError(f"no event is called {code!r}", check="event")
    said = (event.class_uid, event.activity_id, event.category_uid, event.type_uid)
    if said != (kind.class_uid, kind.activity_id, kind.class_uid // 1000, kind.class_uid * 100 + kind.activity_id):
        raise UntrustedDataError(f"an event {code!r} has the wrong class or activity", check="event")
    if role not in kind.roles:
        raise UntrustedDataError(f"{role} may not report {code!r}", check="event-role")
    return event


def stamp(raw: Event, *, role: str, device: str, now: float) -> bytes:
    """Stamp who reported a checked event and when it was recorded, and make its bytes.

    Raises:
        UntrustedDataError: `event` it is over `MAX_EVENT_BYTES`.

    """
    stamped = dict(raw)
    stamped["metadata"] = {**raw["metadata"], "log_provider": role, "logged_time": int(now * 1000)}
    if "device" in raw:
        stamped["device"] = {**raw["device"], "uid": device}
    data = _encoder.encode(stamped)
    if len(data) > MAX_EVENT_BYTES:
        raise UntrustedDataError(f"an event of {len(data)} bytes is over the limit", check="event")
    return data


def decode(data: bytes) -> OcsfEvent:
    """Read an event back from an entry.

    Raises:
        UntrustedDataError: `event` the bytes are not an event.

    """
    try:
        return _decoder.decode(data)
    except MALFORMED as error:
        raise UntrustedDataError(f"not an event: {error}", check="event") from error
