"""Words that say what a number is, or what it is not: the nearest one before a number decides.

`not` marks numbers that only look like a value: orders, versions, hashes, part numbers. Words are compared whole, in
lower case; identifiers (`card_number`, `cardNumber`) count as their parts. Scripts without spaces are searched.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

REACH: Final = 64
NOT: Final = "not"

WORDS: Final[dict[str, str]] = {
    NOT: """
        order orders invoice ticket case ref reference tracking parcel parcels shipment isbn issn ean upc gtin asin
        sku part parts model serial version versions release build builds upgrade upgraded update commit revision
        rev uuid guid issue bug pull page pages line lines row section chapter paragraph figure table item items
        product batch lot job step trace span checksum hash md5 sha sha1 sha256 digest timestamp epoch pid seed
        errno status doi arxiv pmid cve rfc room flight train gate score total sum amount price qty quantity
        population barcode firmware patch tag branch bestellung rechnung auftrag commande facture pedido factura
        ordine fattura bestelling factuur zamówienie faktura tilaus lasku ordre beställning imei meid iccid isrc
        width height offset bytes size checksums artikel article numero_serie seriennummer aktenzeichen
        auftragsnummer bestellnummer rechnungsnummer snapshot packet frame port pin_out chip board sensor node
        sequence seq index
    """,
    "card": """
        card cards creditcard cardnumber cc visa mastercard amex maestro discover diners jcb unionpay credit debit
        charge charged charges pay payment billing karte kreditkarte kreditkartennummer kartennummer kreditkort
        carte bancaire tarjeta carta cartão cartao kaart kaartnummer creditcardnummer kort kortnummer kortti
        luottokortti korttinumero karta karty kart \u043a\u0430\u0440\u0442\u0430 \u043a\u0430\u0440\u0442\u044b
    """,
    "iban": "iban bank konto kontonummer account compte cuenta conto conta rekening tili tilinumero rachunek",
    "phone": """
        phone phones telephone tel tele mobile mob cell cellphone fax whatsapp viber telegram sms dial ring ringing
        call called calling callback reach hotline helpline landline voicemail handy handynummer mobil mobilnummer
        telefon telefonnummer rufnummer fon anrufen rufen telefono teléfono teléphone telefone portable móvil movil
        celular cellulare llame llamar llama ligue ligar appelez appeler chiama chiamare mobiel mobiele gsm bel
        bellen puh puhelin puhelinnumero soita telefonu zadzwoń komórka tlf telefonnúmero \u0442\u0435\u043b
        \u0442\u0435\u043b\u0435\u0444\u043e\u043d \u0437\u0432\u043e\u043d\u0438\u0442\u0435 text message
        registered extension ext nummerprova ringa contact contacts
    """,
    "ssn": "ssn social socialsecurity itin taxpayer",
    "npi": "npi provider prescriber",
    "ein": "ein fein employer",
    "nhs": "nhs",
    "nino": "nino ni insurance",
    "tax_de": "steuer steuerid steueridentifikationsnummer steuernummer idnr tin identifikationsnummer",
    "pension_de": """
        rentenversicherung rentenversicherungsnummer sozialversicherungsnummer rvnr svnr versicherungsnummer
    """,
    "nir": "nir insee sécurité securite secu sécu vitale",
    "nif": "nif nie dni documento",
    "cf": "codice fiscale cf",
    "bsn": "bsn burgerservicenummer sofinummer",
    "pesel": "pesel",
    "nip": "nip",
    "hetu": "hetu henkilötunnus henkilotunnus sotu",
    "personnummer": "personnummer pnr samordningsnummer",
    "fnr": "fødselsnummer fodselsnummer fnr d-nummer",
    "cpr": "cpr cpr-nummer",
    "nrn": "rijksregisternummer national registre rrn insz niss",
    "ahv": "ahv avs sozialversicherung",
    "svnr": "sozialversicherungsnummer svnr svnummer versicherungsnummer",
    "nif_pt": "nif contribuinte niss",
    "pps": "pps ppsn",
    "cnp": "cnp",
    "egn": "egn \u0435\u0433\u043d",
    "rc": "rodné rodne rodč",
    "oib": "oib",
    "baltic": "isikukood asmens kodas",
    "afm": "afm \u03b1\u03c6\u03bc",
    "tckn": "tc tckn kimlik",
    "snils": "snils \u0441\u043d\u0438\u043b\u0441",
    "inn": "inn \u0438\u043d\u043d",
    "cpf": "cpf",
    "cnpj": "cnpj",
    "cuit": "cuit cuil dni",
    "rut": "rut run",
    "curp": "curp",
    "rfc_mx": "curp contribuyente",
    "aadhaar": "aadhaar aadhar adhaar uidai uid \u0906\u0927\u093e\u0930",
    "pan": "pan",
    "tfn": "tfn tax",
    "medicare": "medicare mbi",
    "abn": "abn",
    "sin": "sin nas insurance",
    "ric": "shenfenzheng resident identity",
    "rrn": "rrn resident jumin",
    "my_number": "mynumber my_number individual",
    "nric": "nric fin",
    "hkid": "hkid",
    "thai": "thai national citizen",
    "za": "id identity south",
    "teudat": "teudat zehut israeli",
    "mykad": "mykad nric ic",
    "passport": """
        passport passports passnummer reisepass reisepassnummer passeport pasaporte passaporto passaporte paspoort
        paspoortnummer passi passinumero paszport paszportu pass pasnummer
        \u043f\u0430\u0441\u043f\u043e\u0440\u0442
    """,
    "licence": """
        licence license driver drivers driving dl führerschein fuehrerschein permis conducir patente rijbewijs
        ajokortti carteira cnh prawo körkort kørekort
    """,
    "birth": """
        born birth birthday birthdate dob bday geboren geburtsdatum geb geburtstag né née naissance nacido nacida
        nacimiento cumpleaños nato nata nascita nascido nascida nascimento geboortedatum urodzony urodzona urodzenia
        syntynyt syntymäaika född födelsedatum født fødselsdato narozen narozena
        \u0440\u043e\u0434\u0438\u043b\u0441\u044f \u0440\u043e\u0434\u0438\u043b\u0430\u0441\u044c
        \u0440\u043e\u0436\u0434\u0435\u043d\u0438\u044f
    """,
    "ip": """
        ip ipv4 ipv6 host hosts server address addr ping subnet ssh gateway dns client peer lease router resolver
        netmask nameserver listen listening bind connect connected from_ip remote vpn firewall allow deny curl
    """,
    "gps": "gps lat latitude lon lng long longitude coordinates coordinate coords location geo position map",
    "zip": "zip zipcode postcode postal plz cap cep postleitzahl postnummer postinumero",
    "cvv": "cvv cvc cvv2 cvc2 csc",
    "pin": "pin",
    "plate": "plate kennzeichen registration",
    "swift": "swift bic",
    "routing": "routing aba rtn sort sortcode",
    "account": "account acct konto kontonummer rekening cuenta compte conto conta tilinumero rachunku",
    "medical": "mrn patient medical chart dea",
    "crypto": "wallet address btc bitcoin eth ethereum ltc litecoin doge xmr monero tron usdt solana sol xrp ripple",
}
_UNSPACED_WORDS: Final[dict[str, str]] = {
    "phone": "電話 携帯 手机 电话 手機 전화 휴대 연락처 \u0e42\u0e17\u0e23",
    "card": "カード 카드 信用卡 银行卡",
    "account": "口座 계좌 账号",
    "rrn": "주민",
    "ric": "身份证 身分證",
    "my_number": "マイナンバー 個人番号",
    "birth": "生年月日 生まれ 生日 出生 생년 생일",
    NOT: "註文 订单 주문",
    "passport": "パスポート 护照 여권",
}
_UNSPACED: Final = {word: label for label, words in _UNSPACED_WORDS.items() for word in words.split()}
_WORD = re.compile(r"[^\W\d_]+\d?")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _by_word() -> dict[str, frozenset[str]]:
    table: dict[str, set[str]] = {}
    for label, words in WORDS.items():
        for word in words.split():
            table.setdefault(word, set()).add(label)
    return {word: frozenset(labels) for word, labels in table.items()}


BY_WORD: Final = _by_word()


class Label(NamedTuple):
    """Where a word that names numbers ends, and what it names."""

    end: int
    names: frozenset[str]


def labels_in(text: str) -> list[Label]:
    """Return the labels of *text* in order."""
    found: list[Label] = []
    for match in _WORD.finditer(text):
        word = match[0]
        names = BY_WORD.get(word.lower())
        if names is not None:
            found.append(Label(match.end(), names))
        elif not (word.islower() or word.isupper() or word.istitle()):
            for part in _CAMEL.finditer(word):
                names = BY_WORD.get(part[0].lower())
                if names is not None:
                    found.append(Label(match.start() + part.end(), names))
    if not text.isascii():
        for word, label in _UNSPACED.items():
            at = text.rfind(word)
            if at >= 0:
                found.append(Label(at + len(word), frozenset({label})))
        found.sort(key=lambda label: label.end)
    return found


def distance(labels: list[Label], at: int, wanted: str) -> int | None:
    """Return how far before *at* the label *wanted* stands, if no `not` stands between; None when it does not."""
    for label in reversed(labels):
        if label.end > at:
            continue
        if at - label.end > REACH:
            return None
        if wanted in label.names:
            return at - label.end
        if NOT in label.names:
            return None
    return None
