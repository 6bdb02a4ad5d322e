"""Where things are and how they are set: one TOML file becomes frozen dataclasses.

Owns the node's directory layout and every setting; the only reader of the configuration file
and of environment variables.
"""

from appliance.config.bounds import check_listening
from appliance.config.environment import (
    PASSPHRASE_FILE_VARIABLE,
    PKCS11_MODULE_VARIABLE,
    ROOT_VARIABLE,
    TOKEN_PIN_FILE_VARIABLE,
    api_key,
    default_root,
    passphrase_file,
    pkcs11_module,
    source_date_epoch,
    token_pin_file,
)
from appliance.config.layout import GPU_VENV, VENV, Layout, gpu_python
from appliance.config.reading import load_config, load_money, parse_config
from appliance.config.settings import (
    ApiSettings,
    AuditSettings,
    Config,
    EngineSettings,
    MoneySettings,
)

__all__ = [
    "GPU_VENV",
    "PASSPHRASE_FILE_VARIABLE",
    "PKCS11_MODULE_VARIABLE",
    "ROOT_VARIABLE",
    "TOKEN_PIN_FILE_VARIABLE",
    "VENV",
    "ApiSettings",
    "AuditSettings",
    "Config",
    "EngineSettings",
    "Layout",
    "MoneySettings",
    "api_key",
    "check_listening",
    "default_root",
    "gpu_python",
    "load_config",
    "load_money",
    "parse_config",
    "passphrase_file",
    "pkcs11_module",
    "source_date_epoch",
    "token_pin_file",
]
