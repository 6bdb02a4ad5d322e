"""What environment variables say; their only reader."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from appliance.config.layout import GPU_VENV, VENV
from appliance.errors import ConfigError

ROOT_VARIABLE = "APPLIANCE_ROOT"
PASSPHRASE_FILE_VARIABLE = "APPLIANCE_PASSPHRASE_FILE"  # noqa: S105
TOKEN_PIN_FILE_VARIABLE = "APPLIANCE_TOKEN_PIN_FILE"  # noqa: S105
PKCS11_MODULE_VARIABLE = "PYKCS11LIB"
"""Which library speaks to tokens; securesystemslib reads it, too."""
API_KEY_VARIABLE = "APPLIANCE_API_KEY"
SOURCE_DATE_VARIABLE = "SOURCE_DATE_EPOCH"
_SECONDS_DIGITS = 11
"""Of Unix seconds up to the year 5138; a calendar ends with 9999."""


def default_root() -> Path:
    """The root this process belongs to: APPLIANCE_ROOT, else the prefix its interpreter is in.

    An installed interpreter lives in ROOT/opt/appliance/releases/VERSION/venv (or venv-cuda13);
    anything else (a packager's checkout) means the system root.
    """
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        return Path(named).absolute()
    prefix = Path(sys.prefix)
    parts = prefix.parts
    if parts[-5:-2] == ("opt", "appliance", "releases") and parts[-1] in {VENV, GPU_VENV}:
        return prefix.parents[4]
    return Path("/")


def passphrase_file() -> Path | None:
    """The file that holds the key passphrase, if APPLIANCE_PASSPHRASE_FILE names one."""
    named = os.environ.get(PASSPHRASE_FILE_VARIABLE)
    return Path(named) if named else None


def token_pin_file() -> Path | None:
    """The file that holds the PIN of tokens, if APPLIANCE_TOKEN_PIN_FILE names one."""
    named = os.environ.get(TOKEN_PIN_FILE_VARIABLE)
    return Path(named) if named else None


def pkcs11_module() -> str:
    """The PKCS #11 library that PYKCS11LIB names; empty if none."""
    return os.environ.get(PKCS11_MODULE_VARIABLE, "")


def api_key() -> str | None:
    """The API key for commands that call the endpoint, if APPLIANCE_API_KEY is set."""
    return os.environ.get(API_KEY_VARIABLE) or None


def source_date_epoch() -> int | None:
    """The time that reproducible builds record, if SOURCE_DATE_EPOCH is set. Raises ConfigError."""
    text = os.environ.get(SOURCE_DATE_VARIABLE)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _SECONDS_DIGITS):
        raise ConfigError(f"{SOURCE_DATE_VARIABLE} is {text!r}", hint="it must be Unix seconds")
    return int(text)
