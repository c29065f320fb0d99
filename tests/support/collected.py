"""A pytest plugin that prints what was collected, a line of JSON for each test: its name, and whether it would run."""

from __future__ import annotations

import json

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        conditions = [mark.args[0] for mark in item.iter_markers("skipif") if mark.args]
        skipped = any(conditions) or any(True for _ in item.iter_markers("skip"))
        xfail = any(True for _ in item.iter_markers("xfail"))
        said = {
            "test": item.nodeid.partition("[")[0],
            "skipped": skipped or xfail,
            "long": item.get_closest_marker("long") is not None,
        }
        print("\n" + json.dumps(said))  # noqa: T201 - it is what the plugin is for
