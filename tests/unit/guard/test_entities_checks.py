"""Check digits against examples that others published, and against one wrong digit each."""

from __future__ import annotations

import pytest

from casemate.guard.entities import checks, coins, national

EXAMPLES = [
    (national.uk_nhs, "9434765919"),
    (national.de_tax, "86095742719"),
    (national.de_pension, "15070649C103"),
    (national.fr_nir, "255081416802538"),
    (national.es_nif, "12345678Z"),
    (national.es_nif, "X1234567L"),
    (national.it_cf, "RSSMRA85T10A562S"),
    (national.nl_bsn, "111222333"),
    (national.pl_pesel, "44051401359"),
    (national.pl_nip, "1234563218"),
    (national.fi_hetu, "131052-308T"),
    (national.se_personnummer, "8112189876"),
    (national.no_fnr, "29029600013"),
    (national.be_nrn, "85073003328"),
    (national.ch_ahv, "7569217076985"),
    (national.at_svnr, "1237010180"),
    (national.pt_nif, "501964843"),
    (national.ie_pps, "6433435F"),
    (national.ie_pps, "6433435OA"),
    (national.ro_cnp, "1630615123457"),
    (national.bg_egn, "7523169263"),
    (national.cz_rc, "7103192745"),
    (national.hr_oib, "33392005961"),
    (national.baltic, "37605030299"),
    (national.baltic, "33309240064"),
    (national.gr_afm, "094259216"),
    (national.tr_tckn, "17291716060"),
    (national.ru_snils, "11223344595"),
    (national.ru_inn, "7707083893"),
    (national.ru_inn, "500100732259"),
    (national.br_cpf, "39053344705"),
    (national.br_cnpj, "16727230000197"),
    (national.ar_cuit, "20055361682"),
    (national.cl_rut, "125319092"),
    (national.mx_curp, "BOXW310820HNERXN09"),
    (national.in_aadhaar, "234123412346"),
    (national.au_tfn, "123456782"),
    (national.au_medicare, "2123456701"),
    (national.au_abn, "83914571673"),
    (national.ca_sin, "130692544"),
    (national.cn_ric, "360426199101010071"),
    (national.jp_my_number, "123456789018"),
    (national.tw_id, "A123456789"),
    (national.sg_nric, "S1234567D"),
    (national.sg_nric, "G1234567X"),
    (national.hk_id, "A1234563"),
    (national.th_id, "1234545678781"),
    (national.za_id, "8001015009087"),
    (national.il_id, "039337423"),
    (national.us_npi, "1234567893"),
    (national.us_routing, "011000015"),
    (checks.luhn, "4111111111111111"),
    (checks.mod97, "GB29NWBK60161331926819"),
]


@pytest.mark.parametrize(("check", "value"), EXAMPLES)
def test_a_published_example_passes(check, value):
    assert check(value)


@pytest.mark.parametrize(("check", "value"), EXAMPLES)
def test_most_wrong_digits_fail(check, value):
    wrong = [value[:at] + str((int(c) + 1) % 10) + value[at + 1 :] for at, c in enumerate(value) if c.isdigit()]
    assert sum(bool(check(text)) for text in wrong) <= len(wrong) / 3


def test_us_numbers_that_nobody_has():
    assert national.us_ssn("123456789")
    assert not any(map(national.us_ssn, ["000456789", "666456789", "900456789", "123006789", "123450000", "078051120"]))
    assert national.us_itin("912903456")
    assert not national.us_itin("912893456")
    assert national.uk_nino("AB123456C")
    assert not national.uk_nino("BG123456C")


def test_keccak_is_not_sha3():
    assert coins.keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert coins.keccak256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"


def test_addresses_of_wallets():
    assert coins.base58check("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa") is not None
    assert coins.base58check("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb") is None
    assert coins.bech32("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0")
    assert coins.eip55("0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359")
    assert not coins.eip55("0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d35A")


def test_entropy():
    assert checks.entropy("") == checks.entropy("aaaa") == 0
    assert checks.entropy("abcd") == 2
