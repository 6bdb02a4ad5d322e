"""Measures what building a bundle takes: memory, and time beside reading and hashing its files.

A checkpoint of random weights in the shape of a published one is written, sharded, into a
temporary directory and built in each grade, in a process of its own; before each build the same
files are read and hashed, once, on one thread. Printed, as rows for docs/benchmarks.md: the peak
of the process's resident memory (VmHWM; it counts the pages of files that are mapped, which the
kernel takes back when it wants them), the peak of its own memory (RssAnon, sampled), and seconds,
with those of each step. Needs about three times the checkpoint's size of disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from installer.progress import Advance

BOUND = "largest tensor x 3 + 500 MB"
_SAMPLE_SECONDS = 0.01


class StepTimes:
    """Progress that remembers how long each step took."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._title = "plan"
        self.steps: list[tuple[str, float]] = []

    def step(self, title: str) -> None:
        """A step begins, and the one before it ends."""
        now = time.monotonic()
        self.steps.append((self._title, now - self._began))
        self._title, self._began = title, now

    def note(self, text: str) -> None:
        """Nothing to time."""

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Advance]:
        """A step over bytes; what follows it is counted apart."""
        self.step(title)
        yield lambda _count: None
        self.step(f"after {title}")

    @contextmanager
    def count(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """A step over other things."""
        with self.bytes(f"{title}, {total} {unit}", total) as advance:
            yield advance


def build(checkpoint: Path, out: Path, grade: str) -> None:
    """One build in this process; prints its memory and its steps."""
    from installer.checkpoint import build_bundle

    times = StepTimes()
    build_bundle(
        checkpoint,
        out,
        name="m",
        version="1",
        precision=grade,  # type: ignore[arg-type]
        signer=None,
        created=0,
        progress=times,
    )
    times.step("end")
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    print(f"peak {peak}")
    for title, seconds in times.steps:
        if seconds >= 0.1:
            print(f"step {seconds:.1f} {title}")


def measured(checkpoint: Path, out: Path, grade: str) -> tuple[float, int, int, list[str]]:
    """Seconds, peak resident bytes, peak anonymous bytes and steps of one build."""
    command = [sys.executable, "-m", "scripts.bench_build", "--child", grade]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--checkpoint", str(checkpoint), "--out", str(out)],
        stdout=subprocess.PIPE,
        text=True,
    )
    own = 0
    while process.poll() is None:
        own = max(own, _anonymous(process.pid))
        time.sleep(_SAMPLE_SECONDS)
    seconds = time.monotonic() - began
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    assert process.returncode == 0, f"the build in {grade} failed"
    return seconds, int(lines[0].split()[1]), own, [line[5:] for line in lines[1:]]


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def hash_files(directory: Path) -> float:
    """Seconds to read and hash every weight file, on one thread."""
    began = time.monotonic()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    return time.monotonic() - began


def write_checkpoint(directory: Path, layers: int) -> int:
    """The shape of Qwen3-1.7B with its output table stored; returns bytes of the weights."""
    from tests.fakes.checkpoints import write_qwen3

    write_qwen3(
        directory,
        vocab=151_936,
        hidden=2048,
        layers=layers,
        heads=16,
        kv_heads=8,
        head_dim=128,
        intermediate=6144,
        context=40_960,
        tied=False,
        dtype="bfloat16",
        max_shard_bytes=1_000_000_000,
    )
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def write_mixture(directory: Path, layers: int) -> int:
    """Qwen3-30B-A3B's 128 experts a layer over a small vocabulary, so that no tensor is large."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from tests.fakes.checkpoints import write_chat_files

    random, vocab, hidden, inner, experts, heads = (
        np.random.default_rng(0),
        32_000,
        2048,
        768,
        128,
        32,
    )
    config: dict[str, object] = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": inner,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "max_position_embeddings": 40_960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    directory.mkdir()
    write_chat_files(directory, config, "bfloat16")
    where: dict[str, str] = {}

    def save(shapes: Mapping[str, tuple[int, ...]]) -> None:
        file = f"model-{len(set(where.values())):03}.safetensors"
        drawn = {
            name: (random.standard_normal(shape, np.float32) * 0.03 + (len(shape) == 1)).astype(
                ml_dtypes.bfloat16
            )
            for name, shape in shapes.items()
        }
        save_file(drawn, directory / file)
        where.update(dict.fromkeys(shapes, file))

    tables = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (vocab, hidden))
    save({**tables, "model.norm.weight": (hidden,)})
    for layer in range(layers):
        at = f"model.layers.{layer}"
        save(
            {
                f"{at}.self_attn.q_proj.weight": (heads * 128, hidden),
                f"{at}.self_attn.k_proj.weight": (4 * 128, hidden),
                f"{at}.self_attn.v_proj.weight": (4 * 128, hidden),
                f"{at}.self_attn.o_proj.weight": (hidden, heads * 128),
                f"{at}.self_attn.q_norm.weight": (128,),
                f"{at}.self_attn.k_norm.weight": (128,),
                f"{at}.input_layernorm.weight": (hidden,),
                f"{at}.post_attention_layernorm.weight": (hidden,),
                f"{at}.mlp.gate.weight": (experts, hidden),
            }
        )
        for expert in range(experts):
            each = f"{at}.mlp.experts.{expert}"
            shapes = {f"{each}.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
            save(shapes | {f"{each}.down_proj.weight": (hidden, inner)})
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


@contextmanager
def _work(directory: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-build-", dir=directory) as name:
        yield Path(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grades", default="w8a8,int4")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, help="28, or 3 of a mixture")
    parser.add_argument("--mixture", action="store_true", help="one with 128 experts a layer")
    parser.add_argument("--dir", type=Path, help="where the temporary directory is made")
    parser.add_argument("--checkpoint", type=Path, help="one to build instead of a random one")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        build(given.checkpoint, given.out, given.child)
        return
    with _work(given.dir) as work:
        checkpoint = given.checkpoint
        if checkpoint is None:
            checkpoint = work / "checkpoint"
            write = write_mixture if given.mixture else write_checkpoint
            size = write(checkpoint, given.layers or (3 if given.mixture else 28))
            print(f"checkpoint: {size / 1e9:.2f} GB")
        print("| grade | peak resident | its own memory | build | read and hash | ratio |")
        print("| --- | --- | --- | --- | --- | --- |")
        for _ in range(given.rounds):
            for grade in given.grades.split(","):
                hashing = hash_files(checkpoint)
                out = work / "bundle"
                seconds, peak, own, steps = measured(checkpoint, out, grade)
                shutil.rmtree(out)
                print(
                    f"| `{grade}` | {peak / 1e6:.0f} MB | {own / 1e6:.0f} MB | {seconds:.0f} s "
                    f"| {hashing:.1f} s | {seconds / hashing:.1f} |",
                    flush=True,
                )
                for step in steps:
                    print(f"    {step}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
