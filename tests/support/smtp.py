"""A real mail server (aiosmtpd) over TLS on loopback, which keeps what it is given and refuses when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email
import ssl
import threading
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from support.fleet_server import Authority

USER, PASSWORD = "fleet", "a long password"


@dataclasses.dataclass
class Mailbox:
    """What arrived, and how the next message is answered."""

    port: int = 0
    letters: list[tuple[list[str], email.message.EmailMessage]] = dataclasses.field(default_factory=list)
    data_answer: str = "250 taken"
    recipient_answer: str = "250 fine"
    encrypted: list[bool] = dataclasses.field(default_factory=list)

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802 - aiosmtpd calls it so
        if self.recipient_answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.recipient_answer

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - the same
        if self.data_answer.startswith("250"):
            self.encrypted.append(session.ssl is not None)
            letter = email.message_from_bytes(envelope.content, policy=email.policy.default)
            self.letters.append((envelope.rcpt_tos, letter))
        return self.data_answer


def authenticate(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=good, handled=False)


@contextlib.contextmanager
def running(directory: Path, *, tls: str = "starttls", hosts: tuple[str, ...] = ("127.0.0.1",)):
    """Serve; *tls*: starttls, tls, none. The authority's root is written to `directory/ca.pem`."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority("mail")
    context = None
    if tls != "none":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.server(directory, hosts=hosts))
    (directory / "ca.pem").write_text(ssl.DER_cert_to_PEM_cert(authority.root_der))
    box = Mailbox()
    offered = {}
    if tls == "starttls":  # it asks for a password where it sees for itself that nobody listens
        offered = {
            "tls_context": context,
            "require_starttls": True,
            "authenticator": authenticate,
            "auth_required": True,
        }
    ready, stop = threading.Event(), threading.Event()

    async def serve():
        loop = asyncio.get_running_loop()
        made = await loop.create_server(
            lambda: SMTP(box, loop=loop, **offered), "127.0.0.1", 0, ssl=context if tls == "tls" else None
        )
        box.port = made.sockets[0].getsockname()[1]
        ready.set()
        while not stop.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.02)
        made.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield box
    finally:
        stop.set()
        thread.join(10)
