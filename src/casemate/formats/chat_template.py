"""A review of the Jinja chat template that a model carries, by reading it: it is never rendered here.

A template is a program by the model's author that runs on every conversation. Renderers have been escaped through it
(CVE-2024-34359: attribute chains to `__class__` and on to `os`). The review tokenises the template as Jinja does and
allows what chat templates need: a list of statements, filters, functions and methods. Everything that reaches for the
renderer's own objects is refused, and so is every call through a computed value.

It lowers risk; it is no sandbox. The engine renders templates inside its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple, NoReturn

from casemate.errors import UntrustedDataError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TEMPLATE_LIMIT: Final = 1 << 17  # characters
NESTING_LIMIT: Final = 64

STATEMENTS: Final = _words(
    "for endfor if elif else endif set endset macro endmacro call endcall filter endfilter with endwith "
    "break continue generation endgeneration raw endraw do"
)
FUNCTIONS: Final = _words("range namespace dict raise_exception strftime_now caller")
METHODS: Final = _words(
    "append capitalize count cycle endswith extend find get index insert isalnum isalpha isdigit isspace items join "
    "keys lower lstrip pop removeprefix removesuffix replace reverse rfind rsplit rstrip split splitlines startswith "
    "strip title update upper values"
)
FILTERS: Final = _words(
    "abs batch capitalize center count d default dictsort e escape first float forceescape groupby indent int items "
    "join last length list lower map max min random reject rejectattr replace reverse round safe select selectattr "
    "slice sort string strip sum title tojson trim truncate unique upper urlencode wordcount wordwrap"
)
# Names that lead to the renderer's own objects, whatever they are used for.
FORBIDDEN: Final = _words(
    "self cycler lipsum joiner mro subclasses globals builtins getattr eval exec compile import include extends "
    "url_for get_flashed_messages environment format_map"
)

_KEYWORDS: Final = _words("in is not and or if else recursive")
_OPEN: Final = re.compile(r"\{([{%#])")
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<number>\d[\d_.]*(?:[eE][+-]?\d+)?)
      | (?P<name>[^\W\d]\w*)
      | (?P<op>\*\*|//|==|!=|<=|>=|[-+*/%~<>=()\[\]{},.:|;])""",
    re.VERBOSE | re.DOTALL,
)
_RAW_END: Final = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
_CLOSERS: Final = {")": "(", "]": "[", "}": "{"}


class _Token(NamedTuple):
    kind: str  # name | string | number | op
    text: str  # of a string: its value


def review_template(text: str) -> None:
    """Refuse a template that is not plainly a chat template.

    Raises:
        UntrustedDataError: `chat-template`; the message names the construct.

    """
    if len(text) > TEMPLATE_LIMIT:
        _refuse(f"it has {len(text)} characters")
    blocks = list(_blocks(text))
    allowed_calls = FUNCTIONS | {block[1].text for block in blocks if len(block) > 1 and block[0].text == "macro"}
    for block in blocks:
        _review_block(block, allowed_calls)


def _refuse(what: str) -> NoReturn:
    raise UntrustedDataError(
        f"the model's chat template was refused: {what}",
        check="chat-template",
        hint="such a template can attack the program that renders it; get the model from another source",
    )


# --- text -> blocks of tokens ---------------------------------------------------------------------------------------


def _blocks(text: str) -> Iterator[list[_Token]]:
    """Yield the code of every `{{ }}` and `{% %}`; a statement's begins with its keyword, an output's with '='."""
    at = 0
    while match := _OPEN.search(text, at):
        at = match.end()
        if match[1] == "#":
            at = text.find("#}", at) + 2
            if at == 1:
                _refuse("a comment does not end")
            continue
        block, at = _tokens(text, at, "}}" if match[1] == "{" else "%}")
        if match[1] == "{":
            yield [_Token("op", "="), *block]
            continue
        if not block or block[0].text not in STATEMENTS:
            _refuse(f"the statement {block[0].text[:40] if block else ''!r}")
        if block[0].text == "raw":
            end = _RAW_END.search(text, at)
            if end is None:
                _refuse("a raw block does not end")
            at = end.end()
            continue
        yield block


def _tokens(text: str, at: int, end: str) -> tuple[list[_Token], int]:
    """Read tokens from *at* to the block's *end* mark, as Jinja does: a mark inside brackets or a string is not one."""
    tokens: list[_Token] = []
    nesting: list[str] = []
    if text[at : at + 1] in {"-", "+"}:
        at += 1
    while True:
        if not nesting:
            for mark in (end, "-" + end, "+" + end):
                if text.startswith(mark, at):
                    return tokens, at + len(mark)
        match = _TOKEN.match(text, at)
        if match is None:
            _refuse("code that is not jinja" if at < len(text) else "a block does not end")
        at = match.end()
        kind = str(match.lastgroup)
        if kind == "space":
            continue
        token = _Token(kind, _meaning(match[0]) if kind == "string" else match[0])
        if kind == "string" and tokens and tokens[-1].kind == "string":
            token = _Token(kind, tokens.pop().text + token.text)  # Jinja joins texts that stand side by side
        _nest(token, nesting)
        tokens.append(token)


def _nest(token: _Token, nesting: list[str]) -> None:
    if token.kind != "op":
        return
    if token.text in "([{":
        nesting.append(token.text)
        if len(nesting) > NESTING_LIMIT:
            _refuse("brackets nested too deep")
    elif token.text in _CLOSERS and (not nesting or nesting.pop() != _CLOSERS[token.text]):
        _refuse("brackets that do not match")


# --- what the code may say ------------------------------------------------------------------------------------------


def _review_block(block: list[_Token], allowed_calls: frozenset[str]) -> None:
    start = _Token("op", "=")
    before = [start, start, *block]
    after = [*block[1:], start]
    for previous, token, following in zip(before[1:], block, after, strict=False):
        if token.kind == "string":
            _review_string(token.text)
        elif token.kind == "name":
            _review_name(token.text, previous.text, following.text)
    _review_calls(block, allowed_calls)


def _review_name(name: str, previous: str, following: str) -> None:
    if "__" in name or name in FORBIDDEN:
        _refuse(f"the name {name[:40]!r}")
    if previous == "|" and name not in FILTERS:
        _refuse(f"the filter {name[:40]!r}")
    if name in FUNCTIONS and previous in {"set", "for", ",", "("} and following == "=":
        _refuse(f"a new meaning for {name!r}")


def _review_string(value: str) -> None:
    """`map('attr', ...)` names a filter by string, and a subscript names an attribute."""
    if "__" in value or value in FORBIDDEN or value == "attr":
        _refuse(f"the text {value[:40]!r}")


def _meaning(literal: str) -> str:
    """Return the value of a literal, as Jinja reads it: escapes can hide underscores."""

    def character(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] in "xuU" and len(code) > 1:
            number = int(code[1:], 16)
            return chr(number) if number <= 0x10FFFF else ""  # noqa: PLR2004 - the last code point
        if code[0] == "N":
            _refuse("a character given by its name")
        return chr(int(code, 8)) if code[0] in "01234567" else ("" if code == "\n" else code)

    return _ESCAPE.sub(character, literal[1:-1])


def _review_calls(block: list[_Token], allowed: frozenset[str]) -> None:
    """Every `(` is a grouping, or a call of an allowed name: never of a subscript or of another call's result."""
    for at, token in enumerate(block):
        if token.text != "(" or token.kind != "op" or at == 0:
            continue
        callee, qualifier = block[at - 1], block[at - 2] if at > 1 else _Token("op", "=")
        if callee.kind in {"string", "number"} or callee.text in {")", "]", "}"}:
            _refuse("a call of a computed value")
        if callee.kind != "name" or callee.text in _KEYWORDS:
            continue
        if qualifier.text == ".":
            known = callee.text in METHODS
        elif qualifier.text in {"|", "is", "not", "macro", "filter"}:
            known = qualifier.text != "|" or callee.text in FILTERS
        else:
            known = callee.text in allowed or (at == 1 and callee.text in STATEMENTS)
        if not known:
            _refuse(f"a call of {callee.text[:40]!r}")
