"""A checksum of a whole Parquet file, inside it.

What belongs here: its place, its making and its comparison. Parquet's own checksums are of pages: names, types and metadata, a
twentieth of a small file, lie outside of them.

It stands between the last page and the footer, where no reader looks: readers go by the offsets in the footer.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np

PLACE: Final = b"ixcr" + bytes(4)
"""What is written where the checksum will stand."""
_MARK: Final = PLACE[:4]
_TAIL: Final = 8
"""Of a Parquet file: the footer's length in four bytes and ``PAR1``."""
_BLOCK: Final = 65_536


def put_checksum(parquet: memoryview) -> None:
    """Fill the place that was left in this file."""
    at = _footer(parquet) - len(PLACE)
    parquet[at + len(_MARK) : at + len(PLACE)] = _checksum(parquet, at)


def is_damaged(parquet: memoryview) -> bool:
    """Whether the file is not the one its checksum was made of; of one without, as they were written before, nothing is known."""
    at = _footer(parquet) - len(PLACE)
    if at < 0 or parquet[at : at + len(_MARK)] != _MARK:
        return False
    return parquet[at + len(_MARK) : at + len(PLACE)] != _checksum(parquet, at)


def _footer(parquet: memoryview) -> int:
    """Where it begins; anywhere, in a file that is cut."""
    return len(parquet) - _TAIL - int.from_bytes(parquet[-_TAIL : 4 - _TAIL], "little")


def _checksum(parquet: memoryview, at: int) -> bytes:
    """CRC-32 of all but its place, which begins ``at``. Of the whole blocks before that it is a CRC of the sums of their 64-bit
    words, which any altered word alters: one of all bytes would take a tenth of what writing and reading vectors takes."""
    summed = at - at % _BLOCK
    sums = np.frombuffer(parquet[:summed], "<u8").reshape(-1, _BLOCK // 8).sum(axis=1) if summed else b""
    rest = zlib.crc32(parquet[summed:at], zlib.crc32(sums))
    return zlib.crc32(parquet[at + len(PLACE) :], rest).to_bytes(4, "little")
