"""Indexport: LlamaCloud Index V2 payloads into the databases you own.

Data flows one way: ``llama_cloud`` -> ``documents`` -> ``embedding`` -> ``sinks``, through the Parquet ``lake`` and the
``ledger`` of what is known of every file. Only ``orchestration``, ``components`` and ``definitions`` know Dagster.
"""
