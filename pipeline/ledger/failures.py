"""Failed attempts, as the history tells of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import sqlalchemy as sa

from pipeline.ledger import schema
from pipeline.ledger.models import FAILING
from pipeline.ledger.sql import rows_of


def own_failures(connection: sa.Connection, export: str, file_ids: Sequence[str]) -> Counter[str]:
    """How many of the failures in a row of these files, which have failed last, count towards parking them."""
    c = schema.history.c
    query = sa.select(c.file_id, c.details).where(c.export == export, c.event.in_(FAILING)).order_by(c.id)
    counts: Counter[str] = Counter()
    for file_id, details in rows_of(connection, query, c.file_id, file_ids):
        failure = json.loads(details)
        if failure["attempt"] == 1:
            counts[file_id] = 0
        counts[file_id] += failure.get("parks", True)
    return counts


def forget_reasons(connection: sa.Connection, export: str, file_ids: Sequence[str]) -> None:
    """Drop why these files have failed, which may quote them; that they have, and what counts towards parking them, stays."""
    c = schema.history.c
    query = sa.select(c.id, c.details).where(c.export == export, c.event.in_(FAILING))
    told = {row_id: json.loads(details) for row_id, details in rows_of(connection, query, c.file_id, file_ids)}
    kept = [
        {"_id": row_id, "_details": json.dumps({name: value for name, value in failure.items() if name != "reason"})}
        for row_id, failure in told.items()
    ]
    if kept:
        statement = sa.update(schema.history).where(c.id == sa.bindparam("_id")).values(details=sa.bindparam("_details"))
        connection.execute(statement, kept)
