"""Indexes and the one that exists from the first start, under ids that the same folder and index name always give."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass

from pipeline.local_cloud.cloud import Cloud
from pipeline.local_cloud.identity import random_uuid, stable_uuid
from pipeline.local_cloud.state import Row
from pipeline.local_cloud.sync import forget_files

_FIRST_INDEX = "first_index"


@dataclass(frozen=True, slots=True)
class NewIndex:
    """An index to create, with the ids it will have."""

    id: str
    export_config_id: str
    sync_config_id: str
    output_directory_id: str
    source_directory_id: str
    name: str
    description: str | None
    store_attachments: tuple[str, ...]

    @staticmethod
    def random(name: str, description: str | None, source_directory_id: str, store_attachments: tuple[str, ...]) -> NewIndex:
        """An index with fresh ids."""
        return NewIndex(
            id=f"idx-{random_uuid()}",
            export_config_id=f"exp-{random_uuid()}",
            sync_config_id=f"syn-{random_uuid()}",
            output_directory_id=f"dir-{random_uuid()}",
            source_directory_id=source_directory_id,
            name=name,
            description=description,
            store_attachments=store_attachments,
        )

    @staticmethod
    def first(address: str, name: str, store_attachments: tuple[str, ...]) -> NewIndex:
        """The index over the folder at ``address``; a new state directory gives the same ids, so sinks filled before stay
        valid, and another folder gives others, so that no sink takes the one's files for the other's."""
        return NewIndex(
            id=f"idx-{stable_uuid(address, name, 'index')}",
            export_config_id=f"exp-{stable_uuid(address, name, 'export')}",
            sync_config_id=f"syn-{stable_uuid(address, name, 'sync')}",
            output_directory_id=f"dir-{stable_uuid(address, name, 'output')}",
            source_directory_id=f"dir-{stable_uuid(address, name, 'source')}",
            name=name,
            description="Created by the local server over its folder of documents.",
            store_attachments=store_attachments,
        )


def ensure_first_index(cloud: Cloud) -> str | None:
    """Creates the folder's directory and index on the first start; returns the index's id unless it was deleted since."""
    settings = cloud.settings
    with cloud.state.transaction() as write:
        known = write.execute("SELECT value FROM setting WHERE name = ?", (_FIRST_INDEX,)).fetchone()
        if known is not None:
            row = write.execute('SELECT id FROM "index" WHERE id = ?', (known["value"],)).fetchone()
            return str(row["id"]) if row else None
        new = NewIndex.first(cloud.folder.address, settings.index_name, settings.store_attachments)
        write.execute(
            "INSERT INTO directory (id, name, type, description, follows_folder, created_at, updated_at)"
            " VALUES (?, ?, 'user', ?, 1, ?, ?)",
            (new.source_directory_id, settings.index_name, "Follows the folder of documents.", cloud.now, cloud.now),
        )
        _insert(write, new, cloud.now)
        write.execute("INSERT INTO setting VALUES (?, ?)", (_FIRST_INDEX, new.id))
        return new.id


def insert_index(cloud: Cloud, new: NewIndex) -> None:
    """Creates an index and its output directory; the first sync is the caller's to start."""
    with cloud.state.transaction() as write:
        _insert(write, new, cloud.now)


def delete_index(cloud: Cloud, index: Row) -> None:
    """Deletes an index with everything it produced; the source directory stays."""
    output = index["output_directory_id"]
    with cloud.state.transaction() as write:
        payloads = write.execute(
            "SELECT file_id FROM directory_file WHERE directory_id = ? AND file_id IS NOT NULL", (output,)
        ).fetchall()
        blobs = forget_files(write, [row["file_id"] for row in payloads])
        write.execute('DELETE FROM "index" WHERE id = ?', (index["id"],))
        write.execute("DELETE FROM directory WHERE id = ?", (output,))
    cloud.blobs.remove(blobs)


def _insert(write: sqlite3.Connection, new: NewIndex, now: str) -> None:
    write.execute(
        "INSERT INTO directory (id, name, type, created_at, updated_at) VALUES (?, ?, 'index', ?, ?)",
        (new.output_directory_id, f"{new.name} (parsed)", now, now),
    )
    write.execute(
        'INSERT INTO "index" (id, export_config_id, sync_config_id, name, description, source_directory_id,'
        " output_directory_id, store_attachments, metadata, created_at, updated_at)"
        " VALUES (:id, :export_config_id, :sync_config_id, :name, :description, :source_directory_id,"
        " :output_directory_id, :store_attachments, :metadata, :now, :now)",
        {
            **asdict(new),
            "store_attachments": json.dumps(sorted(new.store_attachments)),
            "metadata": json.dumps({"status": "building"}),
            "now": now,
        },
    )
