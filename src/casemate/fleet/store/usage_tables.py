"""Tables of usage reports: `fleet.usage.reports` fills them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Integer, String

from casemate.fleet.store.tables import table

_ID: Final = String(36)
_NAME: Final = String(128)

usage_sum = table(  # what usage reports add up to; no row is about one device
    "usage_sum",
    Column("period", Integer, primary_key=True, autoincrement=False),  # of thirty days, from the epoch
    Column("version", Integer, primary_key=True, autoincrement=False),  # of the questions
    Column("question", String(32), primary_key=True),
    Column("group_name", _NAME, primary_key=True),
    Column("answer", Integer, primary_key=True, autoincrement=False),
    Column("reports", BigInteger, nullable=False),
    Column("ones", BigInteger, nullable=False),  # reports that have the bit of this answer
)

usage_reporter = table(  # who reported about a period, so that nobody does twice; never what
    "usage_reporter",
    Column("period", Integer, primary_key=True, autoincrement=False),
    Column("device_id", _ID, primary_key=True),
)
