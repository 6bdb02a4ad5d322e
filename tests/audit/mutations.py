"""Single edits of a log's directory, as somebody who can write to the disk would make them.

Each mutation says what it does; applying it changes at least one byte or name of the log. What
is not part of the log (lock files, temporary files) is left alone.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from appliance.audit.segment import HEADER_BYTES, FrameReader, segment_name
from appliance.audit.tiles import decode_bundle, encode_bundle


@dataclass(frozen=True)
class Mutation:
    """One edit. `apply` gets the directory of a copy of the log."""

    name: str
    apply: Callable[[Path], None]


def parts(directory: Path) -> list[str]:
    """The files that are the log."""
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path.suffix not in {".lock", ".tmp"}
    )


def mutations(directory: Path, rng: random.Random, count: int) -> Iterator[Mutation]:
    """`count` mutations of the log in `directory`, of every kind in turn."""
    makers = [_flip, _truncate, _extend, _drop, _swap_files, _zero, _swap_entries, _drop_entry]
    makers += [_repeat_entry, _swap_frames, _drop_frame, _add_file, _not_a_file, _flip, _flip]
    makers += [_replay_head, _roll_back]
    names = parts(directory)
    for i in range(count):
        yield makers[i % len(makers)](directory, names, rng)


def _flip(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    name = rng.choice(names)
    position = rng.randrange((directory / name).stat().st_size)
    bit = rng.randrange(8)

    def apply(log: Path) -> None:
        data = bytearray((log / name).read_bytes())
        data[position] ^= 1 << bit
        (log / name).write_bytes(data)

    return Mutation(f"flip bit {bit} of byte {position} in {name}", apply)


def _truncate(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    name = rng.choice(names)
    size = rng.randrange((directory / name).stat().st_size)
    return Mutation(
        f"cut {name} to {size} bytes",
        lambda log: _rewrite(log / name, lambda data: data[:size]),
    )


def _extend(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    # Bytes behind the last segment's records are what a crash leaves: not an alteration.
    name = rng.choice([n for n in names if not n.startswith("segments/")])
    extra = rng.randbytes(rng.randint(1, 40))
    return Mutation(
        f"append {len(extra)} bytes to {name}",
        lambda log: _rewrite(log / name, lambda data: data + extra),
    )


def _drop(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    # Partial tiles that a newer one replaced may be deleted: the layout allows it.
    name = rng.choice([n for n in names if ".p/" not in n or n in _newest_partials(names)])
    return Mutation(f"delete {name}", lambda log: (log / name).unlink())


def _swap_files(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    while True:
        one, two = rng.sample(names, 2)
        if (directory / one).read_bytes() != (directory / two).read_bytes():
            break

    def apply(log: Path) -> None:
        first, second = (log / one).read_bytes(), (log / two).read_bytes()
        (log / one).write_bytes(second)
        (log / two).write_bytes(first)

    return Mutation(f"swap {one} and {two}", apply)


def _zero(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    name = rng.choice(names)
    size = (directory / name).stat().st_size
    start = rng.randrange(size)
    end = min(size, start + rng.randint(1, 64))
    if not any((directory / name).read_bytes()[start:end]):
        return _flip(directory, names, rng)
    return Mutation(
        f"zero bytes {start} to {end} of {name}",
        lambda log: _rewrite(log / name, lambda d: d[:start] + bytes(end - start) + d[end:]),
    )


def _swap_entries(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    name = rng.choice(_bundles(names))
    one, two = rng.sample(range(_width(name)), 2)

    def swap(leaves: list[bytes]) -> list[bytes]:
        leaves[one], leaves[two] = leaves[two], leaves[one]
        return leaves

    return Mutation(f"swap entries {one} and {two} of {name}", lambda log: _edit(log / name, swap))


def _drop_entry(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    name = rng.choice(_bundles(names))
    i = rng.randrange(_width(name))
    return Mutation(
        f"drop entry {i} of {name}",
        lambda log: _edit(log / name, lambda leaves: leaves[:i] + leaves[i + 1 :]),
    )


def _repeat_entry(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    name = rng.choice(_bundles(names))
    one, two = rng.sample(range(_width(name)), 2)
    return Mutation(
        f"put entry {one} of {name} in place of {two}",
        lambda log: _edit(log / name, lambda v: [*v[:two], v[one], *v[two + 1 :]]),
    )


def _swap_frames(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    name = rng.choice(_segments(names))
    ends = _frame_ends(directory / name)
    one, two = sorted(rng.sample(range(len(ends) - 1), 2))

    def swap(data: bytes) -> bytes:
        frames = [data[a:b] for a, b in pairwise(ends)]
        frames[one], frames[two] = frames[two], frames[one]
        return data[: ends[0]] + b"".join(frames)

    return Mutation(
        f"swap frames {one} and {two} of {name}", lambda log: _rewrite(log / name, swap)
    )


def _drop_frame(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    name = rng.choice(_segments(names))
    ends = _frame_ends(directory / name)
    i = rng.randrange(len(ends) - 1)
    return Mutation(
        f"drop frame {i} of {name}",
        lambda log: _rewrite(log / name, lambda data: data[: ends[i]] + data[ends[i + 1] :]),
    )


def _add_file(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    source = rng.choice(names)
    name = rng.choice(
        [
            "notes",
            "segments/99999999999999999999.seg",
            "segments/extra",
            "tile/0/000.txt",
            "tile/0/777",
            "tile/9/000",
            "tile/entries/000.p/300",
            "tile/entries/x001/000",
        ]
    )

    def apply(log: Path) -> None:
        (log / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log / source, log / name)

    return Mutation(f"put a copy of {source} at {name}", apply)


def _not_a_file(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    """A link to the very bytes, a pipe that never answers, a directory."""
    name = rng.choice([n for n in names if ".p/" not in n or n in _newest_partials(names)])
    kind = rng.choice(["link", "pipe", "directory"])

    def apply(log: Path) -> None:
        (log / name).rename(log.parent / "moved")
        if kind == "link":
            (log / name).symlink_to(log.parent / "moved")
        elif kind == "pipe":
            os.mkfifo(log / name)
        else:
            (log / name).mkdir()

    return Mutation(f"put a {kind} in place of {name}", apply)


def _replay_head(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    """A genuine older head in place of a newer one."""
    target = rng.choice(["checkpoint", *(n for n in names if n.startswith("cosigned/"))])
    heads = [e / "checkpoint" for e in _earlier(directory)]
    heads += [directory / n for n in names if n.startswith("epochs/")]
    source = rng.choice([head for head in heads if _note(head) != _note(directory / target)])
    return Mutation(
        f"put the head of {source.parent.name}/{source.name} in place of {target}",
        lambda log: _rewrite(log / target, lambda _: _note(source)),
    )


def _roll_back(directory: Path, names: list[str], rng: random.Random) -> Mutation:
    """The whole directory as it was at an earlier time, perhaps with one file of today."""
    source = rng.choice(_earlier(directory))
    kept = rng.choice([None, *names])

    def apply(log: Path) -> None:
        today = (log / kept).read_bytes() if kept else b""
        shutil.rmtree(log)
        shutil.copytree(source, log)
        if kept:
            (log / kept).parent.mkdir(parents=True, exist_ok=True)
            (log / kept).write_bytes(today)

    return Mutation(f"roll back to {source.name}, keeping {kept}", apply)


def _earlier(directory: Path) -> list[Path]:
    """Copies of the log from before its cosigned head, which lie beside it."""
    return sorted(directory.parent.glob("earlier-*"))


def _note(path: Path) -> bytes:
    """The signed note that a file begins with."""
    text, _, rest = path.read_bytes().partition(b"\n\n")
    return text + b"\n\n" + rest.partition(b"\n\n")[0].rstrip(b"\n") + b"\n"


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _edit(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    leaves = decode_bundle(path.read_bytes(), _width(path.as_posix()))
    path.write_bytes(encode_bundle(change(leaves)))


def _bundles(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("tile/entries/") and _width(name) > 1]


def _segments(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("segments/")]


def _width(name: str) -> int:
    _, partial, width = name.rpartition(".p/")
    return int(width) if partial else 256


def _newest_partials(names: list[str]) -> set[str]:
    newest: dict[str, str] = {}
    for name in names:
        directory, partial, _ = name.rpartition(".p/")
        if partial and _width(name) > _width(newest.get(directory, ".p/0")):
            newest[directory] = name
    return set(newest.values())


def _frame_ends(path: Path) -> list[int]:
    with path.open("rb") as file:
        reader = FrameReader(file, int(path.stem))
        ends = [HEADER_BYTES, *(frame.end for frame in reader)]
    assert segment_name(int(path.stem)).endswith(path.name)
    return ends
