"""Layers, origins, and errors that name the file and the key."""

from __future__ import annotations

import pytest

from casemate import config
from casemate.errors import ConfigError


@pytest.fixture
def user_toml(tmp_path):
    path = tmp_path / "casemate.toml"
    return path, {"CASEMATE_CONFIG": str(path), "HOME": str(tmp_path)}


def test_later_layers_win_and_say_where_from(user_toml):
    path, environ = user_toml
    path.write_text('listen = "127.0.0.1:1111"\n[engine]\nslots = 3\nqueue = 5\n')
    settings = config.load({"listen": "127.0.0.1:0"}, {**environ, "CASEMATE_ENGINE_QUEUE": "7"})
    assert (settings["listen"], settings.origin["listen"]) == ("127.0.0.1:0", "flag")
    assert (settings["engine.queue"], settings.origin["engine.queue"]) == (7, "environment")
    assert (settings["engine.slots"], settings.origin["engine.slots"]) == (3, str(path))
    assert settings.origin["hosts"] == "default"


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("listn = 'x'", "unknown setting 'listn'"),
        ("[engine]\nslots = 0", "engine.slots must be from 1 to 16"),
        ("[engine]\nslots = true", "engine.slots must be a whole number"),
        ("listen = 'nowhere'", "listen must be HOST:PORT"),
        ("models = [1]", "models must be a list"),
        ("broken = ", "casemate.toml"),
    ],
)
def test_mistakes_name_the_file_and_the_key(user_toml, text, needle):
    path, environ = user_toml
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load({}, environ)
    assert needle in caught.value.message
    assert str(path) in caught.value.message


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:8080", "localhost:65535"])
def test_addresses_that_parse(text):
    host, port = config.parse_address(text)
    assert host in {"127.0.0.1", "::1", "localhost"}
    assert 0 <= port <= 65535


@pytest.mark.parametrize("text", ["", ":80", "host", "host:", "host:99999", "host:-1", "host:x"])
def test_addresses_that_do_not(text):
    with pytest.raises(ValueError, match="HOST:PORT"):
        config.parse_address(text)
