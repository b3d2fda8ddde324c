"""Dagster components: one YAML file an export."""

from pipeline.components.index_export import IndexExport

__all__ = ["IndexExport"]
