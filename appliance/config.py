"""Where things are and how they are set: one TOML file becomes frozen dataclasses.

Owns the node's directory layout and every setting; the only reader of the configuration file
and of environment variables. Refuses unknown sections, unknown names and values of the wrong
type, each by its full name, so that a typing error never silently means the default.
"""

from __future__ import annotations

import base64
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, get_type_hints

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
VENV, GPU_VENV = "venv", "venv-cuda13"
"""A release's virtual environments: for the processor, and on a node with a GPU one for that."""

_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Layout:
    """Every path of a node, below `root` ("/" for a system install, a prefix otherwise)."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "etc/appliance/appliance.toml"

    @property
    def releases(self) -> Path:
        return self.root / "opt/appliance/releases"

    @property
    def current_release(self) -> Path:
        return self.root / "opt/appliance/current"

    @property
    def command(self) -> Path:
        return self.current_release / "venv/bin/appliance"

    @property
    def python(self) -> Path:
        return self.current_release / VENV / "bin/python"

    @property
    def gpu_python(self) -> Path:
        """The interpreter with the GPU's runtime; absent where the media brought none."""
        return gpu_python(self.python)

    @property
    def state(self) -> Path:
        return self.root / "var/lib/appliance"

    @property
    def trust(self) -> Path:
        """TUF state: the last verified metadata of each role."""
        return self.state / "trust"

    @property
    def node(self) -> Path:
        """The node's own signing key and identity; readable by root alone."""
        return self.state / "node"

    @property
    def models(self) -> Path:
        """The model store: blobs, bundles, generations."""
        return self.state / "models"

    @property
    def artifacts(self) -> Path:
        """Compiled artifacts, one directory each, with their signed records."""
        return self.state / "artifacts"

    @property
    def engine_environment(self) -> Path:
        """Names the virtual environment that the artifacts are for: `appliance.interpreter`."""
        return self.artifacts / ".environment"

    @property
    def docs(self) -> Path:
        return self.state / "docs"

    @property
    def audit(self) -> Path:
        """The audit log: segments, tiles, checkpoints. What an auditor copies."""
        return self.state / "audit"

    @property
    def audit_key(self) -> Path:
        """The audit signer's private key; outside `audit`, so a copy of the log holds no secret."""
        return self.state / "audit-key"

    @property
    def audit_content(self) -> Path:
        """Content sealed to the auditor's key, outside the log: it may be erased."""
        return self.state / "audit-content"

    @property
    def access(self) -> Path:
        """Directory of the API keys' database."""
        return self.state / "access"

    @property
    def keys_db(self) -> Path:
        return self.access / "keys.db"

    @property
    def metering(self) -> Path:
        return self.state / "metering"

    @property
    def usage_db(self) -> Path:
        return self.metering / "usage.db"

    @property
    def prices_db(self) -> Path:
        return self.metering / "prices.db"

    @property
    def bench(self) -> Path:
        """Reports of `appliance bench`; made by the first run that may write here."""
        return self.state / "bench"

    @property
    def responses(self) -> Path:
        """Directory of what callers asked to keep, responses and files: content at rest."""
        return self.state / "responses"

    @property
    def responses_db(self) -> Path:
        return self.responses / "responses.db"

    @property
    def files_db(self) -> Path:
        """Files and batches, beside the responses: content at rest too."""
        return self.responses / "files.db"

    @property
    def tls(self) -> Path:
        """What the endpoint shows and trusts in TLS: `appliance.tls.files`."""
        return self.state / "tls"

    @property
    def install_state(self) -> Path:
        return self.state / "install"

    @property
    def run(self) -> Path:
        return self.root / "run/appliance"

    @property
    def engine_socket(self) -> Path:
        return self.run / "engine.sock"


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`[api]`: the HTTP endpoint."""

    listen_host: str = "127.0.0.1"
    listen_port: int = 8400
    tls: bool = False
    """Speak TLS 1.3, and nothing in clear; on another address than loopback it has to."""
    client_certificates: bool = False
    """Refuse callers without a certificate of an authority that was given for them."""
    clients: str = ""
    """Networks whose machines may connect, spaces between; empty: all that can."""
    hosts: str = ""
    """Names by which callers reach the endpoint, besides this machine's own; spaces between."""
    max_body_bytes: int = 8 * 1024 * 1024
    request_timeout_seconds: float = 600.0
    keepalive_seconds: float = 10.0
    """Silence on a stream before a comment line is sent."""
    drain_seconds: float = 30.0
    """Time that running requests get to finish when the endpoint is stopped."""
    store_responses: bool = False
    """Whether /v1/responses may keep what was asked and answered."""
    stored_response_hours: float = 24.0
    """How long a stored response is kept after it was made or built upon."""
    store_files: bool = False
    """Whether /v1/files and /v1/batches may keep what is asked and answered."""
    max_file_bytes: int = 100 * 1024 * 1024
    max_stored_bytes: int = 10 * 1024 * 1024 * 1024
    """All files together; more uploads are refused then."""
    stored_file_hours: float = 720.0
    """How long a file, or a batch that ended, is kept at most."""

    @property
    def all_hosts(self) -> frozenset[str]:
        """`hosts`, and the address that it listens on."""
        return frozenset([*self.hosts.lower().split(), self.listen_host])

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect. Raises ValueError for what is no address."""
        return ip_address(self.listen_host).is_loopback

    @property
    def local_host(self) -> str:
        """The address by which this machine's own commands call: that of loopback for all."""
        if ip_address(self.listen_host).is_unspecified:
            return "::1" if ":" in self.listen_host else "127.0.0.1"
        return self.listen_host

    @property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`clients`. Raises ValueError."""
        return tuple(ip_network(network) for network in self.clients.split())


_CPU_STEP, _GPU_STEP = (16, 512), (128, 2048)
"""Sequences that run at once, and tokens computed in a step."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """`[engine]`: what the engine may use. Zero means: choose from the machine."""

    threads: int = 0
    cache_bytes: int = 0
    """Key-value cache of all models together; 0 takes a quarter of the machine's memory, and on a
    GPU half of what is free there for each model."""
    max_sequences: int = 0
    """Sequences that run at once, per model and GPU; 0: 16 on the processor, 128 on a GPU."""
    token_budget: int = 0
    """Tokens computed per step: decode first, the rest goes to prefill chunks; 0: 512 on the
    processor, 2,048 on a GPU."""
    step_milliseconds: int = 400
    """What a step takes, about, while several sequences run; 0 sets no bound but the tokens."""
    shared_step_milliseconds: int = 35
    """What prompts add to a step, about, while several callers are served, or were within ten
    seconds; 0 sets no other bound."""
    max_waiting: int = 256
    """Queued sequences per model and GPU; more are refused."""
    max_waiting_per_caller: int = 192
    """How many of them may be one caller's, so that nobody fills the queue alone."""
    max_context: int = 0
    """Upper bound on tokens per sequence; 0 takes the model's own."""
    draft_tokens: int = 8
    """Tokens guessed ahead per sequence and step, at most, where it pays; 0 guesses none."""
    max_adapters: int = 8
    """Adapters loaded at once, per base model; more are refused."""

    def sized(self, *, gpu: bool) -> EngineSettings:
        """With numbers where zero leaves the choice to what computes."""
        sequences, tokens = _GPU_STEP if gpu else _CPU_STEP
        return replace(
            self,
            max_sequences=self.max_sequences or sequences,
            token_budget=self.token_budget or tokens,
        )


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """`[audit]`: the tamper-evident log."""

    batch_entries: int = 256
    batch_milliseconds: float = 0.0
    """Wait for more records before a flush; 0: batches form while the flush before runs."""
    checkpoint_seconds: float = 1.0
    segment_bytes: int = 64 * 1024 * 1024
    heartbeat_seconds: float = 600.0
    """Silence before a record says that the log was there."""
    epoch_seconds: float = 3600.0
    """How long one key signs before it is destroyed."""
    epoch_records: int = 100_000
    """How many records one key may cover."""
    content: str = "metadata"
    """What of requests and answers is kept: `metadata` (nothing), `commit` or `sealed`."""
    auditor_key: str = ""
    """Whose key opens what is sealed; base64."""
    retention_days: float = 0.0
    """Age at which records are pruned; 0 keeps them for good."""
    ballast_bytes: int = 4 * 1024 * 1024
    """Room kept back for closing records when the disk is full; 0 keeps none."""


@dataclass(frozen=True, slots=True)
class MoneySettings:
    """`[money]`: what prices are in."""

    currency: str = "USD"
    """ISO 4217; a name only, nothing is converted."""


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one node."""

    layout: Layout
    api: ApiSettings = field(default_factory=ApiSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    money: MoneySettings = field(default_factory=MoneySettings)

    @property
    def base_url(self) -> str:
        api = self.api
        host = f"[{api.local_host}]" if ":" in api.local_host else api.local_host
        return f"{'https' if api.tls else 'http'}://{host}:{api.listen_port}/v1"


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
    return parse_config(_text(layout), layout)


def load_money(root: Path) -> MoneySettings:
    """Only `[money]` of `root`'s appliance.toml: a report needs no other section to be right.

    Raises ConfigError naming the setting and the file.
    """
    layout = Layout(root)
    table = _document(_text(layout), layout).get("money", {})
    money: MoneySettings = _section("money", MoneySettings, table)
    _check_money(money)
    return money


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
    _check(config)
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
        raise ConfigError(
            f"unknown section [{unknown[0]}] in {layout.config_file}",
            hint=f"sections are {', '.join(_SECTIONS)}",
        )
    return document


def gpu_python(python: Path) -> Path:
    """The interpreter with the GPU's runtime of the release that `python` belongs to."""
    return python.parent.parent.parent / GPU_VENV / "bin/python"


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


def _check(config: Config) -> None:
    api, engine, audit = config.api, config.engine, config.audit
    check_listening(api)
    _check_content(audit)
    _check_money(config.money)
    bounds: tuple[tuple[str, float, float, float], ...] = (
        ("api.listen_port", api.listen_port, 1, 65535),
        ("api.max_body_bytes", api.max_body_bytes, 1024, 1 << 30),
        ("api.request_timeout_seconds", api.request_timeout_seconds, 1, 86_400),
        ("api.keepalive_seconds", api.keepalive_seconds, 1, 600),
        # Units and `serve` kill after 60 seconds.
        ("api.drain_seconds", api.drain_seconds, 0, 45),
        ("api.stored_response_hours", api.stored_response_hours, 0.01, 8760),
        ("api.max_file_bytes", api.max_file_bytes, 1024, 1 << 30),
        ("api.max_stored_bytes", api.max_stored_bytes, 1024, 1 << 50),
        ("api.stored_file_hours", api.stored_file_hours, 1, 8760),
        ("engine.threads", engine.threads, 0, 1024),
        ("engine.cache_bytes", engine.cache_bytes, 0, 1 << 50),
        ("engine.max_sequences", engine.max_sequences, 0, 1024),
        ("engine.token_budget", engine.token_budget or 16, 16, 65_536),
        ("engine.step_milliseconds", engine.step_milliseconds, 0, 60_000),
        ("engine.shared_step_milliseconds", engine.shared_step_milliseconds, 0, 60_000),
        ("engine.max_waiting", engine.max_waiting, 0, 1_000_000),
        ("engine.max_waiting_per_caller", engine.max_waiting_per_caller, 0, 1_000_000),
        ("engine.max_context", engine.max_context, 0, 1 << 24),
        ("engine.draft_tokens", engine.draft_tokens, 0, 8),
        ("engine.max_adapters", engine.max_adapters, 0, 256),
        ("audit.batch_entries", audit.batch_entries, 1, 4096),
        ("audit.batch_milliseconds", audit.batch_milliseconds, 0, 1000),
        ("audit.checkpoint_seconds", audit.checkpoint_seconds, 0.01, 3600),
        ("audit.segment_bytes", audit.segment_bytes, 65_536, 1 << 32),
        ("audit.heartbeat_seconds", audit.heartbeat_seconds, 1, 86_400),
        ("audit.epoch_seconds", audit.epoch_seconds, 60, 86_400 * 366),
        ("audit.epoch_records", audit.epoch_records, 1000, 1 << 40),
        ("audit.retention_days", audit.retention_days, 0, 36_600),
        ("audit.ballast_bytes", audit.ballast_bytes, 0, 1 << 34),
    )
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value}", hint=f"it must be between {low} and {high}")


def _check_money(money: MoneySettings) -> None:
    currency = money.currency
    if not (
        len(currency) == 3 and currency.isascii() and currency.isalpha() and currency.isupper()
    ):
        raise ConfigError(
            f"money.currency is {currency!r}", hint='it must be three capital letters, as "EUR"'
        )


def check_listening(api: ApiSettings) -> None:
    """Refuse to be reached from other machines in clear. Raises ConfigError."""
    try:
        loopback = api.is_loopback
    except ValueError:
        raise ConfigError(
            f"api.listen_host must be an IP address, not {api.listen_host!r}",
            hint='use "127.0.0.1", an address of this machine, or "0.0.0.0" for all of them',
        ) from None
    if not (loopback or api.tls):
        raise ConfigError(
            f"api.listen_host {api.listen_host} is not a loopback address, and api.tls is off",
            hint="set api.tls = true, make a certificate with `appliance tls create`, "
            "then `appliance tls apply`",
            code="tls_required",
        )
    for name, value in (("client_certificates", api.client_certificates), ("clients", api.clients)):
        if value and not api.tls:
            raise ConfigError(
                f"api.{name} is set, and api.tls is off", hint="set api.tls = true, or leave it out"
            )
    try:
        networks = api.networks
    except ValueError as error:
        raise ConfigError(
            f"api.clients is not a list of networks: {error}",
            hint='for instance "10.1.0.0/16 10.2.3.4", with spaces between',
        ) from None
    if networks and loopback:
        raise ConfigError(
            "api.clients is set, and api.listen_host is a loopback address",
            hint="no other machine can connect: leave api.clients out",
        )


def _check_content(audit: AuditSettings) -> None:
    modes = ("metadata", "commit", "sealed")
    if audit.content not in modes:
        raise ConfigError(
            f"audit.content is {audit.content!r}", hint=f"it must be one of {', '.join(modes)}"
        )
    try:
        key = base64.b64decode(audit.auditor_key.encode("ascii"), validate=True)
    except ValueError:
        key = b"?"
    if len(key) != (_KEY_BYTES if audit.auditor_key or audit.content == "sealed" else 0):
        raise ConfigError(
            f"audit.auditor_key is {audit.auditor_key!r}",
            hint="take the line that `appliance audit content-key` printed",
        )
