"""The app store: keys are shown once and kept as hashes, writers never collide, readers never see half a file."""

from __future__ import annotations

import os
import threading

import pytest

from casemate.device.apps import AppStore, read_apps, signature
from casemate.device.home import Home
from casemate.errors import ConfigError, NotFoundError, OperationError, UsageError


@pytest.fixture
def store(tmp_path):
    return AppStore(Home(tmp_path / "home").create())


@pytest.fixture
def apps(store):
    return store.policy_path("x").parent


def test_a_key_finds_its_app_and_nothing_else_does(store, apps):
    key = store.add("kitchen")
    found = read_apps(apps)
    assert found.find(key).name == "kitchen"
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    for other in (
        wrong,
        key + "A",
        key[:-1],
        "",
        "cmk_",
        key.upper(),
        " " + key,
        key + "\n",
        "cmk_00000000_" + key[13:],
    ):
        assert found.find(other) is None


def test_the_key_is_not_in_the_file(store, apps):
    key = store.add("kitchen")
    stored = (apps / "apps.json").read_text()
    assert key[13:] not in stored
    assert (apps / "apps.json").stat().st_mode & 0o777 == (0o640 if os.geteuid() == 0 else 0o600)


def test_rotating_voids_the_old_key_and_removing_the_new_one(store, apps):
    old = store.add("kitchen")
    new = store.rotate("kitchen")
    assert read_apps(apps).find(old) is None
    assert read_apps(apps).find(new).name == "kitchen"
    store.remove("kitchen")
    assert read_apps(apps).find(new) is None
    assert store.records() == []


def test_names_are_checked_and_unique(store):
    store.add("kitchen")
    with pytest.raises(UsageError, match="exists"):
        store.add("kitchen")
    for bad in ("", "../x", "UPPER", "a b", "x/y", "." * 3):
        with pytest.raises(UsageError):
            store.add(bad)
    for act in (store.rotate, store.remove, store.get):
        with pytest.raises(NotFoundError):
            act("nobody")


def test_a_wrong_policy_leaves_nothing_behind(store, apps):
    with pytest.raises(ConfigError):
        store.add("kitchen", (b"nonsense = 1", "k.toml"))
    assert store.records() == []
    assert list(apps.glob("*.toml")) == []


def test_a_policy_is_stored_replaced_and_removed_with_its_app(store, apps):
    key = store.add("kitchen", (b"max_output_tokens = 5", "k.toml"))
    assert read_apps(apps).find(key).policy.max_output_tokens == 5
    store.set_policy("kitchen", b"max_output_tokens = 6", source="k.toml")
    assert read_apps(apps).find(key).policy.max_output_tokens == 6
    with pytest.raises(ConfigError):
        store.set_policy("kitchen", b"max_output_tokens = 0", source="k.toml")
    assert store.policy("kitchen").max_output_tokens == 6
    store.remove("kitchen")
    assert not store.policy_path("kitchen").exists()


def test_an_app_made_again_does_not_inherit_a_policy_file_left_by_hand(store, apps):
    store.policy_path("kitchen").write_text("max_output_tokens = 5")
    key = store.add("kitchen")
    assert read_apps(apps).find(key).policy.max_output_tokens == 1024


def test_a_broken_policy_closes_its_own_app_only(store, apps):
    first, second = store.add("first"), store.add("second")
    store.policy_path("first").write_text("what = is this")
    found = read_apps(apps)
    assert found.find(first).policy is None
    assert found.find(second).policy is not None
    assert "first.toml" in found.faults[0]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 9, "apps": []}', '{"apps": [{"name": 3}]}', "\udcff"])
def test_a_damaged_store_is_an_error_that_names_it(store, apps, text):
    (apps / "apps.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"apps\.json"):
        read_apps(apps)


def test_the_signature_changes_with_every_change(store, apps):
    seen = [signature(apps)]
    store.add("kitchen")
    seen.append(signature(apps))
    store.rotate("kitchen")
    seen.append(signature(apps))
    store.set_policy("kitchen", b"max_choices = 2", source="k")
    seen.append(signature(apps))
    store.remove("kitchen")
    seen.append(signature(apps))
    assert len(set(seen)) == len(seen)
    assert signature(apps) == seen[-1]
    assert signature(apps / "nowhere") == ()


@pytest.mark.parametrize("name", ["apps.json", ".lock", "kitchen.toml"])
def test_a_link_put_in_place_of_a_file_is_not_followed(store, apps, tmp_path, name):
    store.add("kitchen", (b"max_choices = 2", "k.toml"))
    target = tmp_path / "elsewhere"
    target.write_text('{"schema": 1, "apps": []}')
    (apps / name).unlink(missing_ok=True)
    (apps / name).symlink_to(target)
    if name == "kitchen.toml":
        assert "kitchen.toml" in read_apps(apps).faults[0]
        return
    with pytest.raises((ConfigError, OperationError)):
        store.add("other")
    assert target.read_text() == '{"schema": 1, "apps": []}'


def test_writers_at_the_same_time_lose_nothing(store, apps):
    def work(worker):
        for number in range(5):
            store.add(f"app-{worker}-{number}")

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_apps(apps).by_key_id) == 20


def test_a_read_only_store_says_what_to_do(store, apps, monkeypatch):
    real = os.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OperationError) as caught:
        store.add("kitchen")
    assert "owner" in caught.value.hint
