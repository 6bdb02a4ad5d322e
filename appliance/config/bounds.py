"""What settings may be. Raises ConfigError naming the first that is out of its bounds."""

from __future__ import annotations

import base64

from appliance.config.settings import ApiSettings, AuditSettings, Config, MoneySettings
from appliance.errors import ConfigError

_KEY_BYTES = 32


def check(config: Config) -> None:
    """All of them."""
    api, engine, audit = config.api, config.engine, config.audit
    check_listening(api)
    _check_content(audit)
    check_money(config.money)
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


def check_money(money: MoneySettings) -> None:
    """Those that a report needs."""
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
    if audit.auditor_key and audit.content != "sealed":
        raise ConfigError(
            f"audit.auditor_key is set, and audit.content is {audit.content!r}: nothing is sealed",
            hint='write content = "sealed" below [audit], or leave auditor_key out',
        )
