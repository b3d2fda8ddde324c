"""Parting the files a store can hold from those it cannot, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from pipeline.errors import RecordRefused
from pipeline.sinks.records import FileRecords, matrix

T = TypeVar("T")


def sift(
    files: Iterable[FileRecords], checks: Sequence[Callable[[FileRecords], object]]
) -> tuple[list[FileRecords], list[RecordRefused]]:
    """The files every check lets pass, and the refusals of the others; a check refuses by raising RecordRefused."""

    def checked(file: FileRecords) -> FileRecords:
        for check in checks:
            check(file)
        return file

    return encode_all(files, checked)


def encode_all(files: Iterable[FileRecords], encode: Callable[[FileRecords], T]) -> tuple[list[T], list[RecordRefused]]:
    """Every file encoded, and the refusals of those that raise RecordRefused instead."""
    encoded, refused = [], []
    for file in files:
        try:
            encoded.append(encode(file))
        except RecordRefused as error:
            refused.append(error)
    return encoded, refused


def check_vectors(file: FileRecords) -> None:
    """Raises RecordRefused for a vector that no store could search."""
    if not np.isfinite(matrix(file.table["embedding"])).all():
        raise RecordRefused(file.file_id, "a vector holds NaN or infinity, which cannot be searched; embed the file again")
