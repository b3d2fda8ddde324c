"""A reader of the non-atomic sink that looks before every request, where a replace is at its most incomplete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from pipeline_tests.emulators.qdrant import QdrantEmulator, Request


class Watcher:
    """Notes every moment at which a protected file had no complete version left."""

    def __init__(self, emulator: QdrantEmulator) -> None:
        self._emulator = emulator
        self._protected: set[str] = set()
        self.violations: list[str] = []
        emulator.before = self._look

    def protect(self, file_ids: Collection[str]) -> None:
        """From now on one version of each of these files must always be there, whole."""
        self._protected = set(file_ids)

    def _look(self, request: Request) -> None:
        for file_id in self._protected - self._complete():
            self.violations.append(f"{file_id} had no complete version before a request to {request.operation}")

    def _complete(self) -> set[str]:
        """Files of which some version has as many records as each of its records says."""
        found: set[str] = set()
        for collection in list(self._emulator.engine.collections.values()):
            versions: dict[tuple[str, str], list[int]] = defaultdict(list)
            for point in list(collection.points.values()):
                payload = point.payload
                if "chunk_count" in payload:
                    key = (payload["parsed_directory_file_id"], payload["record_set_hash"])
                    versions[key].append(payload["chunk_count"])
            found |= {file_id for (file_id, _), counts in versions.items() if set(counts) == {len(counts)}}
        return found
