"""Stores that hold the records: one protocol, one module a store, one registry line each."""
