"""Forms of the words of a search text."""

from __future__ import annotations

import pytest

from pipeline.sinks.word_forms import in_every_form


@pytest.mark.parametrize(
    ("text", "searched"),
    [
        ("the gauge", "the gauge"),
        ("阀门 水", "阀门 水"),
        ("die Prüfung der Öl-Pumpe", "die Prüfung der Öl-Pumpe Pru\u0308fung O\u0308l-Pumpe"),
        ("die Pru\u0308fung", "die Pru\u0308fung Prüfung"),
        ("für  für", "für  für fu\u0308r"),
        ("펌프", "펌프 \u1111\u1165\u11b7\u1111\u1173"),
        ("\u2126", "\u2126 \u03a9"),
        ("\u212b", "\u212b \u00c5 A\u030a"),
    ],
)
def test_a_word_is_searched_for_as_it_is_and_in_its_other_forms(text: str, searched: str) -> None:
    assert in_every_form(text) == searched


@pytest.mark.parametrize("words", [20, 100, 2_000])
def test_forms_make_no_text_longer_than_every_store_takes(words: int) -> None:
    text = " ".join(f"Prüfung{number}" for number in range(words))
    searched = in_every_form(text)
    assert searched.startswith(text)
    assert len(searched.encode()) <= max(1024, len(text.encode()))
    assert ("Pru\u0308fung0" in searched) == (words < 2_000 and len(text.encode()) < 1000)
