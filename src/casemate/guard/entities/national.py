"""Checks of national identity, tax and health numbers. Each takes bare characters, upper case, no separators."""

from __future__ import annotations

from typing import Final

from casemate.guard.entities.checks import (
    check_mod11,
    ddmmyy,
    is_date,
    luhn,
    mod11_10,
    varied,
    verhoeff,
    weighted,
    yymmdd,
)

_NIF_LETTERS: Final = "TRWAGMYFPDXBNJZSQVHLCKE"
_HETU_SIGNS: Final = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_CF_ODD: Final = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (
            *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21),
            *(2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        ),
        strict=True,
    )
)
_CURP_SIGNS: Final = "0123456789ABCDEFGHIJKLMN\u00d1OPQRSTUVWXYZ"
_TW_CITIES: Final = "ABCDEFGHJKLMNPQRSTUVXYWZIO"


def us_ssn(n: str) -> bool:
    """Area, group and serial that the SSA can issue (no 000, 666, 9xx; no advertisement numbers)."""
    return (
        n[:3] not in ("000", "666")
        and n[0] != "9"
        and n[3:5] != "00"
        and n[5:] != "0000"
        and n not in ("078051120", "219099999")
        and varied(n)
    )


def us_itin(n: str) -> bool:
    """9xx with a group that the IRS issues."""
    group = int(n[3:5])
    return n[0] == "9" and (50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99)  # noqa: PLR2004


def us_npi(n: str) -> bool:
    """Luhn with the card prefix 80840."""
    return n[0] in "12" and luhn("80840" + n)


def us_routing(n: str) -> bool:
    """Weights 3 7 1, modulo 10."""
    return varied(n) and weighted(n, (3, 7, 1) * 3) % 10 == 0


def uk_nhs(n: str) -> bool:
    """Weights 10..2, modulo 11."""
    return varied(n) and check_mod11(n, (10, 9, 8, 7, 6, 5, 4, 3, 2))


def uk_nino(n: str) -> bool:
    """Prefixes that HMRC uses."""
    return n[0] not in "DFIQUV" and n[1] not in "DFIQUVO" and n[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def de_tax(n: str) -> bool:
    """ISO 7064 mod 11,10; among the first ten digits one occurs twice or three times."""
    most = max(n[:10].count(d) for d in n[:10])
    return n[0] != "0" and 2 <= most <= 3 and mod11_10(n)  # noqa: PLR2004


def de_pension(n: str) -> bool:
    """Digit sums of weighted digits, the letter as two digits."""
    digits = n[:8] + f"{ord(n[8]) - 64:02d}" + n[9:11]
    total = 0
    for digit, weight in zip(digits, (2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), strict=True):
        total += sum(divmod(int(digit) * weight, 10))
    return total % 10 == int(n[11])


def fr_nir(n: str) -> bool:
    """97 minus the number modulo 97; Corsica's letters count as digits."""
    body = n[:13].replace("2A", "19").replace("2B", "18")
    return body.isdigit() and 97 - int(body) % 97 == int(n[13:])


def es_nif(n: str) -> bool:
    """Check the letter of the number modulo 23; X, Y, Z of a NIE count as 0, 1, 2."""
    body = n[:-1].translate(str.maketrans("XYZ", "012"))
    return _NIF_LETTERS[int(body) % 23] == n[-1]


def it_cf(n: str) -> bool:
    """Check the sum of odd and even values modulo 26."""
    total = sum(_CF_ODD[c] for c in n[:15:2])
    total += sum(int(c) if c.isdigit() else ord(c) - 65 for c in n[1:15:2])
    return chr(65 + total % 26) == n[15]


def nl_bsn(n: str) -> bool:
    """Apply the eleven test."""
    return varied(n) and (weighted(n, (9, 8, 7, 6, 5, 4, 3, 2)) - int(n[8])) % 11 == 0


def pl_pesel(n: str) -> bool:
    """Check a date with the century in the month, weights 1 3 7 9."""
    return (
        is_date(int(n[:2]), int(n[2:4]) % 20, int(n[4:6])) and weighted(n, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0
    )


def pl_nip(n: str) -> bool:
    """Weights 6 5 7 2 3 4 5 6 7, modulo 11."""
    return varied(n) and weighted(n, (6, 5, 7, 2, 3, 4, 5, 6, 7)) % 11 == int(n[9])


def fi_hetu(n: str) -> bool:
    """Check a date and the sign of date and number modulo 31 (the century sign stands at 6)."""
    return ddmmyy(n[:6]) and _HETU_SIGNS[int(n[:6] + n[7:10]) % 31] == n[10]


def se_personnummer(n: str) -> bool:
    """Check a date (or a coordination number: day + 60) and Luhn over the last ten."""
    last = n[-10:]
    return is_date(int(last[:2]), int(last[2:4]), int(last[4:6]) % 60) and luhn(last)


def no_fnr(n: str) -> bool:
    """Check a date and two check digits."""
    if not is_date(int(n[4:6]), int(n[2:4]) % 40, int(n[:2]) % 40):
        return False
    return check_mod11(n, (3, 7, 6, 1, 8, 9, 4, 5, 2)) and check_mod11(n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2))


def dk_cpr(n: str) -> bool:
    """Check a date; numbers since 2007 have no check digit."""
    return ddmmyy(n[:6])


def be_nrn(n: str) -> bool:
    """97 minus the first nine digits modulo 97, with a 2 before them since 2000."""
    return varied(n) and int(n[9:]) in (97 - int(n[:9]) % 97, 97 - int("2" + n[:9]) % 97)


def ch_ahv(n: str) -> bool:
    """EAN-13 with 756."""
    return (10 - weighted(n, (1, 3) * 6) % 10) % 10 == int(n[12])


def at_svnr(n: str) -> bool:
    """Weights 3 7 9 0 5 8 4 2 1 6, modulo 11, the check digit fourth."""
    return n[0] != "0" and ddmmyy(n[4:]) and weighted(n, (3, 7, 9, 0, 5, 8, 4, 2, 1, 6)) % 11 == int(n[3])


def pt_nif(n: str) -> bool:
    """Weights 9..2, modulo 11."""
    return n[0] in "1235689" and check_mod11(n, (9, 8, 7, 6, 5, 4, 3, 2), ten=0)


def ie_pps(n: str) -> bool:
    """Weights 8..2 and the second letter times nine, modulo 23."""
    second = ord(n[8]) - 64 if len(n) > 8 and n[8] != "W" else 0  # noqa: PLR2004
    total = weighted(n[:7], (8, 7, 6, 5, 4, 3, 2)) + 9 * second
    return "WABCDEFGHIJKLMNOPQRSTUV"[total % 23] == n[7]


def ro_cnp(n: str) -> bool:
    """Check a date and weights 279146358279, modulo 11."""
    check = weighted(n, (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return n[0] in "12345678" and yymmdd(n[1:7]) and min(check, 10) % 10 + (check == 10) == int(n[12])  # noqa: PLR2004


def bg_egn(n: str) -> bool:
    """Check a date with the century in the month and weights 2 4 8 5 10 9 7 3 6."""
    if not is_date(int(n[:2]), int(n[2:4]) % 20, int(n[4:6])):
        return False
    return weighted(n, (2, 4, 8, 5, 10, 9, 7, 3, 6)) % 11 % 10 == int(n[9])


def cz_rc(n: str) -> bool:
    """Check a date (women: month + 50) and divisible by 11 since 1954."""
    month = int(n[2:4]) % 50
    return is_date(int(n[:2]), month % 20, int(n[4:6])) and (len(n) == 9 or int(n) % 11 == 0 or int(n[:9]) % 11 == 10)  # noqa: PLR2004


def hr_oib(n: str) -> bool:
    """ISO 7064 mod 11,10."""
    return varied(n) and mod11_10(n)


def baltic(n: str) -> bool:
    """Estonia and Lithuania: a date and two rounds of weights."""
    if n[0] not in "123456" or not yymmdd(n[1:7]):
        return False
    check = weighted(n, (1, 2, 3, 4, 5, 6, 7, 8, 9, 1)) % 11
    if check == 10:  # noqa: PLR2004
        check = weighted(n, (3, 4, 5, 6, 7, 8, 9, 1, 2, 3)) % 11 % 10
    return check == int(n[10])


def gr_afm(n: str) -> bool:
    """Powers of two, modulo 11."""
    return varied(n) and weighted(n, (256, 128, 64, 32, 16, 8, 4, 2)) % 11 % 10 == int(n[8])


def tr_tckn(n: str) -> bool:
    """Two check digits."""
    if n[0] == "0":
        return False
    odd, even = sum(int(c) for c in n[:9:2]), sum(int(c) for c in n[1:8:2])
    return (odd * 7 - even) % 10 == int(n[9]) and sum(int(c) for c in n[:10]) % 10 == int(n[10])


def ru_snils(n: str) -> bool:
    """Weights 9..1, modulo 101."""
    return varied(n) and weighted(n, (9, 8, 7, 6, 5, 4, 3, 2, 1)) % 101 % 100 == int(n[9:])


def ru_inn(n: str) -> bool:
    """One check digit for firms, two for people."""
    if len(n) == 10:  # noqa: PLR2004
        return weighted(n, (2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10 == int(n[9])
    return weighted(n, (7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10 == int(n[10]) and weighted(
        n, (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)
    ) % 11 % 10 == int(n[11])


def br_cpf(n: str) -> bool:
    """Two check digits modulo 11."""
    return varied(n) and all(
        weighted(n, range(length + 1, 1, -1)) * 10 % 11 % 10 == int(n[length]) for length in (9, 10)
    )


def br_cnpj(n: str) -> bool:
    """Two check digits modulo 11."""
    weights = (6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2)
    return varied(n) and all(check_mod11(n, weights[-length:], ten=0) for length in (12, 13))


def ar_cuit(n: str) -> bool:
    """Weights 5 4 3 2 7 6 5 4 3 2, modulo 11."""
    return n[:2] in ("20", "23", "24", "25", "26", "27", "30", "33", "34") and check_mod11(
        n, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2), ten=9
    )


def cl_rut(n: str) -> bool:
    """Weights 2..7 from the right, modulo 11, K for ten."""
    total = sum(int(c) * (2 + at % 6) for at, c in enumerate(reversed(n[:-1])))
    return "0123456789K"[-total % 11] == n[-1]


def mx_curp(n: str) -> bool:
    """Check a date and the weighted signs modulo 10."""
    total = sum(_CURP_SIGNS.index(c) * (18 - at) for at, c in enumerate(n[:17]))
    return yymmdd(n[4:10]) and n[17].isdigit() and -total % 10 == int(n[17])


def in_aadhaar(n: str) -> bool:
    """Verhoeff; no leading 0 or 1."""
    return n[0] not in "01" and varied(n) and verhoeff(n)


def au_tfn(n: str) -> bool:
    """Weights 1 4 3 7 5 8 6 9 10, modulo 11."""
    return varied(n) and weighted(n, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def au_medicare(n: str) -> bool:
    """Weights 1 3 7 9 1 3 7 9, modulo 10."""
    return n[0] in "23456" and weighted(n, (1, 3, 7, 9, 1, 3, 7, 9)) % 10 == int(n[8])


def au_abn(n: str) -> bool:
    """Check the first digit less one, modulo 89."""
    return n[0] != "0" and weighted(str(int(n[0]) - 1) + n[1:], (10, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19)) % 89 == 0


def ca_sin(n: str) -> bool:
    """Luhn; no leading 0 or 8."""
    return n[0] not in "08" and varied(n) and luhn(n)


def cn_ric(n: str) -> bool:
    """Check a date and ISO 7064 mod 11-2."""
    if not is_date(int(n[6:10]), int(n[10:12]), int(n[12:14])) or n[6:8] not in ("18", "19", "20"):
        return False
    total = weighted(n[:17], (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2))
    return "10X98765432"[total % 11] == n[17]


def kr_rrn(n: str) -> bool:
    """Check a date; numbers since 2020 have no check digit."""
    return yymmdd(n[:6])


def jp_my_number(n: str) -> bool:
    """Weights 6 5 4 3 2 7 6 5 4 3 2, modulo 11."""
    rest = weighted(n, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return varied(n) and (0 if rest <= 1 else 11 - rest) == int(n[11])


def tw_id(n: str) -> bool:
    """Check the letter as two digits, weights 1 9 8..1 1, modulo 10."""
    city = _TW_CITIES.index(n[0]) + 10
    return (city // 10 + city % 10 * 9 + weighted(n[1:], (8, 7, 6, 5, 4, 3, 2, 1, 1))) % 10 == 0


def sg_nric(n: str) -> bool:
    """Weights 2 7 6 5 4 3 2 and an offset by series."""
    total = weighted(n[1:8], (2, 7, 6, 5, 4, 3, 2)) + {"T": 4, "G": 4, "M": 3}.get(n[0], 0)
    table = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "M": "KLJNPQRTUWX"}.get(n[0], "XWUTRQPNMLK")
    at = 10 - total % 11 if n[0] == "M" else total % 11
    return table[at] == n[8]


def hk_id(n: str) -> bool:
    """Letters as 10..35, a missing first one as 36, modulo 11."""
    padded = n if len(n) == 9 else " " + n  # noqa: PLR2004
    values = [36 if c == " " else int(c, 36) for c in padded[:8]]
    total = sum(v * w for v, w in zip(values, range(9, 1, -1), strict=True))
    check = 10 if padded[8] == "A" else int(padded[8])
    return (total + check) % 11 == 0


def th_id(n: str) -> bool:
    """Weights 13..2, modulo 11."""
    return n[0] in "12345678" and (11 - weighted(n, range(13, 1, -1)) % 11) % 10 == int(n[12])


def za_id(n: str) -> bool:
    """Check a date and Luhn."""
    return yymmdd(n[:6]) and luhn(n)


def il_id(n: str) -> bool:
    """Luhn over nine digits."""
    return varied(n) and luhn(n)


def is_yymmdd_id(n: str) -> bool:
    """Check a date at the beginning and no known check digit (Malaysia)."""
    return yymmdd(n[:6])
