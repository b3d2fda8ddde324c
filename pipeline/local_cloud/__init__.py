"""A LlamaCloud-compatible server over a folder of documents, for development, the demo and tests.

What belongs here: the wire contract of LlamaCloud's Index V2 API as the ``llama-cloud`` SDK speaks it, a parser for local
documents, and the state behind them. It is a server: the rest of the project reaches it over HTTP, and asks one that it runs
itself for what it has skipped.
"""
