"""Made-up personal data and secrets with right checksums, and sentences to put them in. Nothing here is anyone's.

Written independently of the rules: check digits are searched with the public definition, formats come from their
issuers' documentation. `Maker(seed)` gives the same values for the same seed.
"""

from __future__ import annotations

import base64
import hashlib
import random
import string
import uuid
from collections.abc import Callable

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
MONTHS = "January February March April May June July August September October November December".split()  # noqa: SIM905
LOWER, UPPER, DIGITS = string.ascii_lowercase, string.ascii_uppercase, string.digits


def grouped(value: str, sizes: list[int], gap: str = " ") -> str:
    """Cut *value* into groups of *sizes* (the last one takes what is left) joined by *gap*."""
    parts, at = [], 0
    for size in sizes:
        parts.append(value[at : at + size])
        at += size
    parts.append(value[at:])
    return gap.join(part for part in parts if part)


def luhn_digit(body: str) -> str:
    total = 0
    for at, digit in enumerate(reversed(body)):
        double = int(digit) * (2 if at % 2 == 0 else 1)
        total += double - 9 if double > 9 else double
    return str(-total % 10)


class Maker:
    """Makes values of every kind."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def of(self, alphabet: str, size: int) -> str:
        return "".join(self.chance.choice(alphabet) for _ in range(size))

    def digits(self, size: int) -> str:
        return self.of(DIGITS, size)

    def one(self, *values: str) -> str:
        return self.chance.choice(values)

    def email(self) -> str:
        name = self.one("maria", "jan.novak", "li_wei", "r.o-brien", "sales", "info+spam", "max.mustermann", "x")
        host = self.one(
            "gmail.com", "corp.example.org", "web.de", "uni-bonn.de", "acme.co.uk", "proton.me", "firma.com.pl"
        )
        return f"{name}{self.one('', '7', '99')}@{host}"

    def card(self) -> str:
        start = self.one("4", "51", "55", "2221", "6011", "3528")
        body = start + self.digits(15 - len(start))
        return body + luhn_digit(body)

    def card_in_groups(self) -> str:
        return grouped(self.card(), [4, 4, 4], self.one(" ", "-"))

    def amex(self) -> str:
        body = "37" + self.digits(12)
        return body + luhn_digit(body)

    def iban(self) -> str:
        country, size, letters = self.chance.choice(
            [("DE", 18, 0), ("FR", 23, 0), ("GB", 18, 4), ("NL", 14, 4), ("ES", 20, 0)]
        )
        body = self.of(UPPER, letters) + self.digits(size - letters)
        number = int("".join(str(int(c, 36)) for c in f"{body}{country}00"))
        return f"{country}{98 - number % 97:02d}{body}"

    def iban_in_fours(self) -> str:
        return grouped(self.iban(), [4] * 8)

    def phone(self) -> str:
        return self.chance.choice(
            [
                lambda: f"+1 212 5{self.digits(2)} {self.digits(4)}",
                lambda: f"(415) 7{self.digits(2)}-{self.digits(4)}",
                lambda: f"+49 {self.one('30', '89', '171')} {self.digits(7)}",
                lambda: f"030/{self.digits(7)}",
                lambda: f"+44 20 7{self.digits(3)} {self.digits(4)}",
                lambda: f"+33 6 {grouped(self.digits(8), [2, 2, 2])}",
                lambda: f"01 {grouped(self.digits(8), [2, 2, 2])}",
                lambda: f"+39 3{self.digits(2)} {self.digits(7)}",
                lambda: f"+91 9{self.digits(4)} {self.digits(5)}",
                lambda: f"+81-90-{self.digits(4)}-{self.digits(4)}",
                lambda: f"+55 (11) 9{self.digits(4)}-{self.digits(4)}",
            ]
        )()

    def ssn(self) -> str:
        return f"{self.chance.randint(100, 665)}-{self.chance.randint(10, 99)}-{self.chance.randint(1000, 9998)}"

    def ipv4(self) -> str:
        return ".".join(str(self.chance.randint(41, 254)) for _ in range(4))

    def ipv6(self) -> str:
        return "2001:db8::" + ":".join(f"{self.chance.randint(4096, 65535):x}" for _ in range(3))

    def mac(self) -> str:
        return ":".join(f"{self.chance.randint(16, 255):02x}" for _ in range(6)).replace("a", "1")

    def date(self) -> str:
        year, month, day = self.chance.randint(1940, 2010), self.chance.randint(1, 12), self.chance.randint(1, 28)
        return self.one(
            f"{year}-{month:02}-{day:02}",
            f"{day:02}.{month:02}.{year}",
            f"{month}/{day}/{year}",
            f"{day} {MONTHS[month - 1]} {year}",
            f"{MONTHS[month - 1]} {day}, {year}",
        )

    def bitcoin(self) -> str:
        data = bytes([self.chance.choice([0, 5])]) + self.chance.randbytes(20)
        data += hashlib.sha256(hashlib.sha256(data).digest()).digest()[:4]
        number, text = int.from_bytes(data, "big"), ""
        while number:
            number, rest = divmod(number, 58)
            text = BASE58[rest] + text
        return "1" * (len(data) - len(data.lstrip(b"\0"))) + text

    def hexadecimal(self, size: int) -> str:
        return self.of("0123456789abcdef", size)

    def random_key(self) -> str:
        return self.chance.choice(
            [
                lambda: self.of(LOWER + DIGITS, self.chance.choice([20, 24, 32, 40])),
                lambda: self.of(LOWER + UPPER + DIGITS, self.chance.choice([20, 24, 32, 40, 64])),
                lambda: self.hexadecimal(self.chance.choice([24, 32, 40, 64])),
                lambda: base64.b64encode(self.chance.randbytes(32)).decode(),
                lambda: str(uuid.UUID(int=self.chance.getrandbits(128))),
            ]
        )()

    def password(self) -> str:
        return self.chance.choice(
            [
                lambda: self.of(LOWER + UPPER + DIGITS, 7) + self.one("#7", "_x9", "+Q2", "$4r"),
                lambda: self.one("Sommer", "Dragon", "Orange", "Berlin") + self.one("2024x", "99", "#1", "_x7"),
            ]
        )()

    def private_key(self) -> str:
        lines = "\n".join(self.of(LOWER + UPPER + DIGITS + "+/", 64) for _ in range(6))
        return f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----"

    def jwt(self) -> str:
        parts = (
            b'{"alg":"HS256","typ":"JWT"}',
            b'{"sub":"' + self.digits(8).encode() + b'"}',
            self.chance.randbytes(32),
        )
        return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)

    def github_token(self) -> str:
        return "ghp_" + self.of(LOWER + UPPER + DIGITS, 36)


# kind -> how it is made, sentences around it
PERSONAL: dict[str, tuple[Callable[[Maker], str], list[str]]] = {
    "EMAIL_ADDRESS": (
        Maker.email,
        ["Reach me under {} please.", "<{}> wrote:", '"email": "{}"', "Schreib mir an {}!", "{}"],
    ),
    "PHONE_NUMBER": (
        Maker.phone,
        ["Call me on {}", "tel: {}", "Meine Handynummer ist {}", "Appelez-moi au {}", "fax {}"],
    ),
    "CREDIT_CARD": (
        Maker.card,
        ["my visa is {}", "pay with card {} exp 04/27", '"pan": "{}"', "Kreditkarte {}", "{} cvv 12"],
    ),
    "IBAN_CODE": (Maker.iban_in_fours, ["IBAN {}", "transfer it to {} today", "Konto {}"]),
    "US_SSN": (Maker.ssn, ["SSN {}", "my social is {}", "applicant {} approved"]),
    "IP_ADDRESS": (Maker.ipv4, ["server {} is down", "login from {}", "connect to {}:8080", "{} - - [10/Oct]"]),
    "MAC_ADDRESS": (Maker.mac, ["ether {}", "device {} joined"]),
    "DATE_OF_BIRTH": (Maker.date, ["born {}", "DOB: {}", "geboren am {}", "Her birthday is {}", '"dob": "{}"']),
    "CRYPTO": (Maker.bitcoin, ["send btc to {}", "donations: {}", "{}"]),
}
SECRETS: dict[str, tuple[Callable[[Maker], str], list[str]]] = {
    "key": (
        Maker.random_key,
        ["ACME_API_KEY={}", '"zetaToken": "{}",', "token for okapi is {}", "https://a.example/v1?api_key={}&q=1"],
    ),
    "password": (Maker.password, ["password: {}", "DB_PASSWORD='{}'", "mot de passe : {}", "redis://:{}@cache:6379/0"]),
    "private-key": (Maker.private_key, ["here is my key\n{}\nthanks", "key:\n{}"]),
    "jwt": (Maker.jwt, ["Authorization: Bearer {}", "cookie session={}; Path=/", "{}"]),
    "github-pat": (Maker.github_token, ["export GITHUB_TOKEN={}", "use {} to clone", "{}"]),
}
HARMLESS = [
    *(
        "Order {d16} was split into three parcels.",
        "Invoice no. {d12} is overdue",
        "tracking number {d16}",
        "ticket #{d8}",
    ),
    *(
        "ISBN 978-3-16-148410-0",
        "EAN 4006381333931",
        "IMEI 490154203237518",
        "uuid {uuid}",
        "commit {h40}",
        "sha256:{h64}",
    ),
    *("md5 {h32}", 'etag W/"{h32}"', "build {d10}.{d3}", "Upgrade from 2.4.1.9 to 12.10.3.4", "firmware 4.12.33.7"),
    *("section 4.3.2.1 explains", "RFC 2822", "doi 10.1000/182", "CAS 7732-18-5", "page 1234", "0x7ffeefbff5c8"),
    *(
        "timestamp 1700000000",
        "at 12:34:56.789",
        "1,234,567.89 USD",
        "ratio 16:9",
        "pi is 3.14159265358979",
        "3-6, 6-4, 7-5",
    ),
    *(
        "trace_id={h32} span_id={h16}",
        "alpine@sha256:{h64}",
        "the year 1984",
        "between 1990-2000",
        "{d8} bytes",
        "id: {d6}",
    ),
    *(
        "The password must be at least 12 characters",
        "password is incorrect",
        "password = getpass.getpass()",
        "token: <your token>",
    ),
    *(
        "API_KEY=${API_KEY}",
        "secrets.token_hex(16)",
        "the key idea is simple",
        "primary key: user_{d6}",
        "public key {h64}",
    ),
    *("Contact support", "Dear customer,", "this is Python", "std::vector<int>::iterator", "12:30 - 14:00", "foo@bar"),
    *(
        "loss: 0.34512, 0.23141",
        "GPS is off",
        "1 2 3 4 5 6 7 8 9 10",
        "call 911",
        "iPhone 15 Pro",
        "802.11ac",
        "C:\\Users\\bob\\a.txt",
    ),
    *(
        "sk-xxxxxxxxxxxxxxxxxxxxxxxx is a placeholder",
        "AKIAIOSFODNN7EXAMPLE",
        "some_very_long_function_name_with_words",
    ),
    *(
        "The secret of good bread is time, the token of love is a ring.",
        "max_tokens=2048",
        "fingerprint SHA256:nThbg6kXUpJWGl7E1IGOC",
    ),
]


def harmless(maker: Maker, text: str) -> str:
    """Return *text* with its numbers, hashes and UUIDs filled in."""
    for name, size in (("d16", 16), ("d12", 12), ("d10", 10), ("d8", 8), ("d6", 6), ("d3", 3)):
        text = text.replace(f"{{{name}}}", maker.digits(size))
    for name, size in (("h64", 64), ("h40", 40), ("h32", 32), ("h16", 16)):
        text = text.replace(f"{{{name}}}", maker.hexadecimal(size))
    return text.replace("{uuid}", str(uuid.UUID(int=maker.chance.getrandbits(128))))


def texts(seed: int, count: int) -> list[str]:
    """Return *count* texts that mix values, harmless look-alikes and prose."""
    maker = Maker(seed)
    rows = [*PERSONAL.values(), *SECRETS.values()]
    prose = [
        "The quick brown fox jumps over the lazy dog",
        "Please summarise the meeting in two sentences",
        "Sure, here it is",
    ]
    made = []
    for _ in range(count):
        parts = []
        for _ in range(maker.chance.randint(1, 6)):
            if maker.chance.random() < 0.4:
                make, sentences = maker.chance.choice(rows)
                parts.append(maker.chance.choice(sentences).replace("{}", make(maker)))
            elif maker.chance.random() < 0.5:
                parts.append(harmless(maker, maker.chance.choice(HARMLESS)))
            else:
                parts.append(maker.chance.choice(prose))
        made.append(maker.one(" ", ". ", "\n", ", ").join(parts))
    return made
