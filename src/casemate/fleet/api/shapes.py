"""The shapes of `/api/v1`, from which its OpenAPI description is made."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from casemate.fleet.states import State

PRINTED: Final = r"^[^\x00-\x1f\x7f]*$"
"""No control characters: PostgreSQL stores no NUL, and a line is one line."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Reason = Annotated[str, Field(max_length=200, pattern=PRINTED)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str | None = None
    check: str | None = None


class Device(BaseModel):
    """A device as the list has it. Moments are seconds since the epoch."""

    id: str
    asset: str
    group: str
    state: str
    assurance: str
    certificate_expires: float | None
    last_seen: float | None
    reported: str | None
    agent: str | None
    generation: str | None
    clock_skew: float | None
    commands_waiting: int
    replaces: str | None
    created: float
    changed: float
    key: str


class DevicePage(BaseModel):
    """A page, and the `cursor` of the next one, absent at the end."""

    devices: list[Device]
    cursor: str | None = None


class DeviceDetail(Device):
    """A device with its certificates, commands and the audit entries of its asset tag."""

    certificates: list[dict[str, Any]]
    commands: list[dict[str, Any]]
    history: list[dict[str, Any]]
    returns: dict[str, Any] | None = None
    """Since when it asks to come back, its certificate having ended, and who said yes."""


class Order(_Closed):
    """What is asked of a device, and why; the reason goes into the audit log."""

    reason: Reason = ""


class Ordered(BaseModel):
    """The state after an order."""

    id: str
    state: str


class BulkWish(_Closed):
    """An order for every device that fits: `to_group` is where a move goes."""

    action: Literal["quarantine", "release", "revoke", "move"]
    state: State | None = None
    group: Name | Literal[""] = ""
    asset: Annotated[str, Field(max_length=128, pattern=PRINTED)] = ""
    package: Annotated[int, Field(ge=0, le=2**53)] | None = None
    to_group: Name | Literal[""] = ""
    reason: Annotated[str, Field(max_length=150, pattern=PRINTED)] = ""


class Confirmation(_Closed):
    """How many devices an order is for, as it was shown."""

    count: Annotated[int, Field(ge=1, le=2**31)]


class Bulk(BaseModel):
    """An order for many devices: what it would do, or how far it is. `sample`: the first assets."""

    id: str
    action: str
    group: str
    filter: str
    reason: str
    count: int
    left_out: int
    state: str
    created_by: str
    expires: float
    done: int
    refused: int
    sample: list[str]


class TokenRequest(_Closed):
    """An enrolment token that is wanted."""

    asset: Name
    group: Name | Literal[""] = ""
    hours: Annotated[int, Field(ge=1, le=2160)] = 24
    needs_approval: bool = False


class NewToken(BaseModel):
    """A token, shown once."""

    id: str
    token: str
    expires: float


class Rows(BaseModel):
    """Rows of one table, newest first, and the `cursor` of the next page."""

    items: list[dict[str, Any]]
    cursor: int | None = None


class Package(BaseModel):
    """One installed thing, and how many devices say that they have it."""

    id: int
    kind: str
    name: str
    version: str
    digest: str
    devices: int


class PackagePage(BaseModel):
    """A page, and the `cursor` of the next one, absent at the end."""

    packages: list[Package]
    cursor: str | None = None


class PackageDetail(BaseModel):
    """One package, and every version of it that devices have."""

    id: int
    kind: str
    name: str
    version: str
    digest: str
    versions: list[Package]


class Trend(BaseModel):
    """The fleet from `begin` to `end` in steps of `seconds`: averages of levels, sums of events, highest values."""

    span: str
    seconds: int
    begin: int
    end: int
    steps: list[dict[str, Any]]


class Setup(BaseModel):
    """How a server is set up: where it listens, which certificates end when, where alerts go, how long what is kept."""

    version: str
    fleet: str
    database: str
    root_key_here: bool
    listeners: list[dict[str, str]]
    certificates: list[dict[str, Any]]
    webhook: str
    mail: str
    sign_in: dict[str, Any] | None
    retention: dict[str, float]


class Evidence(BaseModel):
    """`path`: log-likelihood ratio after each device, `upper`: bad, `lower`: good; `comparisons`: p below `alpha`."""

    good: float
    bad: float
    lower: float
    upper: float
    path: list[dict[str, Any]]
    alpha: float
    comparisons: list[dict[str, Any]]
