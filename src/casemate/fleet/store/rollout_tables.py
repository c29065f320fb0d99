"""The tables of releases and rollouts; `tables` says what holds for all of them.

A rollout is one row that steward and people change under its `version`; what single devices did is in
`rollout_device`. `device_pick` is what the director tells a device, one row each, changed by `rollout.picks` alone.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
)

from casemate.fleet.store.tables import TENANT, metadata

_ID: Final = String(36)
_NAME: Final = String(128)
_SHORT: Final = String(16)
_DIGEST: Final = String(64)


def _table(name: str, *parts: Any) -> Table:
    tenant: Column[int] = Column("tenant_id", Integer, nullable=False, server_default=str(TENANT))
    return Table(name, metadata, *parts, tenant)


def _count(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default="0")


release_source = _table(  # one row: the repository whose metadata this server believes, and what it last saw of it
    "release_source",
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("place", Text, nullable=False),  # https://... or a directory of this host
    Column("root", LargeBinary, nullable=False),  # the first root a person gave
    Column("metadata", LargeBinary, nullable=False),  # python-tuf's cache, as JSON: file name -> text
    Column("expires", Float, nullable=False),  # of the first role that does
    Column("checked", Float, nullable=False),
    Column("fault", Text),  # why it was refused the last time
    CheckConstraint("id = 1", name="one"),
)

release = _table(  # a signed set that a channel offered when it was looked at
    "release",
    Column("id", _SHORT, primary_key=True),
    Column("channel", _NAME, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("content", _DIGEST, nullable=False),  # ChannelSet.content_digest: what a generation is
    Column("target_sha256", _DIGEST, nullable=False),
    Column("target_length", Integer, nullable=False),
    Column("members", LargeBinary, nullable=False),  # JSON
    Column("state", _SHORT, nullable=False),  # offered | stopped | superseded | yanked
    Column("expires", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("changed", Float, nullable=False),
    Index("ix_release_channel", "channel", "content", unique=True),
)

rollout = _table(
    "rollout",
    Column("id", _SHORT, primary_key=True),
    Column("release_id", _SHORT, nullable=False),
    Column("channel", _NAME, nullable=False),
    Column("content", _DIGEST, nullable=False),
    Column("last_good", _DIGEST, nullable=False, server_default=""),  # the last good content of these devices
    Column("group_name", _NAME),  # NULL: every device
    Column("state", _SHORT, nullable=False),
    Column("version", Integer, nullable=False),
    Column("terms", LargeBinary, nullable=False),  # JSON of rollout.terms.Terms
    Column("progress", LargeBinary, nullable=False),  # JSON of rollout.plan.Progress
    _count("batch"),
    _count("ceiling"),  # how many devices may have taken it by now
    _count("devices"),
    _count("offered"),
    _count("good"),
    _count("failed"),
    _count("silent"),
    _count("control"),
    _count("control_failed"),
    Column("verdict", _SHORT, nullable=False, server_default=""),  # offer | wait | stop | finish
    Column("why", Text, nullable=False, server_default=""),
    Column("roll_back", Boolean, nullable=False, server_default="0"),
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("approved", Float),
    Column("approved_by", _NAME),
    Column("started", Float),
    Column("looked", Float),
    Column("changed", Float, nullable=False),
    Column("ended", Float),
    Index("ix_rollout_state", "state", "created"),
    Index("ix_rollout_created", "created"),
)

rollout_device = _table(
    "rollout_device",
    Column("rollout_id", _SHORT, primary_key=True),
    Column("device_id", _ID, primary_key=True),
    Column("state", _SHORT, nullable=False),  # control | offered | taken | installed | good | failed | silent | absent
    Column("batch", Integer, nullable=False, server_default="0"),
    Column("changed", Float, nullable=False),  # when it came into its state
    Column("installed", Float),
    Column("why", Text, nullable=False, server_default=""),
    Index("ix_rollout_device_state", "rollout_id", "state", "changed"),
    Index("ix_rollout_device_device", "device_id"),
)

device_generation = _table(  # the newest signed word of a device about what it runs
    "device_generation",
    Column("device_id", _ID, primary_key=True),
    Column("content", _DIGEST, nullable=False),
    Column("outcome", _SHORT, nullable=False),  # good | failed
    Column("why", Text, nullable=False, server_default=""),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("hardware", _NAME, nullable=False, server_default=""),
    Column("first_token_ms", Float),
    Column("memory_mib", Float),
    Column("envelope", LargeBinary, nullable=False),
    Column("changed", Float, nullable=False),
    Index("ix_device_generation_speed", "device_id", "outcome", "first_token_ms"),  # ranked without reading envelopes
)

device_pick = _table(  # what the director says to a device
    "device_pick",
    Column("device_id", _ID, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("action", _SHORT, nullable=False),  # take | keep | back
    Column("rollout_id", _SHORT, nullable=False, server_default=""),
    Column("changed", Float, nullable=False),
    Index("ix_device_pick_rollout", "rollout_id", "action"),
)
