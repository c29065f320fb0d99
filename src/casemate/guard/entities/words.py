"""Word tables that say where a value goes on over a gap: months, the words people write for `@` and `.`."""

from __future__ import annotations

from typing import Final

# Scripts written without spaces (Thai to Khmer, kana, han, hangul), as a range of a character class.
UNSPACED: Final = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)

_MONTH_WORDS: Final = """
january february march april may june july august september october november december
jan feb mar apr jun jul aug sep sept oct nov dec
januar februar märz maerz mai juni juli oktober dezember okt dez jänner
janvier février fevrier mars avril juin juillet août aout septembre octobre novembre décembre decembre
enero febrero marzo abril mayo junio julio agosto septiembre setiembre octubre noviembre diciembre
gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre
janeiro fevereiro março maio junho julho setembro outubro novembro dezembro
januari februari maart mei augustus augusti
stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia
tammikuuta helmikuuta maaliskuuta huhtikuuta toukokuuta kesäkuuta heinäkuuta elokuuta syyskuuta lokakuuta
marraskuuta joulukuuta desember
"""
MONTHS: Final = frozenset(_MONTH_WORDS.split())
MONTH_STARTS: Final = frozenset(month[:3] for month in MONTHS)
DATE_LINKS: Final = frozenset({"of", "de", "del", "di"})

AT_WORDS: Final = ("at", "[at]", "(at)", "{at}", "<at>", "@", "(@)", "[@]", "arroba", "arobase", "(arroba)")
DOT_WORDS: Final = ("dot", "[dot]", "(dot)", "{dot}", "<dot>", ".", "(.)", "[.]", "punto", "punkt", "point", "ponto")
MARKERS: Final = frozenset({*AT_WORDS, *DOT_WORDS})
MARKER_PREFIXES: Final = frozenset(marker[:length] for marker in MARKERS for length in range(1, len(marker)))


def is_month(word: str) -> bool:
    """Return whether *word* names a month (any of a dozen languages, any case)."""
    return word.lower().strip(".,(\"'") in MONTHS


def word_set(text: str) -> frozenset[str]:
    """Return the words of *text*: how tables of words are written here."""
    return frozenset(text.split())
