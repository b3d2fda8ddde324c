"""What fsspec's drivers of object stores do not tell."""

from __future__ import annotations

from typing import Any


def remove_folder(filesystem: Any, path: str) -> None:
    """Remove a folder with all it holds. Raises FileNotFoundError where there is none, PermissionError where some of it is there
    still: of keys that a bucket refuses to delete, in an answer that is a success, s3fs says nothing."""
    filesystem.rm(path, recursive=True)
    if left := filesystem.find(path):
        raise PermissionError(f"{left[0]} is still there, for the store refuses to delete it (S3: s3:DeleteObject)")
