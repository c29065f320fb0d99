"""Credentials: private keys, tokens with a known beginning, JSON web tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities import pem
from casemate.guard.entities.window import Found, Window

_TOKENS: Final = (
    ("github-pat", r"ghp_[0-9A-Za-z]{36}"),
    ("github-fine-grained-pat", r"github_pat_\w{82}"),
    ("github-oauth", r"gho_[0-9A-Za-z]{36}"),
    ("gitlab-pat", r"glpat-[\w\-]{20,64}"),
    ("aws-access-token", r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"),
    ("gcp-api-key", r"AIza[\w\-]{35}"),
    ("slack-bot-token", r"xoxb-[0-9A-Za-z\-]{10,80}"),
    ("stripe-access-token", r"[sr]k_(?:test|live|prod)_[a-zA-Z0-9]{10,99}"),
    ("openai-api-key", r"sk-(?:proj-|admin-|svcacct-)?[\w\-]{20,200}"),
    ("anthropic-api-key", r"sk-ant-[\w\-]{20,128}"),
    ("huggingface-access-token", r"hf_[a-zA-Z]{34}"),
    ("jwt", r"ey[A-Za-z0-9_\-]{10,2000}\.ey[A-Za-z0-9_\-]{10,4000}\.[A-Za-z0-9_\-]{10,1000}"),
    ("age-secret-key", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    ("casemate-enrol-token", r"cme_[0-9A-Za-z]{40}"),
)
_TOKEN = re.compile("(?<![A-Za-z0-9])(?:" + "|".join(f"({pattern})" for _name, pattern in _TOKENS) + ")(?![A-Za-z0-9])")


def find_tokens(window: Window) -> Iterator[Found]:
    """Find tokens that say by their beginning what they are."""
    for match in window.matches(_TOKEN):
        name = _TOKENS[(match.lastindex or 1) - 1][0]
        yield Found(*match.span(), f"secret:{name}")


def find_key_blocks(window: Window) -> Iterator[Found]:
    """Find the private-key block of this segment (segments end where a block ends)."""
    header = pem.find_header(window.text, window.base, len(window.text))
    if header is not None and pem.block_end(window.text, header, final=True) >= 0:
        yield Found(header.start(), len(window.text), "secret:private-key")
