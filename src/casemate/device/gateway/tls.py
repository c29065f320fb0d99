"""TLS 1.3 for every address that is not loopback; without it such an address is refused before anything listens."""

from __future__ import annotations

import ipaddress
import ssl
from typing import Final

from casemate.errors import ConfigError

_HINT: Final = "set tls.certificate and tls.key, or listen on 127.0.0.1"


def is_loopback(host: str) -> bool:
    """Whether *host* (an address or "localhost") can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def require_tls(listen: str, tls: object) -> None:
    """Refuse to listen on *listen* (HOST:PORT) without *tls* (anything true) unless it is loopback.

    Raises:
        ConfigError: prompts and keys would cross a network in clear.

    """
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if not tls and not is_loopback(host):
        raise ConfigError(
            f"{listen} is not loopback and there is no TLS: prompts and keys would travel in clear", hint=_HINT
        )


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return a context that speaks TLS 1.3 only. The arguments are PEM paths (`/proc/self/fd/N` is one too).

    Raises:
        ConfigError: they cannot be read or do not belong together.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "unreadable"
        raise ConfigError(
            f"the TLS certificate and key do not work: {reason}", hint="both must be PEM files"
        ) from error
    return context
