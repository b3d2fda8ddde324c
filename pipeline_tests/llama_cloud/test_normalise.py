import gzip
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.documents.models import Attachment
from pipeline.errors import PayloadError
from pipeline.llama_cloud.digests import pages_digest
from pipeline.llama_cloud.normalise import normalise_payload
from pipeline_tests.llama_cloud.samples import FILE, FORM_A, FORM_B, FORM_C, body, variant


def pages_of(*entries: dict[str, Any], **rest: Any) -> bytes:
    return body({"parse": {"pages": list(entries), **rest}})


def test_pages_under_parse_keep_text_header_footer_items_and_file_attachments() -> None:
    payload = normalise_payload(body(FORM_A), FILE)
    assert [(page.page_number, page.text, page.header, page.footer) for page in payload.pages] == [
        (1, "# Revenue\n\nIt grew.", "ACME", "Page 1"),
        (2, "| EU | 3 |", None, None),
    ]
    assert [item["type"] for item in payload.pages[0].items] == ["heading"]
    assert payload.attachments == (Attachment("screenshots/page_1.jpg", "dfl-0001", "screenshot"),)
    assert payload.content_fingerprint_hash == "9f2c"
    assert payload.source_modified_at == datetime(2026, 11, 18, 9, 30, 0, 123000, tzinfo=UTC)
    assert payload.failed_pages == ()


def test_the_sdk_parse_result_shape_prefers_markdown_and_reports_failed_pages() -> None:
    payload = normalise_payload(body(FORM_B), FILE)
    assert [(page.page_number, page.text, page.header) for page in payload.pages] == [
        (1, "# Revenue\n\nIt grew.", "ACME"),
        (3, "| EU | 3 |", None),
    ]
    assert payload.failed_pages == (2,)
    assert payload.pages[0].items[0]["level"] == 1
    assert payload.content_fingerprint_hash == "nested"


def test_a_parse_result_with_text_pages_only_is_read() -> None:
    payload = normalise_payload(body({"parse": {"text": {"pages": [{"page_number": 1, "text": "plain"}]}}}), FILE)
    assert [page.text for page in payload.pages] == ["plain"]


def test_parse_may_be_the_list_of_pages() -> None:
    payload = normalise_payload(body(FORM_C), FILE)
    assert [page.page_number for page in payload.pages] == [1, 2]
    assert payload.content_fingerprint_hash == "c"


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_gzip_is_undone(layers: int) -> None:
    stored = body(FORM_A)
    for _ in range(layers):
        stored = gzip.compress(stored)
    assert normalise_payload(stored, FILE) == normalise_payload(body(FORM_A), FILE)


def test_gzip_of_several_members_is_read_whole() -> None:
    stored = body(FORM_A)
    assert normalise_payload(gzip.compress(stored[:50]) + gzip.compress(stored[50:]), FILE).pages


def test_a_byte_order_mark_is_ignored() -> None:
    assert normalise_payload(b"\xef\xbb\xbf" + body(FORM_A), FILE) == normalise_payload(body(FORM_A), FILE)


def test_a_payload_without_pages_is_valid_and_has_a_fingerprint() -> None:
    payload = normalise_payload(pages_of(), FILE)
    assert payload.pages == ()
    assert payload.content_fingerprint_hash == pages_digest(())


def test_null_texts_are_empty_and_text_stands_in_for_markdown_that_is_empty() -> None:
    texts: list[dict[str, Any]] = [
        {"text": None},
        {"text": "t", "markdown": None},
        {"text": "t", "markdown": ""},
        {"text": "t", "markdown": "# t"},
    ]
    stored = pages_of(*({"page_number": number, **text} for number, text in enumerate(texts, start=1)))
    assert [page.text for page in normalise_payload(stored, FILE).pages] == ["", "t", "t", "# t"]


def test_a_payload_whose_every_page_has_failed_is_refused() -> None:
    failed = [{"page_number": number, "success": False, "error": "time-out"} for number in (1, 2)]
    with pytest.raises(PayloadError, match=r"could not parse any of the 2 pages of 'q3\.pdf'"):
        normalise_payload(pages_of(*failed), FILE)
    assert normalise_payload(pages_of(*failed, {"page_number": 3, "text": ""}), FILE).failed_pages == (1, 2)


def test_pages_without_numbers_are_numbered_by_position() -> None:
    payload = normalise_payload(pages_of({"text": "a"}, {"text": "b", "page_number": None}, {"text": "c"}), FILE)
    assert [(page.page_number, page.text) for page in payload.pages] == [(1, "a"), (2, "b"), (3, "c")]


@pytest.mark.parametrize("unusable", [0, -1, True, "7", 1.5, 2**40, None])
def test_an_unusable_page_number_continues_from_the_page_before(unusable: object) -> None:
    payload = normalise_payload(pages_of({"page_number": 6, "text": "a"}, {"page_number": unusable, "text": "b"}), FILE)
    assert [(page.page_number, page.text) for page in payload.pages] == [(6, "a"), (7, "b")]


def test_pages_come_out_in_page_order() -> None:
    payload = normalise_payload(pages_of({"page_number": 2, "text": "b"}, {"page_number": 1, "text": "a"}), FILE)
    assert [page.text for page in payload.pages] == ["a", "b"]


def test_pages_with_the_same_number_are_merged_without_losing_anything() -> None:
    attachment = {"attachment_name": "items/1.json", "source_id": "s", "type": "items"}
    stored = pages_of(
        {"page_number": 1, "text": "a", "header": "H", "footer": "F", "items": [{"type": "text"}]},
        {"page_number": 1, "text": "b", "header": "H2", "footer": "F", "items": [{"type": "table"}], "attachments": [attachment]},
    )
    (page,) = normalise_payload(stored, FILE).pages
    assert (page.text, page.header, page.footer) == ("a\n\nb", "H\nH2", "F")
    assert [item["type"] for item in page.items] == ["text", "table"]
    assert page.attachments == (Attachment("items/1.json", "s", "items"),)


def test_a_failed_page_that_also_succeeded_is_not_reported_as_failed() -> None:
    stored = pages_of({"page_number": 1, "success": False, "error": "x"}, {"page_number": 1, "text": "retry", "success": True})
    payload = normalise_payload(stored, FILE)
    assert payload.failed_pages == ()
    assert [page.text for page in payload.pages] == ["retry"]


def test_flat_item_lists_go_to_the_page_they_name_or_the_first() -> None:
    stored = body(
        {
            "parse": {"pages": [{"page_number": 2, "text": "a"}, {"page_number": 3, "text": "b"}], "items": [{"type": "x"}]},
            "items": [{"type": "y", "page_number": 3}, {"type": "z", "page_number": 9}, "not an item"],
        }
    )
    payload = normalise_payload(stored, FILE)
    assert [[item["type"] for item in page.items] for page in payload.pages] == [["x"], ["y"]]


def test_attachments_go_to_the_page_they_name_or_the_file_and_their_defaults_are_the_vendors() -> None:
    stored = body(
        {
            "parse": {
                "pages": [{"page_number": 1, "text": "a"}],
                "attachments": [{"attachment_name": "a.jpg", "page_number": 1}],
            },
            "attachments": [{"attachment_name": "b.jpg"}, {"attachment_name": "b.jpg"}, {"name": "no"}, 3],
        }
    )
    payload = normalise_payload(stored, FILE)
    assert payload.pages[0].attachments == (Attachment("a.jpg", FILE.id, "attachment"),)
    assert payload.attachments == (Attachment("b.jpg", FILE.id, "attachment"),)


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"parse": {"pages": [], "content_fingerprint_hash": "h", "source_modified_at": "2026-01-01"}},
        {"metadata": {"content_fingerprint_hash": "h", "source_modified_at": "2026-01-01T00:00:00"}},
        {"provenance": {"content_fingerprint_hash": "h", "source_modified_at": "2026-01-01T01:00:00+01:00"}},
        {"source": {"content_fingerprint_hash": "h", "source_modified_at": 1767225600}},
        {"parse": {"pages": [], "source": {"content_fingerprint_hash": "h", "source_modified_at": 1767225600000}}},
    ],
)
def test_provenance_is_found_wherever_it_is(where: dict[str, Any]) -> None:
    root = {"parse": {"pages": []}} | (where or {"content_fingerprint_hash": "h", "source_modified_at": "2026-01-01T00:00:00Z"})
    payload = normalise_payload(body(root), FILE)
    assert payload.content_fingerprint_hash == "h"
    assert payload.source_modified_at == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("useless", ["yesterday", "", None, True, [], 1e300, "0001-01-01T00:00:00+10:00"])
def test_provenance_falls_back_to_the_listing_and_our_own_hash(useless: object) -> None:
    root = variant(FORM_A) | {"source_modified_at": useless, "content_fingerprint_hash": None}
    payload = normalise_payload(body(root), FILE)
    assert payload.source_modified_at == datetime(2026, 11, 20, 10, 3, 40, 123000, tzinfo=UTC)
    assert payload.content_fingerprint_hash == pages_digest(payload.pages)


def test_without_any_moment_the_source_time_is_unknown() -> None:
    root = variant(FORM_A, source_modified_at=None)
    assert normalise_payload(body(root), replace(FILE, updated_at=None)).source_modified_at is None


def test_nul_lone_surrogates_and_non_numbers_are_replaced() -> None:
    stored = (
        b'{"parse": {"pages": [{"text": "a\\u0000b\\ud800c\\ud83d\\ude00", "items": [{"x": NaN, "y": -Infinity, "z": 1e999,'
        b' "\\udfff": "\\u0000"}]}]}, "content_fingerprint_hash": "h\\u0000"}'
    )
    payload = normalise_payload(stored, FILE)
    assert payload.pages[0].text == "a\ufffdb\ufffdc\U0001f600"
    assert payload.pages[0].items == ({"x": None, "y": None, "z": None, "\ufffd": "\ufffd"},)
    assert payload.content_fingerprint_hash == "h\ufffd"


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (b"", "not JSON"),
        (b"%PDF-1.7 ...", "looks like a PDF"),
        (b"PK\x03\x04\xff\xff", "ZIP or Office"),
        (b"<html>", "HTML"),
        (b"\x80\x81", "UTF-8"),
        (b'{"parse": ', "not JSON"),
        (b"\x1f\x8b\x08corrupt", "gzip"),
        (gzip.compress(body(FORM_A), mtime=0)[:-10], "cut short"),
        (b"[" * 200_000, "nests deeper"),
        (b'{"parse": {"pages": [{"text": "", "items": [' + b"[" * 120 + b"]" * 120 + b"]}]}}", "nests deeper"),
        (b'{"parse": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"[]", "not a JSON object"),
        (b"{}", "no key 'parse'"),
        (b'{"parse": null}', "neither an object nor a list"),
        (b'{"parse": {"markdown_full": "x"}}', "no list of pages"),
        (b'{"parse": ["page one"]}', "entry 1 of its pages is not an object"),
        (b'{"parse": [{"page_number": 1}]}', "neither 'text' nor 'markdown'"),
        (b'{"parse": [{"text": 1}]}', "text that is not a string"),
        (b'{"parse": [{"text": "", "header": []}]}', "header that is not a string"),
    ],
)
def test_anything_else_is_refused_with_its_name_and_the_remedy(stored: bytes, says: str) -> None:
    with pytest.raises(PayloadError) as refused:
        normalise_payload(stored, FILE)
    assert refused.value.file_id == FILE.id
    assert says in refused.value.reason
    assert "q3.pdf" in refused.value.reason
    assert "payload_directory" in refused.value.reason
    assert refused.value.__cause__ is None


def test_the_key_tree_shows_keys_and_never_values_and_is_bounded() -> None:
    secret = "do-not-show-me"
    wide = {f"key{n}": {f"inner{m}": [{"deep": secret}] * 3 for m in range(30)} for n in range(30)}
    with pytest.raises(PayloadError) as refused:
        normalise_payload(body({"parsed": {"pages": [{"md": secret}]}, "line\nbreak": secret, **wide}), FILE)
    assert "parsed: {pages: [1 x {md: string}]}" in refused.value.reason
    assert "line?break" in refused.value.reason
    assert secret not in refused.value.reason
    assert len(refused.value.reason) < 3000


def test_a_gzip_bomb_is_dropped_at_the_limit() -> None:
    bomb = gzip.compress(b" " * 5_000_000)
    with pytest.raises(PayloadError, match=r"larger than max_payload_bytes \(1,000,000 bytes\) once decompressed"):
        normalise_payload(bomb, FILE, max_bytes=1_000_000)


def test_a_plain_body_over_the_limit_is_refused() -> None:
    with pytest.raises(PayloadError, match="max_payload_bytes"):
        normalise_payload(body(FORM_A), FILE, max_bytes=10)
