"""The tables. Moments are seconds since the epoch (float); ids of devices are UUIDs in text.

`tenant_id` stands in every table and is 1 everywhere for now: a second tenant needs no migration of the data. What a
check-in writes is narrow and apart (`device_seen`), because a wide row that changes every minute costs locks and
vacuum. Foreign keys only where a row makes no sense alone: each is a lock per insert.

Change a table here and in a new migration: a test compares both on SQLite and PostgreSQL.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

TENANT: Final = 1

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
_Serial: Final = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER PRIMARY KEY counts up by itself there
serial_type: Final = _Serial
_ID: Final = String(36)
_NAME: Final = String(128)


def table(name: str, *parts: Any) -> Table:
    """Return a table of ours: with the tenant in it. Tables of a noun of its own stand beside this module."""
    tenant: Column[int] = Column("tenant_id", Integer, nullable=False, server_default=str(TENANT))
    return Table(name, metadata, *parts, tenant)


_table = table  # as it is called in here


device = _table(
    "device",
    Column("id", _ID, primary_key=True),
    Column("asset", _NAME, nullable=False),
    Column("group_name", _NAME, nullable=False, server_default=""),
    Column("state", String(16), nullable=False),
    Column("enrolled_by", String(16), nullable=False),  # token | tpm
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
    Column("replaces", _ID),  # the device that carried this asset tag before
    Column("key_digest", String(64), nullable=False),  # SHA-256 of the SubjectPublicKeyInfo it enrols with
    Column("assurance", String(4), nullable=False, server_default="L0"),  # set by the verifier and nobody else
    Column("assurance_expires", Float, nullable=False, server_default="0"),
    Column("certificate_expires", Float),
    Column("command_sequence", BigInteger, nullable=False, server_default="0"),  # of the newest command, ever
    Column("commands_waiting", Integer, nullable=False, server_default="0"),
    Index("ix_device_asset", "asset"),
    Index("ix_device_state", "state", "asset", "id"),
    Index("ix_device_listing", "asset", "id"),
    Index("ix_device_group", "group_name", "asset", "id"),
    Index("ix_device_expires", "certificate_expires"),
)

device_seen = _table(
    "device_seen",
    Column("device_id", _ID, primary_key=True),
    Column("last_seen", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("agent", _NAME, nullable=False, server_default=""),
    Column("generation", _NAME, nullable=False, server_default=""),
    Column("clock_skew", Float, nullable=False, server_default="0"),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    Index("ix_device_seen_last", "last_seen"),
)

health_rollup = _table(
    "health_rollup",
    Column("device_id", _ID, primary_key=True),
    Column("bucket", BigInteger, primary_key=True),  # start of the five minutes
    Column("samples", Integer, nullable=False),
    Column("temperature_max", Float, nullable=False),
    Column("memory_max", BigInteger, nullable=False),
    Column("load_max", Float, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("refusals", BigInteger, nullable=False),
    Column("integrity_failures", BigInteger, nullable=False),
    Index("ix_health_rollup_bucket", "bucket"),
)

device_cert = _table(
    "device_cert",
    Column("serial", String(40), primary_key=True),  # lower-case hex
    Column("device_id", _ID, ForeignKey("device.id"), nullable=False),
    Column("state", String(16), nullable=False),  # active | superseded | revoked
    Column("not_before", Float, nullable=False),
    Column("not_after", Float, nullable=False),
    Column("certificate", LargeBinary, nullable=False),  # DER
    Index("ix_device_cert_device", "device_id"),
)

device_return = _table(  # a device whose certificate has ended and that asks to come back without a TPM
    "device_return",
    Column("device_id", _ID, ForeignKey("device.id"), primary_key=True),
    Column("asked", Float, nullable=False),
    Column("seen", Float, nullable=False),  # when it asked last
    Column("approved", Float),
    Column("approved_by", _NAME),
)

enrolment_token = _table(
    "enrolment_token",
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 of the whole token
    Column("asset", _NAME, nullable=False),
    Column("group_name", _NAME, nullable=False, server_default=""),
    Column("device_id", _ID),  # a new certificate for this device, not a new device
    Column("needs_approval", Boolean, nullable=False, server_default="0"),
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("expires", Float, nullable=False),
    Column("state", String(16), nullable=False),  # open | used | revoked
    Column("used_by", _ID),
    Index("ix_enrolment_token_state", "state", "created"),
)

command = _table(
    "command",
    Column("id", String(32), primary_key=True),
    Column("device_id", _ID, ForeignKey("device.id"), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("verb", String(32), nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False),  # waiting | done | failed | expired
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("expires", Float, nullable=False),
    Column("delivered", Float),
    Column("finished", Float),
    Column("acknowledgement", LargeBinary),
    UniqueConstraint("device_id", "sequence"),
    Index("ix_command_waiting", "device_id", "state"),
)

change = _table(  # what running servers must hear of (`fleet.changes`)
    "change",
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("device_id", _ID, nullable=False),
    Column("kind", String(16), nullable=False),  # state | command
    Column("created", Float, nullable=False),
    Column("xact", BigInteger, nullable=False, server_default="0"),  # PostgreSQL's number of the transaction
    Index("ix_change_created", "created"),
    Index("ix_change_xact", "xact"),
)

attest_policy = _table(
    "attest_policy",
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("name", _NAME, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),  # the signed bytes
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
    UniqueConstraint("name", "version"),
)

attest_nonce = _table(
    "attest_nonce",
    Column("digest", String(64), primary_key=True),
    Column("device_id", _ID, nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("expires", Float, nullable=False),
    Column("context", LargeBinary),  # what the second step of an exchange needs again
    Index("ix_attest_nonce_expires", "expires"),
)

attest_result = _table(
    "attest_result",
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("device_id", _ID, nullable=False),
    Column("status", String(16), nullable=False),  # affirming | warning | contraindicated | none
    Column("assurance", String(4), nullable=False),
    Column("reasons", Text, nullable=False, server_default="[]"),  # JSON: one text per reason
    Column("policy", _NAME, nullable=False, server_default=""),
    Column("policy_version", BigInteger, nullable=False, server_default="0"),
    Column("evidence_digest", String(64), nullable=False),
    Column("evidence", LargeBinary),
    Column("generation", String(64), nullable=False, server_default=""),  # the content digest that proven events name
    Column("ear", Text),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Index("ix_attest_result_device", "device_id", "created"),
)

key_grant = _table(
    "key_grant",
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("device_id", _ID, nullable=False),
    Column("model", _NAME, nullable=False),
    Column("granted", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("result_id", BigInteger),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Index("ix_key_grant_device", "device_id", "created"),
    Index("ix_key_grant_created", "created"),
)

ek_allow = _table(
    "ek_allow",
    Column("digest", String(64), primary_key=True),  # SHA-256 of the EK's SubjectPublicKeyInfo
    Column("asset", _NAME, nullable=False),
    Column("group_name", _NAME, nullable=False, server_default=""),
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
)

tpm_identity = _table(
    "tpm_identity",
    Column("device_id", _ID, primary_key=True),
    Column("ek_digest", String(64), nullable=False, unique=True),
    Column("ek_public", LargeBinary, nullable=False),  # TPMT_PUBLIC
    Column("ak_public", LargeBinary, nullable=False),  # TPMT_PUBLIC
    Column("ek_trusted", Boolean, nullable=False),  # its certificate chains to an allowed vendor root
    Column("created", Float, nullable=False),
)

tpm_maker = _table(  # who may vouch for a TPM: authorities that issue endorsement certificates
    "tpm_maker",
    Column("digest", String(64), primary_key=True),  # SHA-256 of the certificate
    Column("name", String(256), nullable=False),
    Column("certificate", LargeBinary, nullable=False),  # DER
    Column(
        "software", Boolean, nullable=False, server_default="0"
    ),  # tests only: TPMs that are programs count as chips
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
)

model_key = _table(  # keys of models that only attested devices get
    "model_key",
    Column("model", _NAME, primary_key=True),
    Column("key_id", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),  # by the broker's key, which is not in the database
    Column("min_assurance", String(4), nullable=False),
    Column("lease_s", Integer, nullable=False),
    Column("licence_ends", Float),
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
)

package_set = _table(
    "package_set",
    Column("digest", String(64), primary_key=True),
    Column("items", LargeBinary, nullable=False),  # canonical JSON
    Column("count", Integer, nullable=False),
    Column("created", Float, nullable=False),
)

device_packages = _table(
    "device_packages",
    Column("device_id", _ID, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("changed", Float, nullable=False),
    Index("ix_device_packages_digest", "digest"),
)

package = _table(  # one thing that some device has installed, once however many sets hold it
    "package",
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("name", _NAME, nullable=False),
    Column("version", _NAME, nullable=False),
    Column("digest", String(64), nullable=False, server_default=""),
    UniqueConstraint("name", "kind", "version", "digest"),
    Index("ix_package_kind", "kind", "name", "version", "id"),
    Index("ix_package_digest", "digest"),
)

package_member = _table(
    "package_member",
    Column("package_id", BigInteger, primary_key=True),
    Column("set_digest", String(64), primary_key=True),
    Index("ix_package_member_set", "set_digest"),
)

fleet_sample = _table(  # how the whole fleet was, five minutes by five minutes: what a chart can read at once
    "fleet_sample",
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),  # start of the five minutes
    Column("enrolled", Integer, nullable=False),
    Column("online", Integer, nullable=False),
    Column("attested", Integer, nullable=False),
    Column("degraded", Integer, nullable=False),
    Column("quarantined", Integer, nullable=False),
    Column("alerts", Integer, nullable=False),
    Column("keys_granted", Integer, nullable=False),
    Column("keys_refused", Integer, nullable=False),
    Column("integrity_failures", BigInteger, nullable=False),
    Column("temperature_max", Float),  # no device has a thermometer: nothing
    Column("load_max", Float),
    Column("first_token_median", Float),  # ms, of the devices that measured it with what they run: nothing, if none did
    Column("first_token_p95", Float),
)

journal_checkpoint = _table(
    "journal_checkpoint",
    Column("device_id", _ID, primary_key=True),
    Column("origin", _NAME, nullable=False),
    Column("vkey", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("note", LargeBinary, nullable=False),  # the newest cosigned one
    Column("changed", Float, nullable=False),
    Column("fault", Text),  # why the history is no longer believed
)

audit_event = _table(  # the fleet's own log: `seq` is the index in a tlog, `entry` its exact bytes
    "audit_event",
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("created", Float, nullable=False),
    Column("actor", _NAME, nullable=False),
    Column("action", String(64), nullable=False),
    Column("device_id", _ID),
    Column("asset", _NAME),
    Column("entry", LargeBinary, nullable=False),
    Index("ix_audit_event_device", "device_id", "seq"),
    Index("ix_audit_event_asset", "asset", "seq"),
    Index("ix_audit_event_action", "action", "seq"),
)

audit_tree = _table(  # one row: what an appender needs, and the newest checkpoint
    "audit_tree",
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("levels", LargeBinary, nullable=False),
    Column("checkpoint", LargeBinary, nullable=False),
    CheckConstraint("id = 1", name="one"),
)

alert = _table(
    "alert",
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("kind", String(32), nullable=False),
    Column("device_id", _ID, nullable=False, server_default=""),
    Column("asset", _NAME, nullable=False, server_default=""),
    Column("detail", Text, nullable=False),
    Column("opened", Float, nullable=False),
    Column("closed", Float),
    Column("sent", Float),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt", Float, nullable=False, server_default="0"),
    Column("mailed", Float),
    Index("ix_alert_mailed", "mailed"),
    Index("ix_alert_open", "closed", "kind", "device_id"),
    Index("ix_alert_unsent", "sent", "next_attempt"),
)

user = _table(
    "user",
    Column("id", _ID, primary_key=True),
    Column("name", _NAME, nullable=False, unique=True),
    Column("role", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # invited | active | disabled
    Column("created", Float, nullable=False),
    Column("email", String(254)),  # lower case; where approvals are told, and who they are to a sign-in provider
    Index("ix_user_email", "email", unique=True),
)

passkey = _table(
    "passkey",
    Column("credential_id", String(1400), primary_key=True),  # base64url
    Column("user_id", _ID, ForeignKey("user.id"), nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("sign_count", BigInteger, nullable=False),
    Column("name", _NAME, nullable=False),
    Column("created", Float, nullable=False),
    Column("used", Float),
    Index("ix_passkey_user", "user_id"),
)

session = _table(
    "session",
    Column("digest", String(64), primary_key=True),  # SHA-256 of the cookie
    Column("user_id", _ID, ForeignKey("user.id"), nullable=False),
    Column("created", Float, nullable=False),
    Column("used", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("proved", Float, nullable=False),  # last time the person showed a passkey
    Index("ix_session_expires", "expires"),
)

api_token = _table(
    "api_token",
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", _NAME, nullable=False),
    Column("role", String(32), nullable=False),
    Column("user_id", _ID),
    Column("created", Float, nullable=False),
    Column("created_by", _NAME, nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked", Float),
)

invitation = _table(  # the one-time link of the first admin, and of one who lost every passkey
    "invitation",
    Column("digest", String(64), primary_key=True),
    Column("role", String(32), nullable=False),
    Column("user_name", _NAME, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
)

ceremony = _table(  # something a browser was sent to do (a passkey, a provider); its answer deletes it
    "ceremony",
    Column("digest", String(64), primary_key=True),  # SHA-256 of the handle in the cookie
    Column("purpose", String(16), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("challenge", LargeBinary, nullable=False),
    Column("context", LargeBinary),  # what the end of it needs again
    Column("expires", Float, nullable=False),
    Index("ix_ceremony_expires", "expires"),
)

approval = _table(  # what one person asked for and another must agree to
    "approval",
    Column("id", String(32), primary_key=True),
    Column("action", String(32), nullable=False),
    Column("device_id", _ID, nullable=False),
    Column("asked_by", _ID, nullable=False),
    Column("asked", Float, nullable=False),
    Column("not_before", Float, nullable=False),  # one person alone: carried out only after this
    Column("expires", Float, nullable=False),
    Column("state", String(16), nullable=False),  # asked | agreed | cancelled | done
    Column("agreed_by", _ID),
    Column("agreed", Float),
    Index("ix_approval_state", "state", "asked"),
)
