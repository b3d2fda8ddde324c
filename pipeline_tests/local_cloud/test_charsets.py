"""Encodings of HTML: as browsers read them."""

from __future__ import annotations

import codecs

import pytest

from pipeline.local_cloud.parsing import parse_html

CHINESE = "维护之前，必须关闭泵的阀门。"
GERMAN = "Überprüfung der Öltemperatur für Geräte. "


def _page(declared: str, content: bytes) -> bytes:
    return f'<html><head><meta charset="{declared}"></head><body><p>'.encode() + content + b"</p></body></html>"


def _text(page: bytes) -> str:
    return parse_html(page).pages[0].text


@pytest.mark.parametrize(
    ("declared", "encoding", "text"),
    [
        ("utf8", "utf-8", "水位計"),
        ("UTF-8 ", "utf-8", "水位計"),
        ("utf-16", "utf-8", "水位計"),
        ("iso-8859-1", "cp1252", "The “pump” – valve’s €5"),
        ("us-ascii", "cp1252", "The “pump” – é"),
        ("iso-8859-9", "cp1254", "“İstanbul” – ışık"),
        ("tis-620", "cp874", "“ปั๊ม” วาล์ว €"),
        ("windows-874", "cp874", "“ปั๊ม” วาล์ว €"),
        ("gb2312", "gbk", "朱镕基总理视察水库，温度为５℃，喆。"),
        ("gb_2312-80", "gbk", "朱镕基总理"),
        ("gbk", "gb18030", "喆€"),
        ("big5", "big5hkscs", "水位計 喺香港 嘅水閘"),
        ("shift_jis", "cp932", "①水位計の点検 ㈱河川 髙橋 Ⅲ型"),
        ("x-sjis", "cp932", "①水位計"),
        ("windows-31j", "cp932", "①水位計"),
        ("euc-kr", "cp949", "똠방각하 펲시콜라 뷁 펌프"),
        ("ks_c_5601-1987", "cp949", "똠방각하"),
        ("euc-jp", "euc_jp", "水位計の点検"),
        ("iso-2022-jp", "iso2022_jp", "水位計の点検"),
        ("windows-1251", "cp1251", "Прибор"),
        ("x-cp1251", "cp1251", "Прибор"),
        ("koi8-r", "koi8_r", "Прибор"),
        ("x-mac-cyrillic", "mac_cyrillic", "Прибор"),
        ("iso-8859-8-i", "iso8859-8", "משאבה"),
        ("windows-1256", "cp1256", "المضخة"),
        ("cp850", "cp850", "Gerät"),
    ],
)
def test_a_page_is_read_as_browsers_read_what_it_declares(declared: str, encoding: str, text: str) -> None:
    assert _text(_page(declared, text.encode(encoding))) == text


@pytest.mark.parametrize(
    ("declared", "before", "stray", "after"),
    [
        ("utf-8", CHINESE * 5, b"\xff", "压力传感器"),
        ("utf-8", GERMAN, b"\xe9", " und mehr"),
        ("utf-8", "The caf", b"\xe9", " is closed"),
        ("euc-jp", "水位計の点検は毎年行うこと。" * 5, b"\xff", "弁"),
        ("windows-1251", "Датчик уровня" * 5, b"\x98", "Прибор"),
    ],
)
def test_a_stray_byte_costs_one_letter_of_a_page_that_says_what_it_is(
    declared: str, before: str, stray: bytes, after: str
) -> None:
    page = _page(declared, before.encode(declared) + stray + after.encode(declared))
    assert _text(page) == f"{before}\ufffd{after}"


def test_a_stray_byte_costs_one_letter_of_utf8_that_says_nothing() -> None:
    page = f"<p>{CHINESE * 5}".encode() + b"\xff" + f"{CHINESE}</p>".encode()
    assert _text(page) == f"{CHINESE * 5}\ufffd{CHINESE}"


@pytest.mark.parametrize("declared", ["none", "rot13", "unicode_escape", "\x00", "é"])
def test_a_page_that_declares_no_charset_is_utf8_if_it_can_be(declared: str) -> None:
    assert _text(_page(declared, GERMAN.encode())) == GERMAN.strip()


def test_a_page_that_is_not_at_all_what_it_declares_is_read_by_a_guess() -> None:
    text = "Датчик уровня калибруется ежегодно техником."
    assert _text(_page("utf-8", text.encode("cp1251"))) == text
    assert _text(f"<p>{text}</p>".encode("cp1251")) == text


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_a_byte_order_mark_is_believed_before_what_is_declared(mark: bytes, encoding: str) -> None:
    page = f'<meta charset="iso-8859-1"><p>{GERMAN}</p>'
    assert _text(mark + page.encode(encoding)) == GERMAN.strip()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_guessed(encoding: str) -> None:
    assert _text(f"<html><body><p>{GERMAN * 5}</p></body></html>".encode(encoding)) == (GERMAN * 5).strip()
