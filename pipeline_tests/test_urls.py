"""Addresses: as people may see them, whether two mean one place, and whether a client can be asked for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.urls import as_stored, is_http_url, one_spelling, without_secrets


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


@pytest.mark.usefixtures("ignores_spelling")
@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ("Docs", "docs"),
        ("docs", "DOCS"),
        ("U\u0308bung 1", "\u00dcbung 1"),
        ("\u00fcbung", "U\u0308BUNG"),
        ("\u00dc", "\u00fc"),
        ("Straße", "STRASSE"),
        ("straße", "strasse"),
        ("2024", "2024"),
        ("Docs/Sub/new", "dOCS/sUB/new"),
    ],
)
def test_a_path_is_as_its_folders_spell_it_where_any_spelling_finds_it(tmp_path: Path, stored: str, given: str) -> None:
    for name in ("other", *Path(stored).parts[:1]):
        (tmp_path / name).mkdir()
    if (below := (tmp_path / stored).parent) != tmp_path:
        below.mkdir()
    assert as_stored(tmp_path / given) == tmp_path / stored
    assert one_spelling(f"file://{tmp_path}/{given}") == str(tmp_path / stored)


@pytest.mark.usefixtures("ignores_spelling")
def test_a_path_in_a_folder_that_cannot_be_listed_stays_as_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "Docs").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert as_stored(tmp_path / "docs") == tmp_path / "docs"


def _tells_spellings_apart(folder: Path) -> None:
    (folder / "A").mkdir()
    if (folder / "a").exists():
        pytest.skip("this file system ignores case")


def test_where_spellings_are_told_apart_a_path_stays_and_no_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tells_spellings_apart(tmp_path)
    names = ["Docs", "dOCS", "docs", "\u00fc", "u\u0308", os.fsdecode(b"\xffa")]
    for name in names[:-2]:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "scandir", lambda _: pytest.fail("read"))
    for name in (*names, "Docs/nothing/Here", "dOcs"):
        assert as_stored(tmp_path / name) == tmp_path / name


def test_two_names_of_one_file_stay_two_where_spellings_are_told_apart(tmp_path: Path) -> None:
    _tells_spellings_apart(tmp_path)
    (tmp_path / "f").touch()
    (tmp_path / "F").hardlink_to(tmp_path / "f")
    assert {as_stored(tmp_path / name).name for name in ("f", "F")} == {"f", "F"}
