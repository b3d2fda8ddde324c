"""Stores no engine of which can be installed, as servers that speak their wire protocol."""
