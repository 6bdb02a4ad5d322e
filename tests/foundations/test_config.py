"""One file, typed settings, nothing ignored in silence."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Config, Layout, default_root, load_config, parse_config
from appliance.errors import ConfigError

LAYOUT = Layout(Path("/somewhere"))


def test_without_a_file_every_setting_has_its_default(tmp_path: Path) -> None:
    assert load_config(tmp_path) == Config(Layout(tmp_path))


def test_settings_in_the_file_replace_the_defaults(tmp_path: Path) -> None:
    file = Layout(tmp_path).config_file
    file.parent.mkdir(parents=True)
    file.write_text('[api]\nlisten_host = "::1"\nlisten_port = 9000\nkeepalive_seconds = 5\n')
    config = load_config(tmp_path)
    assert config.base_url == "http://[::1]:9000/v1"
    assert config.api.keepalive_seconds == 5.0
    assert config.engine == Config(LAYOUT).engine


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[apis]\n", "apis"),
        ("[api]\nport = 1\n", "api.port"),
        ('[api]\nlisten_port = "8400"\n', "api.listen_port"),
        ("[engine]\nthreads = true\n", "engine.threads"),
        ("[engine]\ntoken_budget = 15\n", "engine.token_budget"),
        ("[engine]\nmax_sequences = -1\n", "engine.max_sequences"),
        ('[money]\ncurrency = "euro"\n', "money.currency"),
        ('[money]\ncurrency = "A1C"\n', "money.currency"),
        ('[api]\nlisten_host = "0.0.0.0"\n', "api.listen_host"),
        ('[api]\nlisten_host = "localhost"\n', "api.listen_host"),
        ("[audit]\ncheckpoint_seconds = 0\n", "audit.checkpoint_seconds"),
        ("api = 3\n", "[api]"),
        ("listen_port = 8500\n", "listen_port"),
        ("[api\n", "TOML"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name_with_a_hint(text: str, names: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text.encode(), LAYOUT)
    assert names in caught.value.message
    assert caught.value.hint


def test_a_setting_outside_its_section_comes_with_the_section() -> None:
    """What `appliance audit content-key` prints was pasted in without its first line."""
    with pytest.raises(ConfigError) as caught:
        parse_config(b'auditor_key = "AAAA"\n', LAYOUT)
    assert "[audit]" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[api]\nport = 1\n", "config_invalid"),
        ("[engine]\ntoken_budget = 15\n", "config_invalid"),
        ('[api]\nlisten_host = "0.0.0.0"\n', "tls_required"),
        ("[api\n", "config_invalid"),
    ],
)
def test_what_is_refused_says_in_which_file_it_stands(tmp_path: Path, text: str, code: str) -> None:
    file = Layout(tmp_path).config_file
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert caught.value.message.count(str(file)) == 1
    assert caught.value.code == code


@given(st.binary(max_size=200))
def test_any_bytes_give_a_config_or_a_config_error(data: bytes) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_config(data, LAYOUT), Config)


def test_a_release_has_an_interpreter_for_each_runtime() -> None:
    layout = Layout(Path("/srv/box"))
    release = Path("/srv/box/opt/appliance/current")
    assert layout.python == release / "venv/bin/python"
    assert layout.gpu_python == release / "venv-cuda13/bin/python"


def test_an_installed_interpreter_knows_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLIANCE_ROOT", raising=False)
    monkeypatch.setattr(sys, "prefix", "/srv/box/opt/appliance/releases/1.0/venv")
    assert default_root() == Path("/srv/box")
    monkeypatch.setattr(sys, "prefix", "/srv/box/opt/appliance/releases/1.0/venv-cuda13")
    assert default_root() == Path("/srv/box")
    monkeypatch.setattr(sys, "prefix", "/opt/appliance/releases/1.0/venv")
    assert default_root() == Path("/")
    monkeypatch.setattr(sys, "prefix", "/home/somebody/venv")
    assert default_root() == Path("/")
    monkeypatch.setenv("APPLIANCE_ROOT", "/elsewhere")
    assert default_root() == Path("/elsewhere")


def test_every_path_of_a_prefix_is_inside_it() -> None:
    layout = Layout(Path("/prefix"))
    for name in (n for n in dir(Layout) if isinstance(getattr(Layout, n), property)):
        assert Path("/prefix") in getattr(layout, name).parents, name
