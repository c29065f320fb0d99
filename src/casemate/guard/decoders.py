"""Undoes one disguise of a text each: encodings, escapes, ciphers, spacing and misspelling.

Every decoder is a pure function from a text to the text behind the disguise, or None when there is none. Cheap signs
decide whether a decoder runs at all; each one is linear and looks at a bounded number of runs.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import string
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

RUNS: Final = 8
RUN_LIMIT: Final = 16_384
PRINTABLE: Final = 0.9
MIN_DECODED: Final = 6
WIDE_GAPS: Final = 3

_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}(?:[ \t]{0,4}\n[ \t]{0,4}[A-Za-z0-9+/_-]{16,}={0,2}){0,400}")
_BASE32_RUN = re.compile(r"\b[A-Z2-7]{16,}={0,6}")
_HEX_RUN = re.compile(r"(?:0x)?(?:[0-9a-fA-F]{2}[ :,]?){10,}")
_BITS_RUN = re.compile(r"(?:[01]{8}[ ,]?){6,}")
_CODES_RUN = re.compile(r"(?:\b\d{2,3}\b[ ,]{1,3}){8,}\d{2,3}\b")
_MORSE_RUN = re.compile(r"(?:[.\-\u2013\u2014\u2022\u00b7]{1,6}[ /|]{1,3}){8,}[.\-\u2013\u2014\u2022\u00b7]{1,6}")
_SPACED_RUN = re.compile(r"(?<!\w)(?:\w[ \t]{1,2}){7,}\w(?!\w)")
_WIDE_GAP = re.compile(r"[ \t]{3,}")
_DOTTED_WORD = re.compile(r"(?<!\w)\w([.\-*_~|])\w\1\w(?:\1\w){0,40}(?!\w)")
_SINGLE = re.compile(r"(?<!\S)\w(?!\S)")
_LITERAL = re.compile(r"""=\s{0,4}(?:"([^"]{2,400})"|'([^']{2,400})')""")
_JOINED_LITERALS = re.compile(r"""["'][ \t]{0,4}\+[ \t]{0,4}["']""")
_ESCAPE = re.compile(r"\\u\{?[0-9a-fA-F]{4,6}\}?|\\x[0-9a-fA-F]{2}|\\U[0-9a-fA-F]{8}")
_PERCENT = re.compile(r"%[0-9a-fA-F]{2}")
_ENTITY = re.compile(r"&(?:#\d{2,7}|#[xX][0-9a-fA-F]{2,6}|[A-Za-z]{2,12});")
_INNER_TAG = re.compile(r"(?<=\w)<[^<>\n]{1,60}>(?=\w)")
_LEET_WORD = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Za-z]{0,24}(?:[0-9@$|!]{1,4}[A-Za-z]{1,24}){1,12}[0-9@$]{0,3}"
    r"|[A-Za-z]{1,24}[0-9@$]{1,3}|[013457]{1,4}(?![A-Za-z0-9]))"
)
LEET: Final = str.maketrans("430157@$!|", "aeoistasil")

_MORSE_SIGNS: Final = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.. "
    "----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- ..--.. .----. -.-.--"
)
_MORSE: Final = dict(zip(_MORSE_SIGNS.split(), string.ascii_lowercase + string.digits + ".,?'!", strict=True))
_DASHES: Final = str.maketrans("\u2013\u2014\u2022\u00b7", "--..")
_VOWELS: Final = "aeiou"


def base64_runs(text: str) -> str | None:
    """Read base64 (both alphabets, wrapped lines too)."""
    return _replace_runs(text, _BASE64_RUN, _from_base64)


def base32_runs(text: str) -> str | None:
    """Read base32."""
    return _replace_runs(text, _BASE32_RUN, lambda run: base64.b32decode(_padded(run.rstrip("="), 8)))


def hex_runs(text: str) -> str | None:
    """Read hexadecimal bytes, with or without separators."""
    return _replace_runs(text, _HEX_RUN, lambda run: bytes.fromhex(re.sub(r"^0x|[ :,]", "", run)))


def number_runs(text: str) -> str | None:
    """Read characters written as bits or as decimal codes."""
    plain = _replace_runs(text, _BITS_RUN, lambda run: bytes(int(bits, 2) for bits in re.findall(r"[01]{8}", run)))
    codes = _replace_runs(plain or text, _CODES_RUN, lambda run: bytes(int(code) for code in re.findall(r"\d+", run)))
    return codes or plain


def escapes(text: str) -> str | None:
    r"""Read HTML entities, URL encoding, `\u` and `\x` escapes, and words cut by tags."""
    plain = text
    if "&" in plain and _ENTITY.search(plain):
        plain = html.unescape(plain)
    if "%" in plain and _PERCENT.search(plain):
        plain = unquote_to_bytes(plain.encode("utf-8", "replace")).decode("utf-8", "replace")
    if "\\" in plain and _ESCAPE.search(plain):
        plain = _ESCAPE.sub(_unescape, plain)
    if "<" in plain:
        plain = _INNER_TAG.sub("", plain)
    return plain if plain != text else None


def rot13(text: str) -> str:
    """Turn the alphabet by thirteen."""
    return codecs.encode(text, "rot13")


def backwards(text: str) -> str:
    """Read from the end."""
    return text[::-1]


def leet(text: str, known: Callable[[str], bool]) -> str | None:
    """Read digits and signs inside words as letters; a one is an l where that makes a *known* word."""

    def read(match: re.Match[str]) -> str:
        word = match.group().translate(LEET)
        other = match.group().replace("1", "l").translate(LEET)
        return other if other != word and known(other.lower()) and not known(word.lower()) else word

    plain = _LEET_WORD.sub(read, text)
    return plain if plain != text else None


def morse(text: str) -> str | None:
    """Read Morse code: blanks between letters; strokes or wider gaps between words."""

    def read(match: re.Match[str]) -> str:
        words = re.split(r"\s*[/|]\s*|\s{3,}", match.group().translate(_DASHES))
        return " ".join("".join(_MORSE.get(sign, "") for sign in word.split()) for word in words)

    plain = _limited_sub(_MORSE_RUN, read, text)
    return plain if plain != text else None


def unspaced(text: str, segment: Callable[[str], str]) -> str | None:
    """Join letters written apart; *segment* finds the words where no wider gap shows them."""
    run = _SPACED_RUN.search(text)
    if run is None and len(_SINGLE.findall(text)) * 2 < len(text.split()):
        return None
    if len(_WIDE_GAP.findall(text)) >= WIDE_GAPS:
        return " ".join(word.replace(" ", "") for word in _WIDE_GAP.split(text))
    plain = _limited_sub(_SPACED_RUN, lambda match: segment("".join(match.group().split())), text)
    return plain if plain != text else None


def undotted(text: str) -> str | None:
    """Join words whose letters are cut by dots, dashes or stars."""
    found = [match.group(1) for match, _ in zip(_DOTTED_WORD.finditer(text), range(64), strict=False)]
    plain = text
    for sign in sorted(set(found)):
        if found.count(sign) >= WIDE_GAPS:
            plain = re.sub(rf"(?<=[\w']){re.escape(sign)}(?=[\w'])", "", plain)
    return plain if plain != text else None


def literals(text: str) -> str | None:
    """Join the string literals of a program, in order, as `a + b` would."""
    found = [match.group(1) or match.group(2) for match, _ in zip(_LITERAL.finditer(text), range(64), strict=False)]
    glued = _JOINED_LITERALS.sub("", text)
    if len(found) < 2:  # noqa: PLR2004 - one literal hides nothing
        return glued if glued != text else None
    return f"{''.join(found)}\n{' '.join(found)}"


def pig_latin(words: Iterable[str], known: Callable[[str], bool]) -> str:
    """Read words as pig latin, preferring what makes a *known* word."""
    return " ".join(_from_pig_latin(word, known) for word in words)


def _from_pig_latin(word: str, known: Callable[[str], bool]) -> str:
    if len(word) < 4 or not word.endswith("ay"):  # noqa: PLR2004 - "ay" and a syllable
        return word
    stem = word[:-2]
    options = [stem[-n:] + stem[:-n] for n in range(1, 5) if n < len(stem) and not set(stem[-n:]) & set(_VOWELS)]
    options = [*([stem[:-1]] if stem[-1] == "w" else []), *reversed(options), stem, stem[:-1]]
    return next((option for option in options if known(option)), options[0])


def _from_base64(run: str) -> bytes:
    plain = re.sub(r"\s", "", run).rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(_padded(plain, 4))


def _padded(run: str, size: int) -> str:
    return run + "=" * (-len(run) % size)


def _replace_runs(text: str, pattern: re.Pattern[str], decode: Callable[[str], bytes]) -> str | None:
    """Replace the runs that decode to readable text; None when none does."""

    def read(match: re.Match[str]) -> str:
        return _readable(match.group()[:RUN_LIMIT], decode) or match.group()

    plain = _limited_sub(pattern, read, text)
    return plain if plain != text else None


def _readable(run: str, decode: Callable[[str], bytes]) -> str | None:
    """Return what *run* decodes to when it is text. A run may have lost its last characters."""
    for cut in (run, run[: len(run) // 4 * 4]):
        try:
            plain = decode(cut).decode("utf-8")
        except (ValueError, binascii.Error):
            continue
        letters = sum(character.isprintable() or character in "\n\t" for character in plain)
        if len(plain) >= MIN_DECODED and letters >= PRINTABLE * len(plain) and any(map(str.isalpha, plain)):
            return f"\n{plain}\n"
    return None


def _limited_sub(pattern: re.Pattern[str], read: Callable[[re.Match[str]], str], text: str) -> str:
    return pattern.sub(read, text, count=RUNS)


def _unescape(match: re.Match[str]) -> str:
    code = int(match.group().strip("\\uUx{}"), 16)
    return chr(code) if code <= 0x10FFFF else match.group()  # noqa: PLR2004 - the last code point
