"""Parquet files between the stages, one a file and dataset, on any fsspec URL."""

from pipeline.lake.lake import Lake

__all__ = ["Lake"]
