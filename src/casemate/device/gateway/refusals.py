"""Every way the API says no, in OpenAI's error shape. Messages never quote the request's text.

status  code                   when
400     invalid_request        not JSON, wrong type or value, unknown field
400     unsupported_parameter  a field of OpenAI's API that this device does not serve
400     content_filter         the guard refused the input
400     context_length_exceeded
401     invalid_api_key        missing, wrong or revoked
403     policy_invalid         the app's policy file is broken
404     model_not_found, not_found
405     method_not_allowed
408     request_timeout        the body came too slowly
413     request_too_large
421     misdirected_request    a Host that is not this device
429     rate_limit_exceeded, engine_busy, too_many_failures      + Retry-After
500     internal_error
503     engine_unavailable, guard_unavailable, quarantined       + Retry-After
504     deadline_exceeded
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

CONTENT_FILTER: Final = "content_filter"

_TRIAGE_RETRY = 300
"""Seconds: nobody can say when a person comes, but a client must not ask all the time."""
_LONG_WAIT = 60
"""Seconds: beyond this an OpenAI client must not retry by itself."""


class ApiError(Exception):
    """One refusal. `param` names the field at fault; `headers` go with the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        reasons: tuple[str, ...] = (),
    ) -> None:
        """Keep what the client is told; *reasons* are the guard's labels."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.kind = kind
        self.param = param
        self.headers = dict(headers or {})
        self.reasons = reasons

    def body(self, request_id: str) -> dict[str, Any]:
        """Return the JSON object of the answer, also used as the error event of a stream."""
        error: dict[str, Any] = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        if self.reasons:
            return {"error": error, "casemate": {"refused": list(self.reasons), "request_id": request_id}}
        return {"error": error}

    def encode(self, request_id: str) -> bytes:
        """Return the bytes of `body`."""
        return msgspec.json.encode(self.body(request_id))


def bad_request(message: str, *, param: str | None = None) -> ApiError:
    """Refuse a request that is not what the API takes."""
    return ApiError(400, "invalid_request", message, param=param)


def unsupported(param: str, message: str = "") -> ApiError:
    """Refuse a field this device does not serve."""
    text = message or f"this device does not support '{param}'; leave it out, or let the app's policy drop it"
    return ApiError(400, "unsupported_parameter", text, param=param)


def content_refused(reasons: tuple[str, ...], *, param: str) -> ApiError:
    """Refuse what the guard blocked, naming the kind of finding, never the text."""
    what = ", ".join(reasons) or "policy"
    return ApiError(400, CONTENT_FILTER, f"the guard refused {param}: {what}", param=param, reasons=reasons)


def too_long(message: str) -> ApiError:
    """Refuse input that no answer would fit behind."""
    return ApiError(400, "context_length_exceeded", message, param="messages")


def unauthorised() -> ApiError:
    """Refuse a missing, wrong or revoked key; which of them is not said."""
    return ApiError(
        401,
        "invalid_api_key",
        "no valid app key; send 'Authorization: Bearer cmk_...'",
        kind="authentication_error",
        headers={"www-authenticate": 'Bearer realm="casemate"'},
    )


def policy_broken() -> ApiError:
    """Refuse an app whose policy file cannot be read: nothing is assumed in its place."""
    return ApiError(403, "policy_invalid", "this app's policy is not valid; its owner must fix it", kind="server_error")


def no_model(name: str) -> ApiError:
    """Refuse a model that does not exist, or not for this app (the answer is the same)."""
    return ApiError(404, "model_not_found", f"no model {name[:64]!r} for this app; see /v1/models", param="model")


def no_path() -> ApiError:
    """Refuse an unknown path."""
    return ApiError(404, "not_found", "no such path")


def no_method(allowed: str) -> ApiError:
    """Refuse a method the path does not take."""
    return ApiError(405, "method_not_allowed", f"this path takes {allowed}", headers={"allow": allowed})


def too_slow() -> ApiError:
    """Refuse a body that does not arrive."""
    return ApiError(408, "request_timeout", "the request body came too slowly", headers={"connection": "close"})


def too_large(message: str, *, param: str | None = None) -> ApiError:
    """Refuse more bytes than one request may have."""
    return ApiError(413, "request_too_large", message, param=param)


def misdirected() -> ApiError:
    """Refuse a Host this device does not answer to (DNS rebinding)."""
    return ApiError(421, "misdirected_request", "this device does not answer to that host name")


def limited(limit: str, retry_after: float) -> ApiError:
    """Refuse until an app's limit has room again."""
    return _later(429, "rate_limit_exceeded", f"over the app's {limit}", retry_after, kind="rate_limit_error")


def busy(retry_after: float) -> ApiError:
    """Refuse because the engine's queue is full."""
    return _later(429, "engine_busy", "the engine's queue is full", retry_after, kind="rate_limit_error")


def too_many_failures(retry_after: float) -> ApiError:
    """Refuse an address that keeps sending wrong keys."""
    return _later(
        429, "too_many_failures", "too many wrong keys from this address", retry_after, kind="rate_limit_error"
    )


def engine_down(retry_after: float | None) -> ApiError:
    """Refuse while the model's engine is not there; None: it needs a person first."""
    if retry_after is None:
        why = "the model's engine failed again and again and stays down until somebody looks (`casemate status`)"
        return _later(503, "engine_unavailable", why, _TRIAGE_RETRY)
    return _later(503, "engine_unavailable", "the model's engine is not running", retry_after)


def quarantined() -> ApiError:
    """Refuse on the fleet's order: no retry helps before it is released."""
    why = "this device is quarantined by its fleet and answers nothing until it is released"
    return _later(503, "quarantined", why, _TRIAGE_RETRY)


def guard_down() -> ApiError:
    """Refuse because the guard could not judge: never a pass."""
    return _later(503, "guard_unavailable", "the guard could not judge this request", 5)


def deadline() -> ApiError:
    """Give up on an answer that took too long."""
    return ApiError(504, "deadline_exceeded", "the engine did not answer in time", kind="server_error")


def internal() -> ApiError:
    """Hide a fault of ours: the request id is what joins it to the device's log."""
    return ApiError(500, "internal_error", "internal error", kind="server_error")


def _later(status: int, code: str, message: str, seconds: float, *, kind: str = "server_error") -> ApiError:
    wait = max(1, math.ceil(seconds))
    headers = {"retry-after": str(wait)}
    if wait > _LONG_WAIT:
        headers["x-should-retry"] = "false"
    return ApiError(status, code, f"{message}; try again in {wait} s", kind=kind, headers=headers)
