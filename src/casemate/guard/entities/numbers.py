"""Identity, tax, health and account numbers: one row per kind.

A row proposes by its pattern and decides by its check. A `strong` row has enough form or check digits to stand without
a word before it, unless the nearest word says that the number is something else (`labels`); the others need their own
word nearby.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from casemate.guard.entities import national as n
from casemate.guard.entities.dates import looks_like_years
from casemate.guard.entities.window import Found, Window

FAR: Final = 999
_BEFORE: Final = r"(?<![A-Za-z0-9_])(?<!\d[.,\-/])"
_AFTER: Final = r"(?![A-Za-z0-9_])(?![.,\-/]\d)"
_LETTER = re.compile(r"[A-Za-z]")
_BARE = re.compile(r"[^A-Z0-9+\-]")
_SIGNS = re.compile(r"[^A-Z0-9]")
S: Final = r"[ .\-]?"


class Row(NamedTuple):
    """One kind of number. `check` gets upper-case letters and digits only (and + - when `signs` is set).

    `needs` is a sign that every such number has: punctuation, or `A` for a letter.
    """

    kind: str
    label: str
    pattern: str
    check: Callable[[str], bool] | None = None
    strong: bool = False
    signs: bool = False
    least: int = 8
    needs: str = ""


ROWS: Final[tuple[Row, ...]] = (
    Row("US_SSN", "ssn", r"\d{3}-\d{2}-\d{4}", n.us_ssn, strong=True, needs="-"),
    Row("US_SSN", "ssn", r"\d{3}[ .]?\d{2}[ .]?\d{4}", n.us_ssn),
    Row("US_ITIN", "ssn", r"9\d{2}-\d{2}-\d{4}", n.us_itin, strong=True, needs="-"),
    Row("US_ITIN", "ssn", r"9\d{2} ?\d{2} ?\d{4}", n.us_itin),
    Row("US_EIN", "ein", r"\d{2}-?\d{7}"),
    Row("US_NPI", "npi", r"[12]\d{9}", n.us_npi),
    Row(
        "US_MBI",
        "medicare",
        r"[1-9][AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?[AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-?[AC-HJKMNP-RT-Y]{2}\d{2}",
        least=5,
    ),
    Row("UK_NHS", "nhs", rf"\d{{3}}{S}\d{{3}}{S}\d{{4}}", n.uk_nhs),
    Row(
        "UK_NINO",
        "nino",
        rf"[A-Za-z]{{2}}{S}\d{{2}}{S}\d{{2}}{S}\d{{2}}{S}[A-Da-d]",
        n.uk_nino,
        strong=True,
        least=6,
        needs="A",
    ),
    Row("DE_TAX_ID", "tax_de", r"\d{2}[ /]?\d{3}[ /]?\d{3}[ /]?\d{3}", n.de_tax),
    Row("DE_PENSION_ID", "pension_de", r"\d{2} ?\d{6} ?[A-Z] ?\d{3}", n.de_pension, strong=True, needs="A"),
    Row(
        "FR_NIR",
        "nir",
        r"[1-478] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}",
        n.fr_nir,
        strong=True,
    ),
    Row("ES_NIF", "nif", r"\d{8}[ \-]?[A-Za-z]", n.es_nif, strong=True, needs="A"),
    Row("ES_NIE", "nif", r"[XYZxyz][ \-]?\d{7}[ \-]?[A-Za-z]", n.es_nif, strong=True, least=7, needs="A"),
    Row(
        "IT_FISCAL_CODE",
        "cf",
        r"[A-Za-z]{6} ?\d{2}[A-EHLMPR-Ta-ehlmpr-t]\d{2} ?[A-Za-z]\d{3}[A-Za-z]",
        n.it_cf,
        strong=True,
        least=7,
    ),
    Row("NL_BSN", "bsn", rf"\d{{3,4}}{S}\d{{2,3}}{S}\d{{3}}", lambda v: len(v) == 9 and n.nl_bsn(v)),  # noqa: PLR2004
    Row("PL_PESEL", "pesel", r"\d{11}", n.pl_pesel),
    Row("PL_NIP", "nip", r"\d{3}-?\d{2,3}-?\d{2}-?\d{2,3}", lambda v: len(v) == 10 and n.pl_nip(v)),  # noqa: PLR2004
    Row("FI_HETU", "hetu", r"\d{6}[+\-A-FU-Yaubcdefvwxy]\d{3}[0-9A-Ya-y]", n.fi_hetu, strong=True, signs=True),
    Row("SE_PERSONNUMMER", "personnummer", r"(?:\d{2})?\d{6}[+\-]\d{4}", n.se_personnummer, strong=True),
    Row("SE_PERSONNUMMER", "personnummer", r"(?:\d{2})?\d{10}", n.se_personnummer),
    Row("NO_FODSELSNUMMER", "fnr", r"\d{6} ?\d{5}", n.no_fnr, strong=True),
    Row("DK_CPR", "cpr", r"\d{6}-?\d{4}", n.dk_cpr),
    Row("BE_NRN", "nrn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", n.be_nrn, strong=True, needs="."),
    Row("BE_NRN", "nrn", r"\d{11}", n.be_nrn),
    Row("CH_AHV", "ahv", rf"756{S}\d{{4}}{S}\d{{4}}{S}\d{{2}}", n.ch_ahv, strong=True),
    Row("AT_SVNR", "svnr", r"\d{4} ?\d{6}", n.at_svnr),
    Row("PT_NIF", "nif_pt", r"\d{3} ?\d{3} ?\d{3}", n.pt_nif),
    Row("IE_PPS", "pps", r"\d{7}[A-W][A-IW]?", n.ie_pps, least=7, needs="A"),
    Row("RO_CNP", "cnp", r"[1-8]\d{12}", n.ro_cnp, strong=True),
    Row("BG_EGN", "egn", r"\d{10}", n.bg_egn),
    Row("CZ_RC", "rc", r"\d{6}/\d{3,4}", n.cz_rc, strong=True, needs="/"),
    Row("HR_OIB", "oib", r"\d{11}", n.hr_oib),
    Row("BALTIC_ID", "baltic", r"[1-6]\d{10}", n.baltic),
    Row("GR_AFM", "afm", r"\d{9}", n.gr_afm),
    Row("TR_TCKN", "tckn", r"[1-9]\d{10}", n.tr_tckn),
    Row("RU_SNILS", "snils", r"\d{3}-\d{3}-\d{3}[ \-]\d{2}", n.ru_snils, strong=True, needs="-"),
    Row("RU_INN", "inn", r"\d{10}(?:\d{2})?", n.ru_inn),
    Row("BR_CPF", "cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}", n.br_cpf, strong=True, needs="."),
    Row("BR_CPF", "cpf", rf"\d{{3}}{S}\d{{3}}{S}\d{{3}}{S}\d{{2}}", n.br_cpf),
    Row("BR_CNPJ", "cnpj", r"\d{2}\.?\d{3}\.?\d{3}/\d{4}-?\d{2}", n.br_cnpj, strong=True, needs="/"),
    Row("BR_CNPJ", "cnpj", r"\d{14}", n.br_cnpj),
    Row("AR_CUIT", "cuit", r"\d{2}-\d{8}-\d", n.ar_cuit, strong=True, needs="-"),
    Row("AR_CUIT", "cuit", r"\d{11}", n.ar_cuit),
    Row("CL_RUT", "rut", r"\d{1,2}\.\d{3}\.\d{3}-[\dKk]", n.cl_rut, strong=True, needs="."),
    Row("CL_RUT", "rut", r"\d{7,8}-?[\dKk]", n.cl_rut, least=7),
    Row(
        "MX_CURP",
        "curp",
        r"[A-Z][AEIOUX][A-Z]{2}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d",
        n.mx_curp,
        strong=True,
        least=7,
        needs="A",
    ),
    Row("MX_RFC", "rfc_mx", r"[A-Z\u00d1&]{3,4}\d{6}[A-Z0-9]{3}", least=6, needs="A"),
    Row("IN_AADHAAR", "aadhaar", r"[2-9]\d{3} \d{4} \d{4}", n.in_aadhaar, strong=True),
    Row("IN_AADHAAR", "aadhaar", rf"[2-9]\d{{3}}{S}\d{{4}}{S}\d{{4}}", n.in_aadhaar),
    Row("IN_PAN", "pan", r"[A-Z]{3}[ABCFGHLJPTK][A-Z]\d{4}[A-Z]", strong=True, least=4, needs="A"),
    Row("IN_PAN", "pan", r"[A-Za-z]{5}\d{4}[A-Za-z]", least=4, needs="A"),
    Row("AU_TFN", "tfn", r"\d{3} ?\d{3} ?\d{3}", n.au_tfn),
    Row("AU_MEDICARE", "medicare", r"[2-6]\d{3} ?\d{5} ?\d", n.au_medicare),
    Row("AU_ABN", "abn", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", n.au_abn),
    Row("CA_SIN", "sin", r"\d{3}[ \-]?\d{3}[ \-]?\d{3}", n.ca_sin),
    Row("CN_RESIDENT_ID", "ric", r"[1-9]\d{16}[\dXx]", n.cn_ric, strong=True),
    Row("KR_RRN", "rrn", r"\d{6}-[1-8]\d{6}", n.kr_rrn, strong=True, needs="-"),
    Row("JP_MY_NUMBER", "my_number", rf"\d{{4}}{S}\d{{4}}{S}\d{{4}}", n.jp_my_number),
    Row("TW_ID", "nric", r"[A-Z][12]\d{8}", n.tw_id, strong=True, needs="A"),
    Row("SG_NRIC", "nric", r"[STFGMstfgm]\d{7}[A-Za-z]", n.sg_nric, strong=True, least=7, needs="A"),
    Row("HK_ID", "hkid", r"[A-Z]{1,2}\d{6} ?\([0-9A]\)", n.hk_id, strong=True, least=6, needs="A"),
    Row("TH_ID", "thai", r"[1-8]-\d{4}-\d{5}-\d{2}-\d", n.th_id, strong=True, needs="-"),
    Row("TH_ID", "thai", r"[1-8] ?\d{4} ?\d{5} ?\d{2} ?\d", n.th_id),
    Row("ZA_ID", "za", r"\d{6} ?\d{4} ?\d{2} ?\d|\d{13}", n.za_id),
    Row("IL_ID", "teudat", r"\d{9}", n.il_id),
    Row("MY_NRIC", "mykad", r"\d{6}-?\d{2}-?\d{4}", n.is_yymmdd_id),
    Row("PASSPORT", "passport", r"[A-Z]{0,2} ?\d{6,9}[A-Z]?|[CFGHJKLMNPRTVWXYZ][0-9CFGHJKLMNPRTVWXYZ]{8}", least=3),
    Row(
        "DRIVER_LICENSE",
        "licence",
        r"[A-Z]{1,3}[ \-]?\d{3,4}[ \-]?\d{3,4}[ \-]?\d{0,5}|\d{7,12}|[A-Z9]{5}\d{6}[A-Z9]{2}[A-Z0-9]{3}",
        least=6,
    ),
    Row("US_BANK_ROUTING", "routing", r"\d{9}", n.us_routing),
    Row("UK_SORT_CODE", "routing", r"\d{2}-\d{2}-\d{2}", least=6, needs="-"),
    Row("BANK_ACCOUNT", "account", r"\d{4,6}[ \-]?\d{3,6}[ \-]?\d{0,6}", least=7),
    Row("MEDICAL_RECORD", "medical", r"[A-Z]{0,3}-?\d{6,10}", least=6),
)
_Compiled = tuple[Row, re.Pattern[str]]
_COMPILED: Final[tuple[_Compiled, ...]] = tuple(
    (row, re.compile(f"{_BEFORE}(?:{row.pattern}){_AFTER}")) for row in ROWS
)
_STRONG: Final = {
    sign: tuple(pair for pair in _COMPILED if pair[0].strong and pair[0].needs == sign)
    for sign in {row.needs for row in ROWS if row.strong}
}
_ANY_STRONG: Final = {
    sign: re.compile(f"{_BEFORE}(?:{'|'.join(f'(?:{row.pattern})' for row, _ in pairs)}){_AFTER}")
    for sign, pairs in _STRONG.items()
}
_WEAK: Final = {
    label: tuple(pair for pair in _COMPILED if not pair[0].strong and pair[0].label == label)
    for label in {row.label for row in ROWS}
}
_LEAST: Final = min(row.least for row in ROWS)


def find_numbers(window: Window) -> Iterator[Found]:
    """Find the numbers of the table."""
    digits = window.digits
    if digits < _LEAST:
        return
    for row, pattern in _candidates(window):
        if digits >= row.least:
            for match in window.matches(pattern):
                rank = _decide(row, match, window)
                if rank is not None:
                    yield Found(*match.span(), f"pii:{row.kind}", rank)


def _candidates(window: Window) -> Iterator[_Compiled]:
    """Return the rows whose signs the segment has, or whose word stands near."""
    segment = window.text[window.base :]
    signs = {sign for sign in "-./" if sign in segment} | {""}
    if _LETTER.search(segment):
        signs.add("A")
    for sign in signs:
        if sign in _STRONG and _ANY_STRONG[sign].search(window.text, window.base):
            yield from _STRONG[sign]
    for name in {name for label in window.labels for name in label.names}:
        for pair in _WEAK.get(name, ()):
            if pair[0].needs in signs:
                yield pair


def _decide(row: Row, match: re.Match[str], window: Window) -> int | None:
    """Return how close the number's own word stands, FAR for a strong one without, None when it is no such number."""
    rank = window.near(match.start(), row.label)
    if rank is None:
        if not row.strong or window.denied(match.start()):
            return None
        rank = FAR
    if row.check is None:
        return None if looks_like_years(match[0]) else rank
    bare = (_BARE if row.signs else _SIGNS).sub("", match[0].upper())
    return rank if row.check(bare) else None
