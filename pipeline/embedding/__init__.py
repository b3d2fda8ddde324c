"""Embedding models behind one protocol, batch planning and vector reuse."""
