"""What others say is told shortly, and our secrets are left out before it is cut."""

from __future__ import annotations

from time import perf_counter

import pytest

from pipeline.quoting import masked, quoted

KEY = "sk-1/2+3="


def test_what_a_server_says_is_quoted_shortly_and_without_secrets() -> None:
    assert quoted("no") == "no"
    assert quoted("at https://bob:secret@host/a?sig=secret " + "x" * 1000) == ("at https://host/a " + "x" * 1000)[:300]


def test_megabytes_that_a_server_says_take_no_time() -> None:
    started = perf_counter()
    quoted("://" * 1_000_000, KEY)
    assert perf_counter() - started < 5


@pytest.mark.parametrize("before", range(285, 302))
def test_of_a_key_at_the_end_of_a_quote_no_half_remains(before: int) -> None:
    assert quoted("x" * before + KEY, KEY).strip("x") in ("", "*", "**", "***")


@pytest.mark.parametrize(
    ("secret", "said", "shown"),
    [
        (KEY, f"no {KEY}, no sk-1%2F2%2B3%3D", "no ***, no ***"),
        (f" {KEY}\n", f"no {KEY}", "no ***"),
        (
            "db://bob:hunter2@host:1/a",
            "no db://bob:hunter2@host:1/a: hunter2 is not bob's at host",
            "no ***: *** is not bob's at host",
        ),
        ("db://bob:p%40ss%2Fword@host", "p@ss/word, p%40ss%2Fword", "***, ***"),
        ("db://bob:left/right@host", "no port 'left' at host", "no port '***' at host"),
        ("db://bob:p@host", "nothing happens at host", "nothing happens at host"),
        ("", "nothing", "nothing"),
    ],
)
def test_a_secret_is_masked_however_it_is_repeated(secret: str, said: str, shown: str) -> None:
    assert masked(said, secret) == shown


def test_of_a_secret_that_begins_with_another_no_rest_remains() -> None:
    assert masked("long-key and long", "long", "long-key") == "*** and ***"
