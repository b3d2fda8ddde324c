"""Addresses: as people may see them, and whether a client can be asked for them."""

from __future__ import annotations

from time import perf_counter

import pytest

from pipeline.urls import is_http_url, quoted, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://bob:secret@host:1/a/b?sig=secret#part", "https://host:1/a/b"),
        ("sftp://bob@host", "sftp://host"),
        ("https://bob:s@cret@host", "https://host"),
        ("s3://bob:sec#ret@host/a", "s3://host/a"),
        ("s3://bob:sec?ret@host/a", "s3://host/a"),
        ("simplecache::http://bob:secret@host/a", "simplecache::http://host/a"),
        ("401, url='http://bob:secret@host/a?k=secret', and ftp://x:secret@y", "401, url='http://host/a', and ftp://y"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("/home/bob@work/what?/a", "/home/bob@work/what?/a"),
        ("memory://", "memory://"),
        ("no address", "no address"),
    ],
)
def test_an_address_is_shown_without_its_user_password_and_query(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_what_a_server_says_is_quoted_shortly_and_without_secrets() -> None:
    assert quoted("no") == "no"
    assert quoted("at https://bob:secret@host/a?sig=secret " + "x" * 1000) == ("at https://host/a " + "x" * 1000)[:300]


def test_megabytes_that_a_server_says_take_no_time() -> None:
    started = perf_counter()
    quoted("://" * 1_000_000)
    assert perf_counter() - started < 5


@pytest.mark.parametrize(
    "url", ["https://host", "http://127.0.0.1:65535/v1", "https://[::1]:1", "https://größe.example", "http://a_b/c"]
)
def test_an_address_a_client_can_be_asked_for(url: str) -> None:
    assert is_http_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "ftp://host",
        "https://",
        "http://host:port",
        "http://127.0.0.1:114343/v1",
        "https://[::1",
        "https://\N{SNOWMAN}.example",
        "https://xn--a.example",
    ],
)
def test_an_address_no_client_can_be_asked_for(url: str) -> None:
    assert not is_http_url(url)
