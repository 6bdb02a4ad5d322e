"""A machine with stand-ins for TensorRT's and CUDA's libraries, and a compilation on it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from appliance.bundle.manifest import Manifest, decode
from appliance.compiler.profiles import Profile, Sizes, plan, sizes_for
from appliance.compiler.record import Fit
from appliance.config import EngineSettings
from installer.checkpoint import build_bundle
from installer.checkpoint.quantize import Precision
from tests.checkpoint.families import find_models
from tests.fakes.checkpoints import write_llama, write_qwen2, write_qwen3

WRITERS = {name: model.write for name, model in find_models().items()}
WRITERS |= {"qwen3": write_qwen3, "qwen2": write_qwen2, "llama": write_llama}
FIT = Fit(precision="fp16", weights=200, slot=0, memory=20_000)
"""Room for a hundred engines."""
SETTINGS = EngineSettings(max_sequences=3, token_budget=48, max_context=256)

COMPILED = """
import json, sys
from pathlib import Path
import numpy as np
from appliance.bundle.manifest import decode
from appliance.compiler import folding, libraries, profiles
from appliance.compiler.trt_compile import compile_tensorrt
from appliance.errors import ApplianceError

bundle, out, sizes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
profiles._SHORTEST = 64  # so that a tiny model has caches of several lengths
folding.MOST_INSIDE = 0  # and weights like a large one's
manifest = decode((bundle / "bundle.json").read_bytes())
plan = profiles.plan(profiles.Sizes(**sizes))
sys.path.append(sys.argv[4])
found = libraries.read_libraries()
assert (found.tensorrt, found.missing_cuda, found.missing_tensorrt) == ("10.16.1", "", ""), found
expected = np.ones((12, manifest.decoder.vocab_size), np.float32)
try:
    compile_tensorrt(bundle, manifest, out, expected, plan)
except ApplianceError as error:
    print(json.dumps([error.code, error.message]))
"""


@dataclass(frozen=True)
class Stand:
    """A machine with stand-ins: a fresh folder to work in, and what was asked of them."""

    python: Path
    libraries: Path
    folder: Path

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        here = {"LD_LIBRARY_PATH": self.libraries, "STAND_IN_LOG": self.log}
        return subprocess.run(
            [self.python, "-I", "-c", program, *map(str, arguments), str(self.libraries)],
            env=os.environ | {k: str(v) for k, v in here.items()} | {"STAND_IN_MODELS": "../given"},
            cwd=self.folder / "elsewhere",
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def asked(self, word: str) -> list[str]:
        """What the stand-ins were asked for, of one kind, since the last look at all."""
        return [line for line in self.log.read_text().splitlines() if line.split()[0] == word]


def in_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def sizes(manifest: Manifest) -> Sizes:
    """As the node reckons them, for the compiler and for the engine."""
    assert manifest.decoder is not None
    return sizes_for(manifest.decoder, SETTINGS, FIT)


def planned(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> tuple[Profile, ...]:
    monkeypatch.setattr("appliance.compiler.profiles._SHORTEST", 64)
    return plan(sizes(manifest))


def bundle_of(stand: Stand, family: str, precision: Precision) -> tuple[Path, Manifest]:
    checkpoint, bundle = WRITERS[family](stand.folder / "checkpoint"), stand.folder / "bundle"
    build_bundle(checkpoint, bundle, name="it", version="1", signer=None, precision=precision)
    return bundle, decode((bundle / "bundle.json").read_bytes())


def compile_it(stand: Stand, bundle: Path, manifest: Manifest) -> Path:
    """The artifact's folder, once the golden prompt was computed with what was built."""
    out = stand.folder / "out"
    done = stand.run(COMPILED, bundle, out, in_json(sizes(manifest)))
    assert done.returncode == 0, done.stderr
    # Nothing is computed, so only the comparison can fail: all that comes before it was done.
    assert json.loads(done.stdout)[0] == "golden_differs", done.stdout
    return out
