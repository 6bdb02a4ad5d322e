"""An embedding model brought to life: what it reads, and what it makes of the vectors.

Refuses texts that are empty or longer than the model reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from appliance.bundle.specs import (
    EncoderSpec,
)
from appliance.compiler import Artifact
from appliance.config import EngineSettings
from appliance.engine.bundle_files import bytes_below, read_checked
from appliance.engine.embedding_engine import EmbeddingEngine
from appliance.engine.encoder_runner import EncoderRunner, Vectors
from appliance.engine.opened_reader import open_readers
from appliance.engine.tokenizer import Tokenizer
from appliance.errors import RequestError
from appliance.model_store import StoredBundle


class EmbeddingModel:
    """An embedding model, ready to embed. Raises as its parts do."""

    def __init__(self, bundle: StoredBundle, artifact: Artifact, settings: EngineSettings) -> None:
        manifest = bundle.manifest
        assert manifest.encoder is not None
        readers = open_readers(artifact, manifest.encoder, settings)
        self.bundle = bundle
        self.encoder: EncoderSpec = manifest.encoder
        self.tokenizer = Tokenizer(read_checked(bundle, manifest.tokenizer))
        self._vocab_size = self.tokenizer.vocab_size
        self.engines: tuple[EmbeddingEngine[Sequence[int]], ...] = tuple(
            EmbeddingEngine(
                EncoderRunner(opened.session),
                token_budget=opened.token_budget,
                max_waiting=settings.max_waiting,
            )
            for opened in readers
        )
        """One, or one on each GPU that it is loaded on; `engine` is the first."""
        self.engine = self.engines[0]
        self.memory_bytes = len(readers) * bytes_below(artifact.directory)

    def encode(self, inputs: Sequence[str | Sequence[int]]) -> list[Sequence[int]]:
        """Token ids of each input. Raises RequestError for one that is empty or too long."""
        texts: list[Sequence[int]] = []
        for index, given in enumerate(inputs):
            ids = self.tokenizer.encode_text(given) if isinstance(given, str) else given
            self._check(ids, f"input[{index}]")
            texts.append(ids)
        if not texts:
            raise RequestError("there is nothing to embed", param="input")
        return texts

    def check_dimensions(self, dimensions: int) -> None:
        """Raise RequestError if vectors cannot have so many numbers; 0 is their own count."""
        spec = self.encoder
        fewest = spec.min_dimensions if isinstance(spec.min_dimensions, int) else spec.dimensions
        if dimensions and not fewest <= dimensions <= spec.dimensions:
            possible = f"{spec.dimensions} dimensions only"
            if fewest < spec.dimensions:
                possible = f"{fewest} to {spec.dimensions} dimensions"
            raise RequestError(
                f"this model makes vectors of {possible}",
                param="dimensions",
                hint="leave the parameter out",
            )

    def shortened(self, vectors: Vectors, dimensions: int) -> Vectors:
        """The first `dimensions` numbers of each, of unit length again if they were; 0: all."""
        if dimensions in (0, self.encoder.dimensions):
            return vectors
        short = vectors[:, :dimensions]
        if not self.encoder.normalize:
            return short
        lengths = np.linalg.norm(short, axis=1, keepdims=True)
        return np.asarray(short / np.maximum(lengths, np.float32(1e-12)), np.float32)

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _check(self, ids: Sequence[int], param: str) -> None:
        if not ids:
            raise RequestError("an input is empty", param=param)
        if len(ids) > self.encoder.max_length:
            raise RequestError(
                f"an input has {len(ids)} tokens; the model reads {self.encoder.max_length}",
                param=param,
                hint="split the text into shorter ones",
                code="context_length_exceeded",
            )
        if not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise RequestError(f"token ids must be below {self._vocab_size}", param=param)
