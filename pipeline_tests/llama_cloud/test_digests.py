import math
from dataclasses import replace
from datetime import timedelta

from pipeline.llama_cloud.digests import pages_digest, payload_digest, text_digest
from pipeline.llama_cloud.normalise import normalise_payload
from pipeline_tests.llama_cloud.samples import FILE, FORM_A, body

PAYLOAD = normalise_payload(body(FORM_A), FILE)
FIRST, SECOND = PAYLOAD.pages


def test_the_way_a_payload_was_written_down_does_not_count() -> None:
    reordered = dict(reversed(FORM_A.items())) | {"unknown": 1}
    assert payload_digest(normalise_payload(body(reordered), FILE), FILE) == payload_digest(PAYLOAD, FILE)


def test_the_payload_digest_moves_with_name_metadata_provenance_and_content() -> None:
    assert PAYLOAD.source_modified_at
    digests = [
        payload_digest(PAYLOAD, FILE),
        payload_digest(PAYLOAD, replace(FILE, display_name="other")),
        payload_digest(PAYLOAD, replace(FILE, metadata={})),
        payload_digest(replace(PAYLOAD, content_fingerprint_hash="x"), FILE),
        payload_digest(replace(PAYLOAD, source_modified_at=None), FILE),
        payload_digest(replace(PAYLOAD, source_modified_at=PAYLOAD.source_modified_at + timedelta(milliseconds=1)), FILE),
        payload_digest(replace(PAYLOAD, failed_pages=(9,)), FILE),
        payload_digest(replace(PAYLOAD, attachments=()), FILE),
        payload_digest(replace(PAYLOAD, pages=(FIRST,)), FILE),
        payload_digest(replace(PAYLOAD, pages=(replace(FIRST, items=()), SECOND)), FILE),
    ]
    assert len(set(digests)) == len(digests)


def test_listing_bookkeeping_does_not_count() -> None:
    touched = replace(FILE, updated_at=None, file_id="file-2")
    assert payload_digest(PAYLOAD, touched) == payload_digest(PAYLOAD, FILE)


def test_the_text_digest_moves_only_with_what_chunks_are_made_of() -> None:
    same = [
        replace(PAYLOAD, content_fingerprint_hash="x", source_modified_at=None, failed_pages=(9,)),
        replace(PAYLOAD, pages=(replace(FIRST, items=()), SECOND)),
    ]
    different = [
        replace(PAYLOAD, attachments=()),
        replace(PAYLOAD, pages=(replace(FIRST, text="x"), SECOND)),
        replace(PAYLOAD, pages=(replace(FIRST, header=None), SECOND)),
        replace(PAYLOAD, pages=(replace(FIRST, footer="x"), SECOND)),
        replace(PAYLOAD, pages=(replace(FIRST, page_number=7), SECOND)),
        replace(PAYLOAD, pages=(replace(FIRST, attachments=PAYLOAD.attachments), SECOND)),
    ]
    assert {text_digest(payload) for payload in same} == {text_digest(PAYLOAD)}
    assert len({text_digest(payload) for payload in [PAYLOAD, *different]}) == len(different) + 1


def test_page_borders_count() -> None:
    assert pages_digest([replace(FIRST, text="ab"), replace(SECOND, text="")]) != pages_digest(
        [replace(FIRST, text="a"), replace(SECOND, text="b")]
    )


def test_a_digest_exists_for_values_json_has_no_room_for() -> None:
    assert payload_digest(PAYLOAD, replace(FILE, display_name="\ud800", metadata={"x": math.nan}))
