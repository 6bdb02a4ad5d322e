"""What is asked of the server: how many streams, how many requests, how long.

Owns the numbers and their refusal. Knows nothing of tokens' texts or of time.
"""

from __future__ import annotations

import msgspec

from appliance.errors import UsageError

MAX_STREAMS = 1024
"""More sockets than that and the client would be what is measured."""
MIN_REQUESTS = 8
DEFAULT_RATE_REQUESTS = 32


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """One load. Closed loop: `concurrency` streams, each asking again when it was answered.
    Open loop: `rate` requests a second on average, whether or not others were answered."""

    concurrency: int = 0
    rate: float = 0.0

    @property
    def label(self) -> str:
        """`16`, or `2.5/s`."""
        return f"{self.rate:g}/s" if self.rate else str(self.concurrency)


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of every level."""

    levels: tuple[Level, ...]
    output_tokens: int
    input_tokens: int = 0
    """Of each prompt, the chat template's tokens included; 0 if the prompts come from a file."""
    shared_prefix: int = 0
    """Leading tokens that all prompts have in common."""
    prompts: str = ""
    """The file that the prompts come from."""
    requests: int = 0
    """Per level; 0 takes twice the concurrency and at least eight, or 32 at a rate."""
    warmup: int = 1
    """Requests before each level that are not measured."""
    seed: int = 0

    def requests_at(self, level: Level) -> int:
        """How many requests `level` measures."""
        if self.requests:
            return self.requests
        return DEFAULT_RATE_REQUESTS if level.rate else max(MIN_REQUESTS, 2 * level.concurrency)


def parse_levels(concurrency: str | None, rate: str | None) -> tuple[Level, ...]:
    """The levels that `--concurrency 1,4,16` or `--rate 0.5,2` name. Raises UsageError."""
    if concurrency is not None and rate is not None:
        raise UsageError(
            "--concurrency and --rate exclude each other: a rate does not wait for answers",
            hint="give --concurrency for a closed loop or --rate for an open one",
        )
    if rate is not None:
        rates = [_number("--rate", word) for word in rate.split(",")]
        return _distinct("--rate", tuple(Level(rate=value) for value in rates))
    words = (concurrency or "1,4,16").split(",")
    return _distinct("--concurrency", tuple(Level(concurrency=_streams(word)) for word in words))


def check_workload(workload: Workload) -> None:
    """Refuse what cannot be measured. Raises UsageError that names the option."""
    if workload.prompts and workload.input_tokens:
        raise UsageError(
            "--prompts and --input-tokens exclude each other: a real prompt has its own length",
            hint="leave one of them out",
        )
    if workload.prompts and workload.shared_prefix:
        raise UsageError(
            "--prompts and --shared-prefix exclude each other: real prompts share what they share",
            hint="leave one of them out",
        )
    if workload.shared_prefix and workload.shared_prefix >= workload.input_tokens:
        raise UsageError(
            f"--shared-prefix {workload.shared_prefix} leaves nothing of "
            f"--input-tokens {workload.input_tokens} that differs",
            hint="make the prefix shorter than the prompt",
        )
    most = max(level.concurrency for level in workload.levels)
    if workload.requests and workload.requests < most:
        raise UsageError(
            f"--requests {workload.requests} never fills --concurrency {most}",
            hint="ask for at least as many requests as streams",
        )


def _distinct(option: str, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    if len(set(levels)) != len(levels):
        raise UsageError(f"{option} names a level twice", hint="name each once")
    return levels


def _streams(word: str) -> int:
    value = _number("--concurrency", word)
    if value != int(value) or value > MAX_STREAMS:
        raise UsageError(
            f"--concurrency takes whole numbers up to {MAX_STREAMS}, not {word.strip()!r}",
            hint="for instance --concurrency 1,4,16",
        )
    return int(value)


def _number(option: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(
            f"{option} takes numbers above 0, separated by commas, not {word.strip()!r}",
            hint=f"for instance {option} 1,4,16",
        )
    return value
