# ruff: noqa: RUF001 - look-alike letters are what this file is about
from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.guard.normalize import BLOCKING, normalize

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=80)

ENGLAND = "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"


def kinds(text):
    return {span.type for span in normalize(text).hidden}


def test_plain_ascii_is_returned_as_it_is():
    text = "Dear all, please read the attached notes.\n"
    normal = normalize(text)
    assert normal.text is text
    assert normal.starts is None
    assert normal.span(5, 8) == (5, 8)


def test_ordinary_non_ascii_text_is_returned_as_it_is():
    text = "Привет, как дела? Übergröße, 東京都、한국어"
    assert normalize(text).text is text


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("ｉｇｎｏｒｅ", "ignore"),
        ("𝐢𝐠𝐧𝐨𝐫𝐞", "ignore"),
        ("ⓘⓖⓝⓞⓡⓔ", "ignore"),
        ("🅘🅖🅝🅞🅡🅔".replace("🅘", "🅘"), "IGNORE"),
        ("i\u200bg\u200bn\u200bo\u200br\u200be", "ignore"),
        ("ig\u00adnore", "ignore"),
        ("i\u0336\u0321\u0489g\u0334\u0322\u0353nore", "ignore"),
        ("cafe\u0301", "café"),
        ("oﬃce", "office"),
        ("a\x00b\x1b[0mc", "ab[0mc"),
        ("x\ud800y", "x\ufffdy"),
        ("line\u2028next", "line\nnext"),
    ],
)
def test_one_spelling(written, read):
    assert normalize(written).text == read


def test_offsets_point_at_the_original_characters():
    text = "mail: \u200bbob\u200b@ｅxample.com\u200b, oﬃce"
    normal = normalize(text)
    start = normal.text.index("bob@example.com")
    begin, end = normal.span(start, start + len("bob@example.com"))
    assert text[begin:end] == "bob\u200b@ｅxample.com"
    start = normal.text.index("ffi")
    assert text[slice(*normal.span(start + 1, start + 2))] == "ﬃ"


@given(ANY_TEXT)
def test_every_range_maps_into_the_original(text):
    normal = normalize(text)
    for start in range(len(normal.text)):
        begin, end = normal.span(start, start + 1)
        assert 0 <= begin < end <= len(text)
    assert normal.span(len(normal.text), len(normal.text))[1] <= len(text)


@given(st.text(max_size=60))
def test_nothing_invisible_is_left(text):
    assert not kinds(normalize(text).text)


@given(st.text(alphabet="abcdefgh ABC0123.@-", max_size=60), st.integers(0, 2**30))
def test_spelling_variants_come_back_as_the_plain_text(text, seed):
    def vary(index, character):
        wide = chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character
        return [character, wide, character + "\u00ad", character + "\u2060"][(seed >> (index % 15 * 2)) & 3]

    assert normalize("".join(vary(i, c) for i, c in enumerate(text))).text == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hello" + "".join(chr(0xE0000 + ord(c)) for c in "send it"), "hidden:tags"),
        (ENGLAND + "".join(chr(0xE0000 + ord(c)) for c in "send it"), "hidden:tags"),
        ("😀" + "".join(chr(0xE0100 + b) for b in b"send it"), "hidden:selectors"),
        ("a\ufe01\ufe02\ufe03b", "hidden:selectors"),
        ("abc \u202etxt.exe", "hidden:bidi-override"),
        ("a" + "\u200b\u200c" * 8 + "b", "hidden:zero-width-run"),
    ],
)
def test_hidden_channels_are_findings_that_block(text, kind):
    assert kind in kinds(text)
    assert kind in BLOCKING


@pytest.mark.parametrize(
    "text",
    [
        "👨\u200d👩\u200d👧\u200d👦 and ❤\ufe0f and 1\ufe0f\u20e3",
        ENGLAND + " scored",
        ENGLAND + ENGLAND,
        "می\u200cخواهم نامه\u200cای بنویسم",
        "क्\u200dष त्र\u200cय",
        "葛\U000e0100飾区 辻\U000e0101",
        "\u200fשלום\u200e (abc) \u2067עברית\u2069",
        "ไม่ต้องกังวล",
    ],
)
def test_scripts_that_need_invisible_characters_are_left_alone(text):
    assert not kinds(text)


def test_zero_width_inside_words_is_worth_a_flag_only():
    found = kinds("i\u200bgnore th\u200bis")
    assert found == {"hidden:zero-width"}
    assert not found & BLOCKING
