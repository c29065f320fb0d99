"""The API's page and the code say the same: every field, code, limit and metric is in both."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from casemate.device.gateway import exchange, listener, refusals, schema
from casemate.device.gateway.engines import Engines
from casemate.device.gateway.metrics import Metrics
from casemate.device.gateway.refusals import ApiError
from casemate.device.gateway.schema import ChatRequest, CompletionRequest, EmbeddingRequest

PAGE = (Path(__file__).resolve().parents[4] / "docs" / "reference" / "api.md").read_text(encoding="utf-8")


def made_errors():
    """Make one of every refusal there is."""
    arguments = {"param": "x", "message": "x", "reasons": ("x",), "name": "x", "allowed": "x", "limit": "x"}
    numbers = {"retry_after": 1}
    for name, function in inspect.getmembers(refusals, inspect.isfunction):
        if name.startswith("_"):
            continue
        wanted = inspect.signature(function).parameters
        yield function(**{key: {**arguments, **numbers}[key] for key in wanted if key in {**arguments, **numbers}})


def test_every_error_is_on_the_page_with_its_status():
    errors = list(made_errors())
    assert len(errors) > 15
    for error in errors:
        assert isinstance(error, ApiError)
        assert re.search(rf"^\| {error.status} \|.*`{error.code}`", PAGE, re.MULTILINE), error.code


def test_every_code_on_the_page_exists():
    table = PAGE.partition("## Errors")[2].partition("## Limits")[0]
    told = {
        code
        for row in re.findall(r"^\| \d{3} \| (.*?) \|", table, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", row)
    }
    assert told == {error.code for error in made_errors()}


def test_every_field_is_on_the_page():
    fields = {name for kind in (ChatRequest, CompletionRequest, EmbeddingRequest) for name in kind.__struct_fields__}
    section = PAGE.partition("## Fields")[2].partition("## Answers")[0]
    assert not {name for name in fields if f"`{name}`" not in section}


def test_the_numbers_on_the_page_are_the_codes():
    assert exchange.MAX_BODY == 8 * 1024 * 1024
    assert f"1 to {schema.MAX_MESSAGES} of" in PAGE
    assert f"up to {schema.MAX_DOCUMENTS} of" in PAGE
    assert f"up to {schema.MAX_INPUTS} texts" in PAGE
    assert f"at most {schema.MAX_SCHEMA_BYTES // 1024} KiB and {schema.MAX_SCHEMA_DEPTH} levels" in PAGE
    assert f"has {listener.HEAD_SECONDS:g} s to send its headers (at most {listener.HEAD_BYTES // 1024} KiB)" in PAGE
    assert f"{listener.MESSAGE_SECONDS:g} s for its body, {exchange.BODY_IDLE_SECONDS:g} s without a byte" in PAGE
    assert f"most {listener.MAX_CONNECTIONS} connections, {listener.MAX_PER_ADDRESS} from one address" in PAGE


def test_every_metric_is_on_the_page():
    metrics = Metrics(Engines((), queue=0, on_stuck=lambda name: None))
    for family in metrics.registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}`" in PAGE, name
