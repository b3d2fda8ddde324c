"""Which files people mean."""

from __future__ import annotations

from collections.abc import Container
from functools import cached_property, partial
from typing import TYPE_CHECKING
from unicodedata import normalize

from pipeline.errors import ConfigError

if TYPE_CHECKING:  # for `indexport --help`, which imports no ledger
    from pipeline.stages.export import Export

_nfc = partial(normalize, "NFC")


class KnownFiles:
    """Which files of an export an id or a name means. The ledger is read once, when the first is looked up."""

    def __init__(self, export: Export) -> None:
        self._export = export

    @cached_property
    def _ids(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for file_id, row in self._export.ledger.files().items():
            for name in {_nfc(file_id), _nfc(row.display_name)}:
                found.setdefault(name, []).append(file_id)
        return found

    def ids_of(self, file: str) -> list[str]:
        """Files of this id or name, whether its letters are composed or, as macOS writes them, not: who erases a file by its name
        cannot see which. Raises ConfigError when there are none."""
        if found := self._ids.get(_nfc(file)):
            return found
        told = f"no file of {self._export.name!r} has the id or name {file!r}"
        raise ConfigError(f"{told}; one that has left the directory is known by its id alone")

    def unerased_ids_of(self, file: str, tombstones: Container[str]) -> list[str]:
        """``ids_of`` without what is erased. Raises ConfigError when nothing else has that name: what is erased is named by its
        id, for a file of another time may have had the same name."""
        found = self.ids_of(file)
        unerased = [file_id for file_id in found if file_id not in tombstones]
        if not unerased:
            raise ConfigError(f"{file!r} is erased; to let it return, give its id: indexport release {' '.join(found)}")
        return unerased

    def ever_known(self, file: str) -> list[str]:
        """``ids_of``, and a file that is gone by its id: its history stays. What is not UTF-8 is no id a database could hold."""
        is_text = not any("\ud800" <= letter <= "\udfff" for letter in file)
        return [file] if is_text and self._export.ledger.history(file) else self.ids_of(file)
