"""The one TOML file becomes settings.

Refuses unknown sections, unknown names and values of the wrong type, each by its full name, so that
a typing error never silently means the default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from appliance.config.bounds import check, check_money
from appliance.config.layout import Layout
from appliance.config.settings import (
    ApiSettings,
    AuditSettings,
    Config,
    EngineSettings,
    MoneySettings,
)
from appliance.errors import ConfigError

_SECTIONS: Mapping[str, type] = {
    "api": ApiSettings,
    "engine": EngineSettings,
    "audit": AuditSettings,
    "money": MoneySettings,
}


def load_config(root: Path) -> Config:
    """Read `root`'s appliance.toml; absent settings, or an absent file, mean the defaults.

    Raises ConfigError naming the setting and the file.
    """
    layout = Layout(root)
    with _naming(layout):
        return parse_config(_text(layout), layout)


def load_money(root: Path) -> MoneySettings:
    """Only `[money]` of `root`'s appliance.toml: a report needs no other section to be right.

    Raises ConfigError naming the setting and the file.
    """
    layout = Layout(root)
    with _naming(layout):
        table = _document(_text(layout), layout).get("money", {})
        money: MoneySettings = _section("money", MoneySettings, table)
        check_money(money)
        return money


@contextmanager
def _naming(layout: Layout) -> Iterator[None]:
    """Have what is refused say in which file it stands."""
    try:
        yield
    except ConfigError as error:
        if str(layout.config_file) in error.message:
            raise
        message = f"{layout.config_file}: {error.message}"
        raise ConfigError(message, hint=error.hint, code=error.code) from error


def _text(layout: Layout) -> bytes:
    """What the file says; nothing if there is none."""
    try:
        return layout.config_file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(
            f"{layout.config_file} cannot be read: {error.strerror}",
            hint="run the command as root or as a member of the group `appliance`",
        ) from error


def parse_config(text: bytes, layout: Layout) -> Config:
    """Parse the bytes of an appliance.toml. Raises ConfigError."""
    document = _document(text, layout)
    sections = {
        name: _section(name, kind, document.get(name, {})) for name, kind in _SECTIONS.items()
    }
    config = Config(layout, **sections)
    check(config)
    return config


def _document(text: bytes, layout: Layout) -> dict[str, object]:
    try:
        document = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{layout.config_file} is not valid TOML: {error}", hint="correct the line it names"
        ) from error
    unknown = sorted(document.keys() - _SECTIONS.keys())
    if unknown:
        if (home := _section_of(unknown[0])) and not isinstance(document[unknown[0]], dict):
            raise ConfigError(
                f"{unknown[0]} is in no section of {layout.config_file}",
                hint=f"write it below a line [{home}]",
            )
        raise ConfigError(
            f"unknown section [{unknown[0]}] in {layout.config_file}",
            hint=f"sections are {', '.join(_SECTIONS)}",
        )
    return document


def _section_of(setting: str) -> str:
    """Where a setting of this name belongs; empty if there is none."""
    having = (n for n, kind in _SECTIONS.items() if setting in {f.name for f in fields(kind)})
    return next(having, "")


def _section(name: str, kind: type, table: object) -> Any:  # noqa: ANN401
    if not isinstance(table, dict):
        raise ConfigError(f"[{name}] must be a table", hint=f"write it as a section: [{name}]")
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(
                f"unknown setting {name}.{key}", hint=f"settings are {', '.join(sorted(known))}"
            )
        table[key] = _typed(f"{name}.{key}", value, hints[key])
    return kind(**table)


def _typed(name: str, value: object, wanted: type) -> object:
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ConfigError(
            f"{name} must be {_TYPE_WORDS[wanted]}, not {value!r}", hint="correct the setting"
        )
    return value


_TYPE_WORDS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
}
