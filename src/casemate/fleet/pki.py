"""The fleet's certificate authority on disk: made once, root first, and the root can leave.

The root signs intermediates and the charter (which other keys speak for the fleet), nothing else: after `export_root`
the server runs without it for as long as the intermediate is valid. Every intermediate that is still valid is believed,
so one can be replaced while devices hold certificates of the one before.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from casemate.clock import Clock
from casemate.crypto import authority, x509
from casemate.crypto.authority import Issuer
from casemate.crypto.ecdsa import EcKey, EcPublic
from casemate.errors import BusyError, NotFoundError, OperationError
from casemate.fleet.home import KEYS, FleetHome
from casemate.formats import enrolment
from casemate.formats.tlog import VerifierKey

ROOT_DAYS: Final = 3650
INTERMEDIATE_DAYS: Final = 730
DEVICE_SECONDS: Final = 7 * 86400.0
SERVER_SECONDS: Final = 90 * 86400.0
_RENEW_BEFORE: Final = 30 * 86400.0


@dataclasses.dataclass(frozen=True, slots=True)
class Authority:
    """What a running server needs to issue and to check; the root's key is not in it."""

    root: bytes
    intermediates: tuple[bytes, ...]
    """Every one that is valid, newest first."""
    issuer: Issuer

    def issue_device(self, public: EcPublic, device: str, now: float) -> bytes:
        """Return a seven-day certificate (DER) for *device*."""
        return self.issuer.device(public, device, now, DEVICE_SECONDS)

    def chain(self) -> tuple[bytes, ...]:
        """Return what EST's cacerts lists: the root and every valid intermediate."""
        return (self.root, *self.intermediates)

    def is_ours(self, certificate: bytes) -> bool:
        """Return whether one of the intermediates issued *certificate* (DER)."""
        return any(x509.is_issued_by(certificate, each) for each in self.intermediates)


def create(home: FleetHome, fleet: str, clock: Clock) -> None:
    """Make root, intermediate and every key, and have the root sign the charter."""
    now = clock.wall()
    root = EcKey.generate()
    certificate = authority.make_root(root, f"Casemate fleet {fleet[:8]} root", now, ROOT_DAYS)
    home.write(home.ca / "root.key", root.pem())
    home.write(home.root, x509.to_pem(certificate).encode(), mode=0o644)
    _add_intermediate(home, Issuer(root, certificate), now)
    for name in KEYS:
        home.new_signing_key(name)
    home.write(home.keys / "ear.key", EcKey.generate().pem())
    sign_charter(home, root, fleet, clock)


def sign_charter(home: FleetHome, root: EcKey, fleet: str, clock: Clock) -> None:
    """Have the root sign which keys command this fleet and witness its journals."""
    charter = enrolment.Charter(
        schema=1,
        fleet=fleet,
        command=home.signing_key("commands").public,
        witness=str(VerifierKey(witness_name(fleet), home.signing_key("witness").public)),
        issued=int(clock.wall()),
        director=home.signing_key("director").public,
    )
    home.write(home.charter, enrolment.sign_charter(charter, root), mode=0o644)


def witness_name(fleet: str) -> str:
    """Return the name journals are cosigned under."""
    return f"casemate.fleet/{fleet}/witness"


def load(home: FleetHome, clock: Clock) -> Authority:
    """Read the authority.

    Raises:
        NotFoundError: a file is missing.
        OperationError: no intermediate is valid any more.

    """
    root = root_certificate(home)
    valid = []
    for path in reversed(_intermediates(home)):
        certificate = x509.from_pem(home.read(path).decode("ascii", "replace"))
        if authority.facts(certificate).not_after > clock.wall() and x509.is_issued_by(certificate, root):
            valid.append((path, certificate))
    if not valid:
        raise OperationError("no intermediate is valid any more", hint="`casemate fleet ca rotate` with the root key")
    path, newest = valid[0]
    return Authority(root, tuple(each for _, each in valid), Issuer(home.ec_key(path.with_suffix(".key")), newest))


def root_certificate(home: FleetHome) -> bytes:
    """Return the root certificate (DER)."""
    return x509.from_pem(home.read(home.root).decode("ascii", "replace"))


def root_key(home: FleetHome, given: Path | None = None) -> EcKey:
    """Return the root's key, from *given* when it is kept offline.

    Raises:
        NotFoundError: it is neither here nor given.
        OperationError: the key given is another one.

    """
    path = given or home.ca / "root.key"
    if not path.exists():
        raise NotFoundError("the root key is not on this server", hint="give it: --root-key FILE")
    key = home.ec_key(path)
    if key.public.der() != authority.public_key(root_certificate(home)).der():
        raise OperationError(f"{path} is not the key of this fleet's root")
    return key


def export_root(home: FleetHome, out: Path) -> None:
    """Move the root's key to *out*: written, read back, and only then removed here.

    Raises:
        BusyError: *out* exists.
        NotFoundError: it was exported before.

    """
    if out.exists():
        raise BusyError(f"{out} exists", hint="name another file")
    key = root_key(home)
    home.write(out.absolute(), key.pem())
    if EcKey.load_pem(home.read(out)).public.der() != key.public.der():
        raise OperationError(f"{out} did not come back as it was written; the key is still on this server")
    (home.ca / "root.key").unlink()


def rotate_intermediate(home: FleetHome, root: EcKey, clock: Clock) -> Path:
    """Make the next intermediate; the ones before are believed until they end. Returns its certificate's path."""
    return _add_intermediate(home, Issuer(root, root_certificate(home)), clock.wall())


def listener_certificate(home: FleetHome, names: tuple[str, ...], clock: Clock) -> tuple[Path, Path]:
    """Return the listeners' certificate chain and key (PEM files), renewed when it is near its end or names changed."""
    chain, key_file, noted = home.tls / "server.pem", home.tls / "server.key", home.tls / "names"
    issued_by = load(home, clock)
    wanted = "\n".join((*names, authority.fingerprint(issued_by.issuer.certificate))).encode()
    if chain.exists() and key_file.exists() and noted.exists() and home.read(noted) == wanted:
        held = x509.from_pem(home.read(chain).decode("ascii").partition("-----END CERTIFICATE-----")[0] + _END)
        if authority.facts(held).not_after - clock.wall() > _RENEW_BEFORE:
            return chain, key_file
    key = EcKey.generate()
    leaf = issued_by.issuer.server(key.public, names, clock.wall(), SERVER_SECONDS)
    home.write(key_file, key.pem())
    home.write(chain, (x509.to_pem(leaf) + x509.to_pem(issued_by.issuer.certificate)).encode(), mode=0o644)
    home.write(noted, wanted)
    return chain, key_file


_END: Final = "-----END CERTIFICATE-----\n"


def _add_intermediate(home: FleetHome, root: Issuer, now: float) -> Path:
    number = len(_intermediates(home)) + 1
    key = EcKey.generate()
    certificate = root.intermediate(key.public, f"Casemate fleet devices {number}", now, INTERMEDIATE_DAYS)
    path = home.ca / f"intermediate-{number:03d}.pem"
    home.write(path.with_suffix(".key"), key.pem())
    home.write(path, x509.to_pem(certificate).encode(), mode=0o644)
    return path


def _intermediates(home: FleetHome) -> list[Path]:
    return sorted(home.ca.glob("intermediate-*.pem"))
