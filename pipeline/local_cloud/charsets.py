"""From a page's bytes to its text: which encoding HTML is in, as browsers tell it (the WHATWG Encoding standard)."""

from __future__ import annotations

import codecs
from typing import Final

from bs4.dammit import EncodingDetector, UnicodeDammit

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""UTF-32 comes before UTF-16, whose mark its own begins with."""

_LABELS: Final = {
    "dos-874": "cp874",
    "windows-874": "cp874",
    "windows-31j": "cp932",
    "windows-949": "cp949",
    "csksc56011987": "cp949",
    "ksc_5601": "cp949",
    "gb_2312": "gb18030",
    "gb_2312-80": "gb18030",
    "csgb2312": "gb18030",
    "cn-big5": "big5hkscs",
    "iso-8859-6-e": "iso8859-6",
    "iso-8859-6-i": "iso8859-6",
    "iso-8859-8-e": "iso8859-8",
    "iso-8859-8-i": "iso8859-8",
    "logical": "iso8859-8",
    "visual": "iso8859-8",
    "koi": "koi8-r",
    "koi8": "koi8-r",
    "koi8-ru": "koi8-u",
    "mac": "mac-roman",
    "mac-ukrainian": "mac-cyrillic",
    "unicode-1-1-utf-8": "utf-8",
    "unicode11utf8": "utf-8",
}
"""Labels of the standard that Python has no codec of, without the ``x-`` that some are written with."""

_SUPERSETS: Final = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "cp950": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-8",
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}
"""Codec -> the one browsers read its label by. A label that could be read as ASCII is not in UTF-16."""

_CHARSETS: Final = ("utf-8", "cp", "iso8859", "iso2022", "koi8", "mac-", "gb", "big5", "euc_", "shift_jis")
"""How names of codecs of charsets begin: Python has others, such as rot13."""

_STRAY: Final = 8
"""So many letters lost of a page do not yet say that it is not what it declares."""

_LOST: Final = "\ufffd"


def decode_html(content: bytes) -> str:
    """Decoded by its byte order mark, else as it itself says, else as UTF-8 if it is that but for a few bytes; a byte that
    the encoding does not have is U+FFFD. Else (UTF-16 has null bytes), and where most would be lost, by a guess."""
    for mark, codec in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(codec, "replace")
    declared = _codec(EncodingDetector.find_declared_encoding(content, is_html=True) or "")
    if declared or b"\x00" not in content:
        text = content.decode(declared or "utf-8", "replace")
        lost = text.count(_LOST)
        if not lost or lost <= (_beyond_ascii(text) + _STRAY if declared else _beyond_ascii(text) // 10):
            return text
    return UnicodeDammit(content, is_html=True).unicode_markup or ""


def _codec(label: str) -> str | None:
    """The codec browsers read a label by; ``None`` for what is no charset's."""
    label = label.strip().lower().removeprefix("x-")
    try:
        name = codecs.lookup(_LABELS.get(label, label)).name
    except (LookupError, ValueError):
        return None
    name = _SUPERSETS.get(name, name)
    return name if name.startswith(_CHARSETS) else None


def _beyond_ascii(text: str) -> int:
    """Letters that are read, and not as every encoding has them."""
    return sum(not letter.isascii() for letter in text) - text.count(_LOST)
