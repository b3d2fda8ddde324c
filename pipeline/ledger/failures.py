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
