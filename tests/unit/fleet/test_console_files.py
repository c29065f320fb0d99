"""What a browser is sent: others' scripts are theirs to the byte, and ours break no policy."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re

import pytest

from casemate.fleet.web import render

HOME = importlib.resources.files("casemate.fleet.web")
TEMPLATES = sorted(each.name for each in (HOME / "templates").iterdir())


@pytest.mark.parametrize("name", sorted(render.VENDORED))
def test_a_vendored_file_is_what_its_maker_published(name):
    digest = base64.b64encode(hashlib.sha384(render.static_bytes(name)).digest()).decode()
    assert render.integrity(name) == f"sha384-{digest}"
    assert (HOME / "static" / f"{name.partition('-')[0]}.LICENSE").is_file()


def test_every_script_that_is_not_ours_is_pinned():
    assert {name for name in render.STATIC if ".min." in name} == set(render.VENDORED)


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_template_needs_what_the_policy_forbids(name):
    text = (HOME / "templates" / name).read_text()
    forbidden = r"""\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)|<style|(?:src|href)="(?:https?:)?//"""
    assert not re.search(forbidden, text)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_uses_no_filter_that_is_not_there(name):
    made = render.environment()
    assert made.get_template(name) is made.get_template(name), "a template is compiled once, not for each page"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12345, "12\u202f345"), (0.25, "0.25"), (1e6, "1\u202f000\u202f000"), (-3, "-3")]
)
def test_numbers_in_words(value, text):
    assert render.number(value) == text


@pytest.mark.parametrize(("share", "text"), [(0, "0"), (0.005, "0.5"), (0.0213, "2.1"), (0.2, "20"), (1, "100")])
def test_shares_in_words(share, text):
    assert render.percent(share) == f"{text}\u202f%"
