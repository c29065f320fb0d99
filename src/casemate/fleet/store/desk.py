"""Tables of the people's side: who came in by a provider, orders for many devices, answers kept, settings, mail."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint

from casemate.fleet.store.tables import serial_type, table

_ID: Final = String(36)
_NAME: Final = String(128)
EMAIL: Final = 254
"""RFC 5321: the longest address that can be delivered to."""

oidc_identity = table(  # somebody as their provider knows them
    "oidc_identity",
    Column("issuer", String(255), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("user_id", _ID, ForeignKey("user.id"), nullable=False),
    Column("mapped", Boolean, nullable=False),  # made by the mapping of roles, which goes on deciding the role
    Column("created", Float, nullable=False),
    Column("used", Float, nullable=False),
    Index("ix_oidc_identity_user", "user_id"),
)

idempotent_request = table(  # a request that must happen once, and what was answered
    "idempotent_request",
    Column("id", String(64), primary_key=True),  # SHA-256 over the token and the key
    Column("fingerprint", String(64), nullable=False),  # of method, path and body
    Column("expires", Float, nullable=False),
    Column("answer", LargeBinary),  # sealed under the token, which is not in the database; empty while it runs
    Index("ix_idempotent_request_expires", "expires"),
)

bulk = table(  # one order for many devices: what was shown is what is done
    "bulk",
    Column("id", String(32), primary_key=True),
    Column("action", String(16), nullable=False),
    Column("argument", _NAME, nullable=False, server_default=""),  # the group they move to
    Column("filter", Text, nullable=False),  # as it was asked for, in words
    Column("size", Integer, nullable=False),
    Column("left_out", Integer, nullable=False),  # devices of the filter that the action does not fit
    Column("state", String(16), nullable=False),  # shown | running | done
    Column("reason", String(200), nullable=False, server_default=""),
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("expires", Float, nullable=False),
    Column("confirmed", Float),
    Column("confirmed_by", _NAME),
    Index("ix_bulk_state", "state", "created"),
)

bulk_member = table(
    "bulk_member",
    Column("bulk_id", String(32), ForeignKey("bulk.id"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("device_id", _ID, nullable=False),
    Column("asset", _NAME, nullable=False),
    Column("outcome", String(16)),  # done | refused: it changed since; empty: not yet
    Index("ix_bulk_member_open", "bulk_id", "outcome", "position"),
)

fleet_setting = table(  # what a person set for every server (`fleet.shared_settings`)
    "fleet_setting",
    Column("name", String(32), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),  # under a key that is not in the database
    Column("changed", Float, nullable=False),
)

mail = table(  # what is to be sent, one recipient a row
    "mail",
    Column("id", serial_type, primary_key=True, autoincrement=True),
    Column("about", String(64), nullable=False),  # alert:ID, approval:ID: what is told once
    Column("recipient", String(EMAIL), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("body", Text, nullable=False),
    Column("created", Float, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt", Float, nullable=False, server_default="0"),
    Column("sent", Float),
    UniqueConstraint("about", "recipient"),
    Index("ix_mail_unsent", "sent", "next_attempt"),
)

mail_recipient = table(  # who is told of alerts
    "mail_recipient",
    Column("address", String(EMAIL), primary_key=True),
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
)
