from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kamado.errors import InvalidRequest
from kamado.presets import MAX_PRESET_BYTES, PRESET_KEYS, load_preset, preset_names
from kamado.units import parse_bytes


def test_the_presets_that_come_along_are_found_and_sound() -> None:
    assert preset_names() == ("cpu", "datacenter-141gb", "workstation-12gb", "workstation-24gb")
    for name in preset_names():
        preset = load_preset(name)
        assert set(preset) <= set(PRESET_KEYS)
        assert preset["device"] == ("cpu" if name == "cpu" else "cuda")
        if name != "cpu":
            assert parse_bytes(preset["memory"]) < int(name.split("-")[1].removesuffix("gb")) * 1000**3


def test_a_file_is_taken_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('device = "cpu"\nmemory = 1073741824\nkv_tokens = 512\n')
    monkeypatch.chdir(tmp_path)
    for name in ("mine.toml", "./mine.toml", str(tmp_path / "mine.toml")):
        assert load_preset(name) == {"device": "cpu", "memory": 1073741824, "kv_tokens": 512}


@pytest.mark.parametrize("name", ["nosuch", "", "CPU", "cpu ", "no.toml", "./cpu", "../configs/cpu", "a\0b.toml", "/"])
def test_what_is_not_there_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest):
        load_preset(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kv_token = 5", "unknown key 'kv_token'"),
        ("[cpu]\ndevice = 'cpu'", "unknown key 'cpu'"),
        ("kv_tokens = 0", "kv_tokens must be a whole number above 0, not 0"),
        ("kv_tokens = true", "not True"),
        ("step_budget = 1.5", "not 1.5"),
        ("kv_tokens = 99999999999999999999", "kv_tokens must be"),
        ("memory = true", "memory must be a size"),
        ("memory = '8 parsecs'", "'8 parsecs' is not a size"),
        ("memory = -1", "-1 is not a usable size"),
        ("device = 0", "device must be a text, not 0"),
        ("dtype = ['float32']", "dtype must be a text"),
        ("device = 'cpu'\ndevice = 'cuda'", "is not TOML"),
        ("device", "is not TOML"),
        ("\xff\xfe", "is not TOML"),
        ("a = " + "[" * 20_000, "is not TOML"),
        ("# " + "x" * MAX_PRESET_BYTES, "longer than 65536 bytes"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidRequest) as caught:
        load_preset(str(file))
    assert message in str(caught.value)


@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_settings_or_invalid_request(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "any.toml"
    file.write_bytes(content)
    try:
        preset = load_preset(str(file))
    except InvalidRequest:
        return
    assert set(preset) <= set(PRESET_KEYS)
