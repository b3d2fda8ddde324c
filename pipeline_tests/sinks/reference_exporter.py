"""An exporter as somebody else would write it for the reference protocol: four methods and nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class JsonExporter:
    """Keeps rows in a JSON file, by chunk address."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def export(
        self,
        outputs: Sequence[Any],
        *,
        project_id: str,
        embeddings: list[list[float]] | None = None,
        embedding_model: str | None = None,
    ) -> int:
        rows = self.rows()
        for output, embedding in zip(outputs, embeddings or [], strict=True):
            address = f"{output.export_config_id}/{output.parsed_directory_file_id}/{output.chunk_index}"
            rows[address] = {
                "config": output.export_config_id,
                "file": output.parsed_directory_file_id,
                "chunk": output.chunk_index,
                "file_name": output.file_name,
                "metadata": dict(output.metadata),
                "content": output.content,
                "tenant": project_id,
                "model": embedding_model,
                "dimension": len(embedding),
            }
        self._path.write_text(json.dumps(rows))
        return len(outputs)

    async def delete_file(self, *, parsed_directory_file_id: str, export_config_id: str) -> None:
        await self.delete_files(parsed_directory_file_ids=[parsed_directory_file_id], export_config_id=export_config_id)

    async def delete_files(self, *, parsed_directory_file_ids: Sequence[str], export_config_id: str) -> None:
        kept = {
            address: row
            for address, row in self.rows().items()
            if row["config"] != export_config_id or row["file"] not in parsed_directory_file_ids
        }
        self._path.write_text(json.dumps(kept))

    async def list_snapshots(self, *, export_config_id: str, embedding_model: str | None = None) -> list[SimpleNamespace]:
        if embedding_model is None:
            raise AssertionError("the reference answers another model's index when the model is not passed")
        counts: dict[str, int] = {}
        for row in self.rows().values():
            if row["config"] == export_config_id and row["model"] == embedding_model:
                counts[row["file"]] = counts.get(row["file"], 0) + 1
        return [SimpleNamespace(parsed_directory_file_id=file, chunk_count=count) for file, count in counts.items()]

    def rows(self) -> dict[str, dict[str, Any]]:
        return json.loads(self._path.read_text()) if self._path.exists() else {}


class BareJsonExporter(JsonExporter):
    """Its snapshots have what is known of the reference's, and no more: which files are held."""

    async def list_snapshots(self, *, export_config_id: str, embedding_model: str | None = None) -> list[SimpleNamespace]:
        counted = await super().list_snapshots(export_config_id=export_config_id, embedding_model=embedding_model)
        return [SimpleNamespace(parsed_directory_file_id=item.parsed_directory_file_id) for item in counted]
