"""Hostile files: payload bytes, names, ids and metadata that have broken somebody's pipeline, each with what must come of it."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from typing import Any

from pipeline_tests.hostile.cloud import ServedFile

CAP = 8 * 1024 * 1024
"""``max_payload_bytes`` of these exports, so that too large is cheap to make."""
_MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Case:
    """``refused`` is a pattern of the recorded reason; ``None``: the file is stored and ``texts`` are in its records."""

    name: str
    file: ServedFile
    refused: str | None = None
    texts: tuple[str, ...] = ()
    pages: frozenset[int] | None = None
    """Page numbers that its records cite, where that is the point."""


def paged(*texts: str, **top: Any) -> bytes:
    """An honest payload of these pages."""
    return payload([{"page_number": number, "text": text} for number, text in enumerate(texts, start=1)], **top)


def payload(pages: list[Any], **top: Any) -> bytes:
    return json.dumps({"parse": {"pages": pages}, **top}).encode()


def _file(name: str, body: Any = None, **fields: Any) -> ServedFile:
    body = paged(f"The body of {name.replace('-', ' ')}.") if body is None else body
    return ServedFile(**{"id": f"dfl-{name}", "body": body, "display_name": f"{name}.pdf", **fields})


def refused_payloads() -> list[Case]:
    """Payloads that cannot be stored: each must be an error of its own file."""
    nested = b'{"parse": {"pages": [{"page_number": 1, "text": "x", "items": ' + b"[" * 50_000 + b"]" * 50_000 + b"}]}}"
    objects = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    bodies: dict[str, tuple[Any, str]] = {
        "deep-arrays": (nested, "nests deeper"),
        "deep-objects": (objects, "nests deeper"),
        "deep-but-below-the-parsers-limit": (payload([{"text": "x", "items": [_nested(150)]}]), "nests deeper"),
        "declared-too-large": (b" " * (CAP + 1), "max_payload_bytes"),
        "undeclared-too-large": ([b" " * _MEGABYTE] * 9, "max_payload_bytes"),
        "zip-bomb": (gzip.compress(b"\0" * (20 * _MEGABYTE), 1), "once decompressed"),
        "nested-zip-bomb": (gzip.compress(gzip.compress(b"[" * (20 * _MEGABYTE), 1)), "once decompressed"),
        "four-layers-of-gzip": (gzip.compress(gzip.compress(gzip.compress(gzip.compress(paged("x"))))), "not UTF-8"),
        "cut-gzip": (gzip.compress(paged("x" * 1000))[:-9], "cut short"),
        "utf-16": (paged("x").decode().encode("utf-16"), "not UTF-8"),
        "huge-integer": (b'{"parse": {"pages": [{"page_number": ' + b"9" * 10_000 + b', "text": "x"}]}}', "thousands of digits"),
        "nothing": (b"", "not JSON"),
        "a-list": (b"[]", "unknown shape"),
        "pages-are-numbers": (payload([1, 2]), "unknown shape"),
        "text-is-an-object": (payload([{"text": {"$gt": ""}}]), "unknown shape"),
        "page-without-text": (payload([{"page_number": 1}]), "unknown shape"),
    }
    cases = [Case(name, _file(name, body), refused=reason) for name, (body, reason) in bodies.items()]
    targets = {
        "metadata-service": ("http://169.254.169.254/latest/meta-data/", "private address"),
        "metadata-service-as-ipv6": ("http://[::ffff:169.254.169.254]/latest/", "private address"),
        "private-network": ("http://10.1.2.3/internal", "private address"),
        "decimal-address": ("http://2852039166/latest/meta-data/", "private address"),
        "local-file": ("file:///etc/passwd", "not an HTTP URL"),
    }
    return cases + [
        Case(name, _file(f"redirect-to-{name}", redirect=target), refused=reason) for name, (target, reason) in targets.items()
    ]


def _nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = {"x": value}
    return value


def odd_payloads() -> list[Case]:
    """Payloads that look wrong and are stored right."""
    repeated = [{"page_number": n, "text": f"part {i}"} for i, n in enumerate((3, 3, 1, 3))]
    unnumbered = [{"text": "first"}, {"page_number": None, "text": "second"}, {"page_number": -7, "text": "third"}]
    strange = [
        {"page_number": True, "text": "one"},
        {"page_number": 2**63, "text": "two"},
        {"page_number": 1e308, "text": "three"},
    ]
    escaped = b'{"parse": {"pages": [{"page_number": 1, "text": "nul \\u0000 and lone \\ud800 and \\udfff here"}]}}'
    raw_nul = b'{"parse": {"pages": [{"page_number": 1, "text": "x"}]}, "content_fingerprint_hash": "\\u0000\\ud800"}'
    unfinished = b'{"parse": {"pages": [{"page_number": 1, "text": "x", "items": [{"v": NaN}, {"v": 1e999}, {"v": -Infinity}]}]}}'
    duplicate = b'{"parse": {"pages": []}, "parse": {"pages": [{"page_number": 1, "text": "the last key counts"}]}}'
    proto = payload(
        [{"page_number": 1, "text": "proto", "__proto__": {"text": "no"}, "items": [{"__proto__": {"$where": "1"}, "a.b": 1}]}],
        **{"__proto__": {"parse": 1}, "constructor": {"prototype": {}}},
    )
    bidi = "price \u202e000,1\u202c \u2066a\u2069 zero\u200bwidth\u200d \ufeff join\u2060er \U000e0041"
    bidi += " e\u0301\u0327 \u0085 \u2028 end"
    sql = "'; DROP TABLE records; -- \" OR 1=1 \\' $$ {{7*7}} %s %(a)s ${HOME} \x1b[31m"
    return [
        Case("nul-and-lone-surrogates", _file("nul", escaped), texts=("nul \ufffd and lone \ufffd and \ufffd here",)),
        Case("nul-in-the-fingerprint", _file("fingerprint", raw_nul), texts=("x",)),
        Case("not-a-number-items", _file("nan-items", unfinished), texts=("x",)),
        Case("duplicate-keys", _file("duplicate-keys", duplicate), texts=("the last key counts",)),
        Case("prototype-keys", _file("proto", proto), texts=("proto",)),
        Case("bidi-and-zero-width", _file("bidi", paged(bidi)), texts=(bidi,)),
        Case("injection-in-the-text", _file("sql-text", paged(sql)), texts=(sql,)),
        Case("only-white-space", _file("blank", paged(" \n\t\u3000", "\u200b")), texts=("\u200b",), pages=frozenset({2})),
        Case("no-pages", _file("no-pages", payload([])), texts=()),
        Case(
            "duplicate-pages", _file("repeated", payload(repeated)), texts=("part 0", "part 1", "part 2"), pages=frozenset({1, 3})
        ),
        Case("missing-page-numbers", _file("unnumbered", payload(unnumbered)), texts=("first",), pages=frozenset({1, 2, 3})),
        Case("impossible-page-numbers", _file("numbers", payload(strange)), texts=("three",), pages=frozenset({1, 2, 3})),
    ]


def hostile_names() -> list[Case]:
    """Names, ids and metadata that aim at a file system, a query or a log."""
    names = (
        "../../../../etc/cron.d/evil", "/etc/passwd", "..\\..\\windows\\system32", "a/../../b", "C:\\x.pdf", "file:///etc/passwd",
        "'; DROP TABLE files; --", '" OR ""="', "x' OR '1'='1", "') OR true --", "{$gt: ''}", "$where", "__proto__", "%2e%2e%2f",
        "\u202egpj.exe", "line\nbreak\r\ttab", "nul\x00byte", "\ud800lone", "\x1b[31mred", "a" * 5000,
        "😀" * 300, " ", ".", "..", "~",
        "CON.pdf", "-rf", "*", "?x=1#y", "[red]markup[/red]", "{0}{config}", "a,b;c|d&e", "dfl-0...dfl-9",
    )  # fmt: skip
    ids = (
        "../../../../etc/cron.d/evil", "..", ".", "/etc/passwd", "a/b/../c", "..\\x", "%2e%2e%2fx", "~root",
        "-rf", "*", "{}", "$where",
        "dfl-'; DROP TABLE files; --", "dfl-x' OR '1'='1", 'dfl-"x" OR ""="', "dfl-') OR true --", "dfl-a,b",
        "dfl-a...b", "dfl-a|b", "__proto__",
        "dfl-é-日本-😀", "dfl-" + "x" * 400, "dfl-?x=1#y", "dfl-a:b", "dfl- space ", "__ASSET_PARTITION__",
        "0", "None",
    )  # fmt: skip
    metadata: tuple[dict[str, Any], ...] = (
        {
            "nan": float("nan"),
            "inf": float("inf"),
            "minus": float("-inf"),
            "big": 1e308,
            "tiny": 5e-324,
            "int": 2**63,
            "huge": 10**300,
        },
        {
            "__proto__": "x",
            "constructor": "y",
            "$where": "sleep(1000)",
            "a.b": 1,
            "a.b.c": "z",
            "$set": "q",
            "": "empty",
            " ": "blank",
        },
        {"id": "x", "tenant_id": "other", "export_config_id": "other", "parsed_directory_file_id": "dfl-0", "chunk_index": -1},
        {
            "_node_content": "{}",
            "_node_type": "X",
            "document_id": "x",
            "doc_id": "y",
            "ref_doc_id": "z",
            "context": "c",
            "text": "t",
        },
        {
            "vector": "v",
            "embedding": "e",
            "metadata": "m",
            "record_set_hash": "h",
            "content": "c",
            "file_name": "other.pdf",
            "_id": 1,
        },
        {
            "x' OR '1'='1": "y' OR '1'='1",
            'a" OR ""="': "b",
            "a`b": "c",
            "a]b": "d",
            "k\\": "v\\",
            "metadata.`x`": 1,
            "a->>'b'": 2,
        },
        {"nul\x00key": "nul\x00value", "lone\ud800": "lone\udfff", "\u202ekey": "\u202evalue", "new\nline": "a\nb\tc"},
        {"nested": {"a": {"b": [1, {"c": None}]}}, "mixed": [1, "a", None], "list": ["a", ""], "none": None, "true": True},
        {"k" * 1000: "v" * 20_000, "many": ["x"] * 2000},
        {str(n): n for n in range(1500)},
    )
    cases = [Case(f"name-{n}", _file(f"name-{n}", display_name=name), texts=("The body of",)) for n, name in enumerate(names)]
    cases += [Case(f"id-{n}", _file(f"id-{n}", id=name), texts=("The body of",)) for n, name in enumerate(ids)]
    return cases + [
        Case(f"metadata-{n}", _file(f"metadata-{n}", metadata=values), texts=("The body of",))
        for n, values in enumerate(metadata)
    ]
