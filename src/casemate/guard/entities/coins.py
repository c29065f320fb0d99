"""Cryptocurrency addresses by their checksums: base58check, bech32 and bech32m, EIP-55."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final

from casemate.guard.entities.window import Found, Window

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_RIPPLE: Final = "rpshnaf39wBUDNEGHJKLM4PQRST7VWXYZ2bcdeCg65jkm8oFqi1tuvAxyz"
_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_CHECKS: Final = (1, 0x2BC830A3)
_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_ADDRESS = re.compile(r"(?<![A-Za-z0-9])[13LMDXTAtr29mn][1-9A-HJ-NP-Za-km-z]{24,36}(?![A-Za-z0-9])")
_SEGWIT = re.compile(
    r"(?<![A-Za-z0-9])((?:bc|tb|ltc|addr|cosmos|osmo|tz|bnb|terra|inj|erd|zs|kaspa|stake|celestia|sei)1[02-9ac-hj-np-z]{20,110}"
    r"|BC1[02-9AC-HJ-NP-Z]{20,90})(?![A-Za-z0-9])"
)
_ETHEREUM = re.compile(r"(?<![A-Za-z0-9])0x[0-9a-fA-F]{40}(?![A-Za-z0-9])")
_MONERO = re.compile(r"(?<![A-Za-z0-9])[48][0-9AB][1-9A-HJ-NP-Za-km-z]{93}(?![A-Za-z0-9])")
_CASHADDR = re.compile(r"(?<![A-Za-z0-9])bitcoincash:[qp][02-9ac-hj-np-z]{41}(?![A-Za-z0-9])")
_SOLANA = re.compile(r"(?<![A-Za-z0-9])[1-9A-HJ-NP-Za-km-z]{32,44}(?![A-Za-z0-9])")
_LABEL_REACH: Final = 32
_RATE: Final = 136
_MASK: Final = (1 << 64) - 1


def find_coins(window: Window) -> Iterator[Found]:
    """Find addresses of wallets."""
    if len(window.text) - window.base < 26:  # noqa: PLR2004 - the shortest address
        return
    for pattern, check in _CHECKED:
        for match in window.matches(pattern):
            if check(match[0]):
                yield Found(*match.span(), "pii:CRYPTO")
    for match in window.matches(_SOLANA):
        near = window.near(match.start(), "crypto")
        if near is not None and near <= _LABEL_REACH and _mixed(match[0]):
            yield Found(*match.span(), "pii:CRYPTO", near)


def base58check(text: str, alphabet: str = _BASE58) -> bytes | None:
    """Return the payload of *text* (version and data) when its four check bytes are right."""
    number = 0
    for character in text:
        digit = alphabet.find(character)
        if digit < 0:
            return None
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    data = b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")
    body, check = data[:-4], data[-4:]
    return body if hashlib.sha256(hashlib.sha256(body).digest()).digest()[:4] == check else None


def bech32(text: str) -> bool:
    """Check BIP-173 or BIP-350."""
    lower = text.lower()
    prefix, _, data = lower.rpartition("1")
    values = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    values += [_BECH32.find(c) for c in data]
    if min(values) < 0:
        return False
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for at in range(5):
            check ^= _GENERATOR[at] if top >> at & 1 else 0
    return check in _BECH32_CHECKS


def eip55(text: str) -> bool:
    """Check the capitals of an Ethereum address; one without capitals, or with nothing else, carries no check."""
    body = text[2:]
    if body.lower() == body or body.upper() == body:
        return True
    digest = keccak256(body.lower().encode()).hex()
    return all(c.isdigit() or c.isupper() == (int(digest[at], 16) >= 8) for at, c in enumerate(body))  # noqa: PLR2004


def keccak256(data: bytes) -> bytes:
    """Return Keccak-256 (the padding before SHA-3's) of fewer than 136 bytes."""
    block = bytearray(data.ljust(_RATE, b"\0"))
    block[len(data)] ^= 0x01
    block[-1] ^= 0x80
    lanes = [int.from_bytes(block[at * 8 : at * 8 + 8], "little") for at in range(17)] + [0] * 8
    _permute(lanes)
    return b"".join(lane.to_bytes(8, "little") for lane in lanes[:4])


def _permute(a: list[int]) -> None:
    """Apply Keccak-f[1600] to 25 lanes, a[x + 5 * y]."""
    register = 1
    for _ in range(24):
        columns = [a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20] for x in range(5)]
        mixed = [columns[x - 1] ^ _rotated(columns[(x + 1) % 5], 1) for x in range(5)]
        a[:] = [a[at] ^ mixed[at % 5] for at in range(25)]
        x, y, lane = 1, 0, a[1]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            a[x + 5 * y], lane = _rotated(lane, (step + 1) * (step + 2) // 2 % 64), a[x + 5 * y]
        for row in range(0, 25, 5):
            line = a[row : row + 5]
            for x in range(5):
                a[row + x] = line[x] ^ (~line[(x + 1) % 5] & _MASK & line[(x + 2) % 5])
        for bit in range(7):
            register = (register << 1 ^ (register >> 7) * 0x171) & 0xFF
            if register & 2:
                a[0] ^= 1 << ((1 << bit) - 1)


def _rotated(lane: int, by: int) -> int:
    return (lane << by | lane >> (64 - by)) & _MASK


def _checked_address(text: str) -> bool:
    return base58check(text) is not None or (text[0] == "r" and base58check(text, _RIPPLE) is not None)


def _mixed(text: str) -> bool:
    return any(c.isdigit() for c in text) and any(c.isupper() for c in text) and any(c.islower() for c in text)


def _always(_text: str) -> bool:
    return True


_CHECKED: Final = (
    (_ADDRESS, _checked_address),
    (_SEGWIT, bech32),
    (_ETHEREUM, eip55),
    (_MONERO, _mixed),
    (_CASHADDR, _always),
)
