"""A sign-in provider in a process of its own: discovery, keys, codes with PKCE, tokens. A test says what it lies about.

`python provider.py` prints its issuer. What `POST /control` is given holds until the next one: claims that replace the
honest ones (null: left out), the algorithm, whose key signs. `POST /rotate` makes a new key and forgets the old one.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

import uvicorn
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT, SECRET = "casemate", "between the two of us"


class Provider:
    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.control: dict[str, Any] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.asked: list[dict[str, str]] = []
        self.served = 0
        self.rotate()

    def rotate(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": secrets.token_hex(4), "use": "sig", "alg": "RS256"})

    async def describe(self, request: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.control.get("calls_itself", self.issuer),
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "response_types_supported": ["code"],
            }
        )

    async def keys(self, request: Request) -> Response:
        self.served += 1
        return JSONResponse({"keys": [self.key.as_dict(private=False)]})

    async def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.asked.append(asked)
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        back = {"code": code, "state": asked["state"], "iss": self.issuer, **self.control.get("back", {})}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)

    async def token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        given = base64.b64decode(request.headers["authorization"].partition(" ")[2]).decode()
        asked = self.codes.pop(form["code"], None)
        good = (
            asked
            and tuple(map(unquote, given.split(":", 1))) == (CLIENT, SECRET)
            and form["grant_type"] == "authorization_code"
            and form["redirect_uri"] == asked["redirect_uri"]
            and asked["code_challenge_method"] == "S256"
            and create_s256_code_challenge(form["code_verifier"]) == asked["code_challenge"]
        )
        if not good:
            return JSONResponse({"error": "invalid_grant"}, 400)
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": self.id_token(asked)})

    def id_token(self, asked: dict[str, str]) -> str:
        now = int(time.time())
        honest = {
            "iss": self.issuer,
            "sub": "subject-1",
            "aud": asked["client_id"],
            "nonce": asked["nonce"],
            "iat": now,
            "exp": now + 300,
            "email": "ada@example.org",
            "email_verified": True,
        }
        if asked.get("max_age") == "0":
            honest["auth_time"] = now
        changed = {**honest, **self.control.get("claims", {})}
        claims = {name: value for name, value in changed.items() if value is not None}
        how = self.control.get("sign", "honest")
        if how == "none":
            parts = ({"alg": "none"}, claims)
            return ".".join(_text(json.dumps(part).encode()) for part in parts) + "."
        if how == "hs256":  # the public key, taken for a shared secret
            header = {"alg": "HS256", "kid": self.key.kid}
            signed = ".".join(_text(json.dumps(part).encode()) for part in (header, claims))
            mac = hmac.digest(self.key.as_pem(private=False), signed.encode(), "sha256")
            return f"{signed}.{_text(mac)}"
        key = RSAKey.generate_key(2048) if how == "stranger" else self.key
        header = {"alg": "RS256", "kid": self.key.kid}
        return jwt.encode(header, claims, key)

    async def controlled(self, request: Request) -> Response:
        self.control = json.loads(await request.body())
        return JSONResponse({})

    async def rotated(self, request: Request) -> Response:
        self.rotate()
        return JSONResponse({})

    async def told(self, request: Request) -> Response:
        return JSONResponse({"asked": self.asked, "keys_served": self.served})


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def main() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    issuer = f"http://127.0.0.1:{sock.getsockname()[1]}"
    provider = Provider(issuer)
    routes = [
        Route("/.well-known/openid-configuration", provider.describe),
        Route("/keys", provider.keys),
        Route("/authorize", provider.authorize),
        Route("/token", provider.token, methods=["POST"]),
        Route("/control", provider.controlled, methods=["POST"]),
        Route("/rotate", provider.rotated, methods=["POST"]),
        Route("/told", provider.told),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off"))
    print(issuer, flush=True)  # noqa: T201 - what the test reads
    server.run(sockets=[sock])


class Running:
    """The provider from outside."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer

    def control(self, **changes: Any) -> None:
        self._post("/control", changes)

    def rotate(self) -> None:
        self._post("/rotate", {})

    def told(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.issuer}/told", timeout=20) as answer:
            return json.load(answer)

    def _post(self, path: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(self.issuer + path, json.dumps(body).encode(), method="POST")
        urllib.request.urlopen(request, timeout=20).close()


@contextlib.contextmanager
def running():
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Running(process.stdout.readline().strip())
        finally:
            process.terminate()
            process.wait(20)


if __name__ == "__main__":
    main()
