"""What a vector store shows of files that the docstore holds, for deep verification.

What belongs here: how a file is looked for with as few requests as LlamaIndex's interface allows, and when it counts as lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sinks.file_keys import FileKey, Generation
from pipeline.sinks.records import matrix

if TYPE_CHECKING:
    from pipeline.sinks.llama_index_documents import Address
    from pipeline.sinks.llama_index_stores import Nearest, Stores

    Vector = tuple[float, ...]
    Ask = Callable[[Vector, int], Nearest]

_NEAREST: Final = 16
_MORE: Final = 256


def unfound(stores: Stores, records: pa.Table, max_depth: int) -> frozenset[str]:
    """Files of these records whose first one the vector store does not hold, as far as it can be made to tell.

    One query of 16 results a file at most, fewer where files resemble each other. An approximate index may miss what it has: what
    that does not show is asked for by its id, in one request for 500, or, of a store that knows no ids, by a second query of 256.
    """
    firsts = records.filter(pc.equal(records["chunk_index"], 0))
    vectors = dict(zip(_addresses(firsts), map(tuple, matrix(firsts["embedding"]).tolist()), strict=True))
    ask = cache(stores.nearest)  # many files may begin alike
    suspects = _not_shown(ask, vectors, min(_NEAREST, max_depth))
    if not suspects:
        return frozenset()
    ids = {address: _node_id(address) for address in suspects}
    held = stores.held(list(ids.values()))
    if held is None:
        lost = [address for address in suspects if _is_lost(ask, address, vectors[address], min(_MORE, max_depth))]
    else:
        lost = [address for address in suspects if ids[address] not in held]
    return frozenset(address.key.file_id for address in lost)


def _addresses(firsts: pa.Table) -> list[Address]:
    from pipeline.sinks.llama_index_documents import Address

    names = ("tenant_id", "export_config_id", "parsed_directory_file_id", "record_set_hash")
    rows = zip(*(firsts[name].to_pylist() for name in names), strict=True)
    return [Address(FileKey(tenant, config, file_id), digest, 0) for tenant, config, file_id, digest in rows]


def _node_id(first: Address) -> str:
    (name,) = first.key.ids(Generation(first.record_set_hash, 1))
    return name


def _not_shown(ask: Ask, vectors: dict[Address, Vector], depth: int) -> list[Address]:
    seen: set[Address | None] = set()
    for address, vector in vectors.items():
        if address not in seen:
            seen.update(ask(vector, depth).addresses)
    return [address for address in vectors if address not in seen]


def _is_lost(ask: Ask, address: Address, vector: Vector, depth: int) -> bool:
    """Not where all that is found is equally near: then it may be one of more than could be asked for."""
    found = ask(vector, depth)
    return address not in found.addresses and not (found.alike and len(found.addresses) == depth)
