from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hwnas.devices import DEVICES, load_device, require_attached, state
from hwnas.errors import DeviceError, UsageError

MINE = """
id = "mine"
name = "My board"
soc = "Some SoC"
reach = "local"
runtime = "onnxruntime"
"""


def test_built_in_devices_load() -> None:
    assert {load_device(name).id for name in DEVICES} == set(DEVICES)
    folder = Path(__file__).parents[2] / "devices"
    assert {path.stem for path in folder.glob("*.toml")} == set(DEVICES)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    device = load_device(str(path))
    assert (device.id, device.name, device.runtime) == ("mine", "My board", "onnxruntime")
    assert state(device).attached


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"unknown device 'iphone3': did you mean 'iphone13'\?"):
        load_device("iphone3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINE.replace('"mine"', '"cpu"'), "calls itself 'cpu', which is built in"),
        (MINE.replace('"local"', '"locale"'), "unknown reach 'locale': did you mean 'local'?"),
        (MINE.replace('"mine"', "5"), "id must be text"),
        (MINE.replace("soc", "sok"), "missing or unknown: soc, sok"),
        (MINE.replace('"mine"', "mine"), "is not TOML"),
        ("", "must have the fields id, name, reach, runtime, soc"),
    ],
)
def test_a_file_that_describes_none(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(DeviceError) as caught:
        load_device(str(path))
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot read the device file"):
        load_device(str(tmp_path / "none.toml"))


def test_this_machine_is_attached() -> None:
    require_attached(load_device("cpu"))


def test_an_iphone_needs_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(DeviceError, match=r"a Mac only.*unlock it.*trust.*Developer Mode"):
        require_attached(load_device("iphone13"))


Xcrun = Callable[[str], None]


@pytest.fixture
def xcrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Xcrun:
    """On a Mac whose ``xcrun devicectl list devices`` lists what it is given; "" fails."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(listing: str) -> None:
        (tmp_path / "listing").write_text(listing)
        program = tmp_path / "xcrun"
        program.write_text(
            f"#!{sys.executable}\n"
            "import pathlib, sys\n"
            "assert sys.argv[1:5] == ['devicectl', 'list', 'devices', '--json-output']\n"
            f"listing = pathlib.Path({str(tmp_path / 'listing')!r}).read_text()\n"
            "pathlib.Path(sys.argv[5]).write_text(listing)\n"
            "sys.exit(not listing)\n"
        )
        program.chmod(0o755)

    return install


def listing(*phones: tuple[str, str]) -> str:
    """As ``devicectl`` of Xcode 16 writes it, less the fields that nobody reads here."""
    devices = [
        {
            "connectionProperties": {"pairingState": "paired", "tunnelState": tunnel},
            "deviceProperties": {"developerModeStatus": "enabled", "name": "my-phone"},
            "hardwareProperties": {"deviceType": "iPhone", "marketingName": name},
        }
        for name, tunnel in phones
    ]
    return json.dumps({"info": {"outcome": "success"}, "result": {"devices": devices}})


def test_an_iphone_that_is_attached(xcrun: Xcrun) -> None:
    xcrun(listing(("iPhone 13", "unavailable"), ("iPhone 13", "connected")))
    assert state(load_device("iphone13")).attached


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (listing(), "no iPhone 13 is attached: connect it by cable"),
        (listing(("iPhone 13 Pro", "connected")), "no iPhone 13 is attached"),
        (listing(("iPhone 13", "unavailable")), "no iPhone 13 is attached"),
        ("", "Xcode 15 or later did not list its devices"),
        ("{}", "did not list its devices"),
        ("[", "did not list its devices"),
    ],
)
def test_an_iphone_that_is_not(xcrun: Xcrun, text: str, expected: str) -> None:
    xcrun(text)
    now = state(load_device("iphone13"))
    assert not now.attached
    assert expected in now.reason
    assert "run `hwnas devices` to see what is attached" in now.reason


@pytest.mark.usefixtures("xcrun")
def test_a_mac_without_xcode() -> None:
    reason = state(load_device("iphone13")).reason
    assert reason.startswith("Xcode 15 or later did not list its devices")
