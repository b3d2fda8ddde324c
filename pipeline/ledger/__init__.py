"""What is known of every file of an export, in SQL: SQLite by default, PostgreSQL when shared."""

from pipeline.ledger.ledger import Ledger

__all__ = ["Ledger"]
