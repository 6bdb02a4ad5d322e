"""Every setting of a node, with what it is where nothing is said."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from appliance.config.layout import Layout


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
