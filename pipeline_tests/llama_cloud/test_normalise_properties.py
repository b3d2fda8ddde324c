"""Whatever arrives, the normaliser answers with a valid payload or with ``PayloadError``."""

import copy
import gzip
import json
from datetime import UTC
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.documents.models import Attachment
from pipeline.errors import PayloadError
from pipeline.llama_cloud.digests import payload_digest, text_digest
from pipeline.llama_cloud.models import Payload
from pipeline.llama_cloud.normalise import normalise_payload
from pipeline_tests.llama_cloud.samples import FILE, FORM_A, FORM_B, FORM_C

TEXTS = st.text(alphabet=st.characters(codec=None), max_size=8)
PAGE_KEYS = ["page_number", "text", "markdown", "header", "footer", "items", "attachments", "success"]
OTHER_KEYS = ["parse", "pages", "metadata", "source", "content_fingerprint_hash", "source_modified_at", "attachment_name", "type"]
KNOWN_KEYS = st.sampled_from([*PAGE_KEYS, *OTHER_KEYS])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
JSON_VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KNOWN_KEYS | TEXTS, inner, max_size=4), max_leaves=12
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, member in members for place in places(member, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A known shape with some of its values replaced, removed or repeated."""
    holder = {"root": copy.deepcopy(draw(st.sampled_from([FORM_A, FORM_B, FORM_C])))}
    for _ in range(draw(st.integers(1, 4))):
        *parents, last = draw(st.sampled_from([place for place in places(holder) if place]))
        target: Any = holder
        for step in parents:
            target = target[step]
        match draw(st.sampled_from(["replace", "remove", "repeat"])):
            case "replace":
                target[last] = draw(JSON_VALUES)
            case "remove" if last != "root":
                del target[last]
            case "repeat" if isinstance(target, list):
                target.insert(0, copy.deepcopy(target[int(last)]))
    return holder["root"]


def assert_valid(payload: Payload) -> None:
    numbers = [page.page_number for page in payload.pages]
    assert numbers == sorted(set(numbers))
    assert all(1 <= number < 2**31 for number in [*numbers, *payload.failed_pages])
    assert not set(numbers) & set(payload.failed_pages)
    attachments = [*payload.attachments, *(attachment for page in payload.pages for attachment in page.attachments)]
    strings = [text for page in payload.pages for text in (page.text, page.header or "", page.footer or "")]
    strings += [part for found in attachments for part in (found.attachment_name, found.source_id, found.type)]
    strings.append(payload.content_fingerprint_hash)
    strings.append(json.dumps([list(page.items) for page in payload.pages], ensure_ascii=False, allow_nan=False))
    for text in strings:
        assert "\x00" not in text
        assert text.encode().decode() == text
    assert all(isinstance(attachment, Attachment) for attachment in attachments)
    assert payload.content_fingerprint_hash
    if payload.source_modified_at:
        assert payload.source_modified_at.tzinfo == UTC
        assert payload.source_modified_at.microsecond % 1000 == 0
    assert len(payload_digest(payload, FILE)) == len(text_digest(payload)) == 64


def assert_payload_or_payload_error(stored: bytes) -> None:
    try:
        payload = normalise_payload(stored, FILE, max_bytes=1_000_000)
    except PayloadError:
        return
    assert_valid(payload)
    assert normalise_payload(stored, FILE) == payload


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated(), st.booleans())
def test_a_mutated_payload_is_valid_or_refused(root: Any, compressed: bool) -> None:
    stored = json.dumps(root).encode()
    assert_payload_or_payload_error(gzip.compress(stored) if compressed else stored)


@settings(max_examples=100, deadline=None)
@given(JSON_VALUES)
def test_any_json_is_valid_or_refused(root: Any) -> None:
    assert_payload_or_payload_error(json.dumps(root).encode())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.booleans())
def test_damaged_bytes_are_valid_or_refused(noise: bytes, cut: int, compressed: bool) -> None:
    whole = json.dumps(FORM_A).encode()
    stored = gzip.compress(whole) if compressed else whole
    assert_payload_or_payload_error(stored[:cut] + noise + stored[cut + len(noise) :])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30), max_size=6))
def test_page_texts_arrive_unchanged_in_every_shape(texts: list[str]) -> None:
    by_text = [{"page_number": number, "text": text} for number, text in enumerate(texts, start=1)]
    by_markdown = [{"page_number": number, "markdown": text} for number, text in enumerate(texts, start=1)]
    for parse in ({"pages": by_text}, {"markdown": {"pages": by_markdown}}, by_text):
        payload = normalise_payload(json.dumps({"parse": parse}).encode(), FILE)
        assert [page.text for page in payload.pages] == texts
