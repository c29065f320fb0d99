"""The inventory: what is installed, named like the server names it; and the numbers of a check-in."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.device.fleet import health, stock
from casemate.formats import fleet_api
from casemate.formats.fleet_api import Item

STATUS = """Package: nftables
Status: install ok installed
Version: 1.0.6-2

Package: gone
Status: deinstall ok config-files
Version: 1

Package: half
Status: install ok installed

"""


def test_installed_packages_and_models_are_listed_once_and_removed_ones_are_not(tmp_path):
    (tmp_path / "status").write_text(STATUS)
    models = [("saffron", "saffron.g2", "sha256:" + "ab" * 32), ("odd", "odd", "no digest")]
    found = stock.take(models, {"kitchen": "cd" * 32}, tmp_path / "status")
    assert Item("dpkg", "nftables", "1.0.6-2") in found.items
    assert Item("model", "saffron", "saffron.g2", "ab" * 32) in found.items
    assert Item("model", "odd", "odd") in found.items
    assert Item("policy", "kitchen", "", "cd" * 32) in found.items
    assert Item("python", "msgspec", version("msgspec")) in found.items
    assert not [item for item in found.items if item.name in {"gone", "half"}]
    assert len(set(found.items)) == len(found.items)


def test_the_set_has_the_name_that_the_server_gives_it(tmp_path):
    found = stock.take([], {}, tmp_path / "missing")
    body = fleet_api.encode(found)
    there = fleet_api.canonical_inventory(fleet_api.parse(body, fleet_api.Inventory))
    assert stock.digest(found) == hashlib.sha256(there).hexdigest()
    assert len(body) < fleet_api.MAX_BODY


def test_the_engine_the_system_the_board_and_what_is_plugged_on_it_are_listed(tmp_path):
    for name, text in (
        ("etc/os-release", 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\nID=debian\nVARIANT_ID=x\n'),
        ("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0"),
        ("proc/device-tree/hat/product", "LetsTrust TPM\0"),
        ("proc/device-tree/hat/product_ver", "0x0001\0"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    items = stock.take([], {}, tmp_path / "none", tmp_path).items
    found = {item for item in items if item.kind not in {"python", "dpkg"}}
    assert found == {
        Item("engine", "xllamacpp", version("xllamacpp")),
        Item("os", "debian", "12"),
        Item("firmware", "Raspberry Pi 5 Model B Rev 1.0", ""),
        Item("hat", "LetsTrust TPM", "0x0001"),
    }
    bare = stock.take([], {}, tmp_path / "none", tmp_path / "nothing").items
    assert {item.kind for item in bare} == {"engine", "python"}, "what cannot be read is left out"


@given(st.binary(max_size=400))
@settings(max_examples=20)  # each reads the packages of this interpreter
def test_a_damaged_record_of_packages_is_survived(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("dpkg") / "status"
    path.write_bytes(b"Package: a\nStatus: install ok installed\nVersion: " + data)
    fleet_api.encode(stock.take([], {}, path))


def test_health_fits_a_check_in(tmp_path):
    zone = tmp_path / "thermal_zone0"
    zone.mkdir()
    (zone / "temp").write_text("48250\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    found = msgspec.convert(health.gather(tmp_path, tmp_path / "meminfo"), fleet_api.Health)
    assert (found.temperature_c, found.memory_used) == (48.2, 600 * 1024)
    (tmp_path / "meminfo").write_text("nonsense")
    (zone / "temp").write_text("hot")
    assert msgspec.convert(health.gather(tmp_path, tmp_path / "meminfo"), fleet_api.Health).memory_used == 0
