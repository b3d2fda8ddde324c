"""Addresses as people may see them."""

from __future__ import annotations

import pytest

from pipeline.urls import without_secrets


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
