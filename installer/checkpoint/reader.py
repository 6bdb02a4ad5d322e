"""A Hugging Face checkpoint directory, opened strictly.

Owns which files are read, their sizes' limits, and the digest over exactly those. Refuses
checkpoints that want to run code: pickled weights and `auto_map` (remote code), and weights that
are quantized in a way that `packed` does not know.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cached_property
from pathlib import Path

from appliance.errors import CheckpointError, LayoutError
from appliance.fsops import read_regular, resolve_inside
from installer.checkpoint.packed import methods, modelopt
from installer.checkpoint.packed.packing import Method
from installer.checkpoint.safetensors_file import (
    FETCH_POINTERS,
    IS_POINTER,
    LFS_POINTER,
    PLAIN_FILES,
)
from installer.checkpoint.settings import Settings
from installer.checkpoint.tensors import INDEX, PICKLES, WEIGHTS, Tensors

CONFIG = "config.json"
TEXT = "text_config"
"""What config.json says of the language model, where that is one part of several."""

_OTHER_WEIGHTS = (
    (
        "*.gguf",
        "the weights are in GGUF ({})",
        "name the checkpoint that it was made from: the publisher's directory with safetensors",
    ),
    (
        "*-of-*.safetensors",
        f"the checkpoint has shards ({{}}), and no {INDEX}",
        f"download {INDEX}, which says what is in which",
    ),
    (
        "consolidated*.safetensors",
        "the weights are in the publisher's own layout ({})",
        "take the checkpoint in the layout of transformers: config.json and model*.safetensors",
    ),
)
"""Patterns of weights that are not read, what they are, and what helps."""
_MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_HASHERS = 4
"""Files that are hashed at once; more would only make a disk seek."""


class Checkpoint:
    """The files of one checkpoint."""

    def __init__(self, directory: Path) -> None:
        """Open `directory`. Raises CheckpointError."""
        if not directory.is_dir():
            raise CheckpointError(
                f"there is no directory {directory}",
                hint="download the checkpoint first, then name its directory: nothing here does",
            )
        if not os.path.lexists(directory / CONFIG):
            raise CheckpointError(
                f"{directory} has no {CONFIG}",
                hint="name the directory of a Hugging Face checkpoint",
            )
        self.directory = directory
        self._read: set[str] = set()
        self._states: dict[str, tuple[int, int, int]] = {}
        self._digests: dict[str, bytes] = {}
        self._beside: dict[str, str] = {}
        """Files of weights in folders of their own, and what their tensors' names begin with."""
        self._instead: dict[str, object] = {}
        """Documents that are taken for those of the directory."""
        self.config = self.document(CONFIG)
        for file in (CONFIG, "tokenizer_config.json"):
            if "auto_map" in (self.document(file) if self.has(file) else {}):
                raise CheckpointError(
                    f"{file}: auto_map asks to run code from the checkpoint",
                    hint="this appliance runs no remote code: of a family that it builds, take the "
                    f"key out of {file} and build again",
                )
        said = Settings(_quantized(self.config), CONFIG)
        self.packing = methods.read_method(said) or self._said_beside()
        """How matrices are quantized already; None if they are plain."""

    def _said_beside(self) -> Method | None:
        """What a file of its own says of quantization, where config.json says nothing."""
        if not self.has(modelopt.FILE):
            return None
        return modelopt.read_beside(Settings(self.document(modelopt.FILE), modelopt.FILE))

    @property
    def family(self) -> str:
        """The `model_type` of config.json."""
        family = self.config.get("model_type")
        if not isinstance(family, str):
            raise CheckpointError(f"{CONFIG} has no model_type")
        return family

    @property
    def architecture(self) -> str:
        """The class that the publisher's reference implementation loads."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else self.family

    @cached_property
    def tensors(self) -> Tensors:
        """The weights. Raises CheckpointError."""
        if self.has(INDEX):
            tensors = Tensors(self.directory, self.document(INDEX), self.packing, self._beside)
        elif self.has(WEIGHTS):
            tensors = Tensors(self.directory, None, self.packing, self._beside)
        else:
            raise self._no_weights()
        return tensors

    def include(self, folder: str) -> str:
        """Have the weights of a folder among `tensors`; returns what their names begin with.

        To be asked before `tensors` is. Raises CheckpointError.
        """
        file, prefix = f"{folder}/{WEIGHTS}", f"{folder}."
        if not self.has(file):
            pickled = any((self.directory / folder).glob("*.bin"))
            raise CheckpointError(
                f"the checkpoint has no {file}",
                hint="its weights are pickled, and loading them could run code: convert them to "
                "safetensors on a machine you can spare"
                if pickled
                else "the download is incomplete",
            )
        self._beside[file] = prefix
        return prefix

    def with_config(self, config: dict[str, object]) -> Checkpoint:
        """The same checkpoint as if config.json said `config`."""
        other = copy(self)
        other.config = config
        other._instead = {CONFIG: dict(config)}  # who reads it takes keys out
        return other

    def has(self, name: str) -> bool:
        """Whether there is something of this name; what is no plain file is refused when read."""
        return os.path.lexists(self.directory / name)

    def bytes(self, name: str) -> bytes:
        """The whole of a small file. Raises CheckpointError."""
        if not self.has(name):
            raise CheckpointError(f"the checkpoint has no {name}", hint=self._without(name))
        self._read.add(name)
        try:
            path = resolve_inside(self.directory, name)
            return read_regular(path, limit=_MAX_DOCUMENT_BYTES, name=name)
        except LayoutError as error:
            raise CheckpointError(error.message, hint=PLAIN_FILES) from error

    def text(self, name: str) -> str:
        """The whole of a small text file. Raises CheckpointError."""
        try:
            return self.bytes(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{name} is not UTF-8: {error}") from error

    def document(self, name: str) -> dict[str, object]:
        """A JSON object. Raises CheckpointError."""
        document = self.json(name)
        if not isinstance(document, dict):
            raise CheckpointError(
                f"{name} is not a JSON object", hint="download it again as it is published"
            )
        return document

    def json(self, name: str) -> object:
        """A JSON value. Raises CheckpointError."""
        if name in self._instead:
            return self._instead[name]
        text = self.text(name)
        if text.startswith(LFS_POINTER):
            raise CheckpointError(f"{name} {IS_POINTER}", hint=FETCH_POINTERS)
        try:
            return json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CheckpointError(
                f"{name} is not JSON: {error}", hint="the file is damaged: download it again"
            ) from error

    def settings(self, name: str) -> Settings:
        """A JSON object to be read key by key, but for what is known here already."""
        document = self.document(name)
        if name == CONFIG:
            document = unquantized(document)
        return Settings(document, name)

    def files_read(self) -> tuple[str, ...]:
        """Every file that was read so far, in path order, and the weights, read or not."""
        return tuple(sorted(self._read.union(self.tensors.files)))

    def size(self) -> int:
        """Bytes of these files."""
        return sum((self.directory / name).stat().st_size for name in self.files_read())

    def digest(self, advance: Callable[[int], None]) -> str:
        """SHA-256 over these files: for each, its path, a NUL, its own SHA-256."""
        names = self.files_read()
        self._states = {name: self._state(name) for name in names}
        with ThreadPoolExecutor(min(_HASHERS, os.cpu_count() or 1)) as pool:
            digests = pool.map(lambda name: _hash(self.directory / name, advance), names)
            self._digests = dict(zip(names, digests, strict=True))
        return self.digest_without(())

    def digest_without(self, names: Collection[str]) -> str:
        """The same without the files `names`, as they were when `digest` was asked."""
        outer = hashlib.sha256()
        for name, inner in self._digests.items():
            if name not in names:
                outer.update(name.encode("utf-8") + b"\0" + inner)
        return outer.hexdigest()

    def refuse_changes(self) -> None:
        """Raise CheckpointError if a file is no longer the one that `digest` saw."""
        for name, state in self._states.items():
            if self._state(name) != state:
                raise CheckpointError(
                    f"{name} was changed while the bundle was built",
                    hint="build it again when nothing writes to the checkpoint",
                )

    def _state(self, name: str) -> tuple[int, int, int]:
        found = (self.directory / name).stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _no_weights(self) -> CheckpointError:
        pickles = sorted(p.name for pattern in PICKLES for p in self.directory.glob(pattern))
        if pickles:
            return CheckpointError(
                f"the weights are pickled ({pickles[0]}): loading them could run code",
                hint="convert them to safetensors on a machine you can spare",
            )
        for pattern, message, hint in _OTHER_WEIGHTS:
            if found := sorted(file.name for file in self.directory.glob(pattern)):
                return CheckpointError(message.format(found[0]), hint=hint)
        return CheckpointError(
            f"the checkpoint has no {WEIGHTS}", hint="the download is incomplete"
        )

    def _without(self, name: str) -> str:
        """What helps where the small file `name` is missing."""
        if name == "tokenizer.json" and self.has("tokenizer.model"):
            return (
                "tokenizer.model is an older format: let transformers write the newer, "
                "AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(CHECKPOINT)"
            )
        if name == "tokenizer.json" and self.has("tekken.json"):
            return (
                "tekken.json is Mistral's own format: take tokenizer.json, and chat_template.jinja "
                "where there is none, from a copy of this release in the layout of transformers"
            )
        return "the download is incomplete"


def unquantized(config: Mapping[str, object]) -> dict[str, object]:
    """`config` without what it says of a quantization, of its parts, too."""
    plain = {key: value for key, value in config.items() if key != methods.KEY}
    text = plain.get(TEXT)
    if isinstance(text, dict):
        plain[TEXT] = {key: value for key, value in text.items() if key != methods.KEY}
    return plain


def _quantized(config: Mapping[str, object]) -> Mapping[str, object]:
    """The object that says how weights are quantized: all of it, or the language model's part.

    Raises CheckpointError if both do, and not the same.
    """
    text = config.get(TEXT)
    if not isinstance(text, dict) or text.get(methods.KEY) is None:
        return config
    if config.get(methods.KEY) not in (None, text[methods.KEY]):
        raise CheckpointError(
            f"{CONFIG}: {methods.KEY} differs from that of {TEXT}",
            hint="download config.json again as it is published",
        )
    return text


def _hash(path: Path, advance: Callable[[int], None]) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            advance(len(piece))
    return digest.digest()
