"""The manifest of a model bundle, `bundle.json`: types and canonical bytes.

Owns the meaning of every field. Refuses unknown fields and wrong types. The SHA-256 of the
manifest's bytes is the bundle's digest, the identity by which everything else names a bundle.
The bytes are JSON with sorted keys, no spaces, UTF-8 (the subset of RFC 8785 that integers,
strings and shortest-form floats need).
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal

import msgspec

from appliance.errors import LayoutError
from appliance.fsops import check_relative

FORMAT: Final = "appliance-bundle/1"
MANIFEST_NAME = "bundle.json"
SIGNATURE_NAME = "model.sig"
MAX_FILE_BYTES = 1_000_000_000
"""No file of a bundle is larger: FAT32-safe, and the unit of resume and of de-duplication."""
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

MAX_RANK = 512
"""Of an adapter: beyond that it is hardly smaller than what it is added to."""
_MOST_LAYERS = 4096
_MOST_WIDE = 1 << 24

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]|[a-z0-9]")


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class FileEntry(_Strict, frozen=True):
    """One file of the bundle; `path` is relative, portable, with forward slashes."""

    path: str
    size: int
    sha256: str


class AdapterTarget(_Strict, frozen=True):
    """A linear layer of every block that adapters may change; `inner` to `outer` numbers."""

    name: Literal["q", "k", "v", "o", "gate", "up", "down"]
    """The layer `NAME_proj` of the checkpoint."""
    inner: int
    outer: int


class Adapted(_Strict, frozen=True):
    """Graphs over the same weights as the plain ones, with room for adapters beside them."""

    path: str
    targets: tuple[AdapterTarget, ...]
    prefill: str | msgspec.UnsetType = msgspec.UNSET
    """As the plain graph's."""


class Graph(_Strict, frozen=True):
    """One ONNX graph. Inputs and outputs are described in docs/bundle-format.md."""

    variant: Literal["cpu", "native", "cuda", "trt"]
    """Whom it is written for: ONNX Runtime's provider for the CPU, the appliance's own operators
    on a CPU that has what they need, ONNX Runtime's provider for CUDA, or TensorRT.

    There may be several for a GPU, each in another precision, for GPUs with less memory."""
    path: str
    precision: Literal["fp32", "int8", "int4", "w8a8", "w4a8", "fp16", "fp8"]
    prefill: str | msgspec.UnsetType = msgspec.UNSET
    """A second graph, for prompts, over the same weight files; left out where one serves both."""
    weights: str | msgspec.UnsetType = msgspec.UNSET
    """The folder of the weight files, which graphs share; left out where it is the graph's own."""
    adapted: Adapted | msgspec.UnsetType = msgspec.UNSET
    """The same with adapters; left out where the bundle was built to serve none."""

    @property
    def others(self) -> tuple[str, ...]:
        """Paths of the graphs beside the first one, over the same weights."""
        paths = [self.prefill]
        if isinstance(self.adapted, Adapted):
            paths += [self.adapted.path, self.adapted.prefill]
        return tuple(path for path in paths if isinstance(path, str))

    @property
    def weights_folder(self) -> str:
        """The folder inside the bundle that weight files are named relative to."""
        return self.weights if isinstance(self.weights, str) else self.path.rpartition("/")[0]


class DecoderSpec(_Strict, frozen=True):
    """Shapes that the key-value cache is built from. Counts, not bytes."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    cache: Literal["int8"] | msgspec.UnsetType = msgspec.UNSET
    """How the cache stores a number; left out where it is float32."""


class DraftSpec(_Strict, frozen=True):
    """A small model of the same tokenizer, which guesses what the bundle's model says next.

    Whatever it guesses is verified, so nothing of it is in an answer. Its files are in `draft/`.
    """

    family: str
    license: str
    checkpoint_sha256: str
    """As of the bundle's model."""
    graphs: tuple[Graph, ...]
    """For the processor alone: `cpu`, and `native` where it is dense."""
    decoder: DecoderSpec
    """Its table of tokens may have another length than the model's; what both have is the same."""


class HeadSpec(_Strict, frozen=True):
    """A layer of the model's own that predicts further tokens from the states behind its last one.

    Whatever it predicts is verified. The graph of native operators then gives out these states.
    """

    graph: str
    """Path of its graph of native operators, over the model's own weights."""
    hidden: int
    """Numbers of a state."""
    decoder: DecoderSpec
    """Of the cache of its one layer; the rest is as the model's."""


class VisionSpec(_Strict, frozen=True):
    """How images become features that the decoder reads; lengths in pixels, others counts."""

    graph: str
    """Path of the tower's graph for the CPU; its weight files lie beside it."""
    image_token: int
    """The token that stands for an image where the chat template writes it."""
    patch: int
    temporal: int
    """How often a patch is repeated: the tower was made for frames."""
    merge: int
    """Patches a side that become one token."""
    min_pixels: int
    max_pixels: int
    """An image is scaled to lie within these."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of red, green and blue, from 0 to 1."""
    side: int | msgspec.UnsetType = msgspec.UNSET
    """Of the table of learned positions; left out if there is none."""
    window: int | msgspec.UnsetType = msgspec.UNSET
    """Tokens a side that attend to each other; left out if all do to all."""
    cuda: str | msgspec.UnsetType = msgspec.UNSET
    """Path of the tower's graph for the CUDA provider, in the same folder, if there is one."""

    @property
    def graphs(self) -> tuple[str, ...]:
        """Paths of all of the tower's graphs."""
        return (self.graph, self.cuda) if isinstance(self.cuda, str) else (self.graph,)


class EncoderSpec(_Strict, frozen=True):
    """A text becomes one vector."""

    dimensions: int
    max_length: int
    pooling: Literal["mean", "cls", "last"]
    normalize: bool
    min_dimensions: int | msgspec.UnsetType = msgspec.UNSET
    """The first so many numbers of a vector are a vector too; left out where all are needed.

    Kusupati et al., Matryoshka Representation Learning (2022).
    """
    vocab_size: int | msgspec.UnsetType = msgspec.UNSET
    """Left out, as the next one, by releases that built no graph for a GPU."""
    token_bytes: int | msgspec.UnsetType = msgspec.UNSET
    """Of a GPU's memory, while a token is computed; beside the weights."""


class PairPrompt(_Strict, frozen=True):
    """What stands around a query and a document before a generative reranker.

    START INSTRUCT instruction QUERY query DOCUMENT document END: control tokens count in `start`
    and `end` only, and everything between them is one text.
    """

    start: str
    instruct: str
    query: str
    document: str
    end: str
    instruction: str
    """The one that holds where a request has none."""


class RerankSpec(_Strict, frozen=True):
    """A query and a document become one score."""

    max_length: int
    """Tokens of a pair, with all that stands around it."""
    prompt: PairPrompt | msgspec.UnsetType = msgspec.UNSET
    """Left out where the tokenizer puts two texts together by itself."""
    sigmoid: bool | msgspec.UnsetType = msgspec.UNSET
    """Whether a score is the sigmoid of what the model says, so between 0 and 1; left out, as the
    next two, by releases that built no graph for a GPU."""
    vocab_size: int | msgspec.UnsetType = msgspec.UNSET
    token_bytes: int | msgspec.UnsetType = msgspec.UNSET
    """As an encoder's."""


Reading = EncoderSpec | RerankSpec
"""Of models that read whole texts and generate nothing."""
Spec = DecoderSpec | Reading


class AdapterBase(_Strict, frozen=True):
    """The model that an adapter was trained on: the only one that it may be computed with."""

    name: str
    """Of the bundle, in whatever grade and version."""
    family: str
    checkpoint_sha256: str
    """As the base's manifest has it, so all of its versions are made from the same weights."""


class AdapterSpec(_Strict, frozen=True):
    """Low-rank additions to linear layers: y + up(down(x)) in each of `layers` blocks.

    Each block has a file, `adapter/NNNNN.bin`: of each target in turn, down [rank, inner] and up
    [rank, outer], float32, little-endian. The scale is in `up`.
    """

    base: AdapterBase
    rank: int
    layers: int
    targets: tuple[AdapterTarget, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Path of each block's file, the first block's first."""
        return tuple(f"adapter/{layer:05}.bin" for layer in range(self.layers))

    @property
    def file_size(self) -> int:
        """Bytes of each file."""
        return 4 * self.rank * sum(target.inner + target.outer for target in self.targets)


class Generation(_Strict, frozen=True):
    """Defaults where a request is silent. Temperature 0 is greedy; top_k 0 is off."""

    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    thinking: bool = False


class FillIn(_Strict, frozen=True):
    """Control tokens of fill-in-the-middle: PREFIX text SUFFIX text MIDDLE, then the model writes.

    Bavarian et al., Efficient Training of Language Models to Fill in the Middle (2022), PSM.
    """

    prefix: str
    suffix: str
    middle: str


ToolFormat = Literal[
    "",
    "hermes",
    "llama",
    "deepseek",
    "deepseek_v31",
    "minimax",
    "qwen_coder",
    "mistral",
    "mistral_v11",
    "mistral_v13",
    "harmony",
]
"""How a model writes its calls; empty if it calls no tools."""


class Prompting(_Strict, frozen=True):
    """How messages become a prompt and how the output is read back."""

    template: str
    """Path of the Jinja chat template inside the bundle."""
    bos_token: str = ""
    eos_token: str = ""
    reasoning_start: str = ""
    """Tag that opens reasoning text; empty if the model does not think in tags."""
    reasoning_end: str = ""
    tool_format: ToolFormat = ""
    fill_in: FillIn | msgspec.UnsetType = msgspec.UNSET
    """Left out if the model's vocabulary has no tokens for it."""
    reasoning: Literal["always", "levels"] | msgspec.UnsetType = msgspec.UNSET
    """Left out if reasoning can be switched off, or there is none; `levels`: its template reads
    `reasoning_effort`."""


class Parity(_Strict, frozen=True):
    """The first layers beside the publisher's reference implementation, when the bundle was built.

    Errors are relative, |got - wanted| / |wanted|, in parts per billion (so that the manifest has
    one spelling), rounded upwards; no bundle is built beyond its bounds. Either `not_run` says why
    nothing was compared, or the rest says what was.
    """

    not_run: str | msgspec.UnsetType = msgspec.UNSET
    reference: str | msgspec.UnsetType = msgspec.UNSET
    """Name and version of the reference, and of what it runs on."""
    layers: int | msgspec.UnsetType = msgspec.UNSET
    tokens: int | msgspec.UnsetType = msgspec.UNSET
    error: int | msgspec.UnsetType = msgspec.UNSET
    """In 32-bit floats; left out where the family is not built in them."""
    bound: int | msgspec.UnsetType = msgspec.UNSET
    grade_error: int | msgspec.UnsetType = msgspec.UNSET
    """Of the bundle's own weights and graph for the processor."""
    grade_bound: int | msgspec.UnsetType = msgspec.UNSET
    unpacked_by: Literal["reference", "builder"] | msgspec.UnsetType = msgspec.UNSET
    """Of a checkpoint that is quantized already: who made floats of it for the reference."""

    def __str__(self) -> str:
        if isinstance(self.not_run, str):
            return f"not compared: {self.not_run}"
        exact = f"{_relative(self.error)} in fp32, " if isinstance(self.error, int) else ""
        by = f", weights unpacked by the {self.unpacked_by}" if self.unpacked_by else ""
        return (
            f"{self.reference}, first {self.layers} layers{by}: relative error {exact}"
            f"{_relative(self.grade_error)} as built (allowed {_relative(self.grade_bound)})"
        )


def _relative(parts: int | msgspec.UnsetType) -> str:
    """Parts per billion as a plain number."""
    return f"{parts / 1e9:.2g}" if isinstance(parts, int) else "?"


class Manifest(_Strict, frozen=True):
    """Everything the node needs to know of a bundle, and nothing it must guess."""

    format: Literal["appliance-bundle/1"]
    name: str
    version: str
    kind: Literal["chat", "embedding", "rerank", "adapter"]
    family: str
    """`model_type` of the checkpoint: qwen3, bert, ..."""
    created: int
    """Unix seconds; SOURCE_DATE_EPOCH if the packager set it."""
    license: str
    checkpoint_sha256: str
    """Digest over the checkpoint's files that were read, in path order."""
    files: tuple[FileEntry, ...]
    """Every file but `bundle.json` and `model.sig`, sorted by path."""
    graphs: tuple[Graph, ...]
    tokenizer: str
    """Path of tokenizer.json; empty for an adapter, which has its base's."""
    decoder: DecoderSpec | None = None
    encoder: EncoderSpec | None = None
    generation: Generation | None = None
    prompting: Prompting | None = None
    vision: VisionSpec | msgspec.UnsetType = msgspec.UNSET
    """Left out if the model reads text only."""
    draft: DraftSpec | msgspec.UnsetType = msgspec.UNSET
    """Left out if no small model guesses for it."""
    head: HeadSpec | msgspec.UnsetType = msgspec.UNSET
    """Left out if it has none, or none that this processor's operators compute."""
    reranker: RerankSpec | msgspec.UnsetType = msgspec.UNSET
    parity: Parity | msgspec.UnsetType = msgspec.UNSET
    """Left out by releases that did not compare."""
    adapter: AdapterSpec | msgspec.UnsetType = msgspec.UNSET
    """Only of an adapter, which has no graphs and nothing else of a model."""

    @property
    def as_adapter(self) -> AdapterSpec | None:
        """What the bundle adds to another; None if it is a model."""
        return self.adapter if isinstance(self.adapter, AdapterSpec) else None

    @property
    def of_draft(self) -> Manifest | None:
        """What a manifest of the draft model alone would say of its graphs; None if there is none.

        For those who compute graphs. It is no bundle's and has no digest.
        """
        draft = self.draft
        if not isinstance(draft, DraftSpec):
            return None
        unset = msgspec.UNSET
        return msgspec.structs.replace(
            self, graphs=draft.graphs, decoder=draft.decoder, draft=unset, head=unset, parity=unset
        )

    @property
    def has_head(self) -> bool:
        """Whether a head of its own predicts further tokens."""
        return isinstance(self.head, HeadSpec)

    @property
    def spec(self) -> Spec:
        """What its graphs take and give. Only of models, not of adapters."""
        spec = self.reranker if isinstance(self.reranker, RerankSpec) else None
        spec_of_kind = {"chat": self.decoder, "embedding": self.encoder, "rerank": spec}.get(
            self.kind
        )
        assert spec_of_kind is not None, "the manifest was checked, and is no adapter's"
        return spec_of_kind

    @property
    def graph(self) -> Graph:
        """The graph for the CPU provider, which every model has."""
        return self.graphs[0]

    def variants(self, name: str) -> tuple[Graph, ...]:
        """The graphs written for this provider, the most exact first."""
        return tuple(graph for graph in self.graphs if graph.variant == name)

    def variant(self, name: str) -> Graph | None:
        """The most exact graph written for this provider, if the bundle has one."""
        return next(iter(self.variants(name)), None)


def is_name(text: str) -> bool:
    """Whether `text` can be a bundle's name or version."""
    return _NAME.fullmatch(text) is not None


def encode(manifest: Manifest) -> bytes:
    """Canonical bytes of `manifest`."""
    return msgspec.json.encode(manifest, order="sorted")


def decode(data: bytes) -> Manifest:
    """Parse and check the bytes of a `bundle.json`. Raises LayoutError; never trusts a path."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise _bad(f"it is {len(data)} bytes long, more than {MAX_MANIFEST_BYTES}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _bad(str(error)) from None
    if encode(manifest) != data:
        raise _bad("it is not in canonical form")
    _check(manifest)
    return manifest


def digest(data: bytes) -> str:
    """The bundle's identity: SHA-256 of its manifest's bytes, lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def _check(manifest: Manifest) -> None:
    for word, value in (("name", manifest.name), ("version", manifest.version)):
        if not is_name(value):
            raise _bad(f"its {word} {value!r} is not 1-64 of a-z 0-9 . _ -")
    paths = [entry.path for entry in manifest.files]
    if paths != sorted(set(paths)) or len({p.lower() for p in paths}) != len(paths):
        raise _bad("its files are not sorted, or two differ only in case")
    for entry in manifest.files:
        check_relative(entry.path)
        if entry.path in {MANIFEST_NAME, SIGNATURE_NAME}:
            raise _bad(f"it lists {entry.path}")
        if not 0 < entry.size <= MAX_FILE_BYTES:
            raise _bad(f"{entry.path} has the size {entry.size}")
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise _bad(f"{entry.path} has no SHA-256")
    adapter = manifest.as_adapter
    if (manifest.kind == "adapter") != (adapter is not None):
        raise _bad("what it adds to a model belongs to an adapter, and to nothing else")
    if adapter is not None:
        _check_adapter(manifest, adapter, paths)
        return
    kinds = {(graph.variant, graph.precision) for graph in manifest.graphs}
    if len(manifest.graphs) != len(kinds) or not manifest.graphs:
        raise _bad("it needs one graph for each variant and precision")
    if len(manifest.variants("cpu")) != 1:
        raise _bad("it needs one graph for the CPU")
    if manifest.graphs[0].variant != "cpu":
        raise _bad("its first graph is not the one for the CPU")
    named = [manifest.tokenizer, *(g.path for g in manifest.graphs)]
    named += [path for graph in manifest.graphs for path in graph.others]
    if manifest.prompting is not None:
        named.append(manifest.prompting.template)
    if isinstance(manifest.vision, VisionSpec):
        named += manifest.vision.graphs
    if isinstance(manifest.draft, DraftSpec):
        named += [path for g in manifest.draft.graphs for path in (g.path, *g.others)]
    if isinstance(manifest.head, HeadSpec):
        named.append(manifest.head.graph)
    for path in named:
        if path not in paths:
            raise _bad(f"it names {path!r}, which is not among its files")
    if manifest.kind == "chat" and not (
        manifest.decoder and manifest.generation and manifest.prompting
    ):
        raise _bad("a chat bundle needs decoder, generation and prompting")
    if manifest.kind == "embedding" and not manifest.encoder:
        raise _bad("an embedding bundle needs encoder")
    if (manifest.kind == "rerank") != isinstance(manifest.reranker, RerankSpec):
        raise _bad("a rerank bundle needs reranker, and no other has one")
    _check_reading(manifest)
    joined = manifest.decoder is not None and manifest.decoder.cache == "int8"
    if len(manifest.variants("native")) > joined:
        raise _bad("a graph of native operators belongs to an 8-bit cache, and there is one")
    for graph in manifest.graphs:
        if isinstance(graph.prefill, str) != (joined and graph.variant == "cpu"):
            raise _bad("a graph for prompts belongs to an 8-bit cache on the CPU, and to no other")
        if isinstance(graph.adapted, Adapted):
            _check_adapted(graph, graph.adapted, joined=joined)
        folder = f"{graph.weights_folder}/"
        if not any(path.startswith(folder) for path in paths):
            raise _bad(f"it names the folder {graph.weights_folder!r}, which has no files")
    _check_numbers(manifest)
    if isinstance(manifest.draft, DraftSpec):
        _check_draft(manifest, manifest.draft, paths)
    if isinstance(manifest.head, HeadSpec):
        _check_head(manifest, manifest.head)
    if isinstance(manifest.parity, Parity):
        _check_parity(manifest.parity)


def _check_reading(manifest: Manifest) -> None:
    """What reads whole texts has graphs for CUDA, which need to be reckoned with, and no others."""
    if manifest.kind == "chat":
        return
    spec = manifest.spec
    assert not isinstance(spec, DecoderSpec)
    needed: list[object] = [spec.vocab_size, spec.token_bytes]
    if isinstance(spec, RerankSpec):
        needed.append(spec.sigmoid)
    if manifest.variants("cuda") and msgspec.UNSET in needed:
        raise _bad("a graph for CUDA needs vocab_size, token_bytes and of a reranker sigmoid")
    if manifest.variants("native") or manifest.variants("trt"):
        raise _bad("embedders and rerankers have graphs for the CPU and for CUDA alone")


def _check_head(manifest: Manifest, head: HeadSpec) -> None:
    """It reads states of the graph of native operators, and guesses alone."""
    decoder = manifest.decoder
    if decoder is None or manifest.variant("native") is None or head.graph == manifest.graph.path:
        raise _bad("a head belongs to a chat model with a graph of native operators")
    if isinstance(manifest.draft, DraftSpec):
        raise _bad("it has both a draft model and a head")
    if head.decoder != msgspec.structs.replace(decoder, layers=1):
        raise _bad("its head has another cache than one layer of the model's")


def _check_draft(manifest: Manifest, draft: DraftSpec, paths: list[str]) -> None:
    """A model that cannot verify several tokens at once has no use for guesses."""
    decoder, sees = manifest.decoder, isinstance(manifest.vision, VisionSpec)
    if decoder is None or decoder.cache != "int8" or draft.decoder.cache != "int8" or sees:
        raise _bad("a draft model belongs to a chat model for text, both with an 8-bit cache")
    if [graph.variant for graph in draft.graphs] not in (["cpu"], ["cpu", "native"]):
        raise _bad("its draft model needs a graph for the CPU, and may have a native one")
    for graph in draft.graphs:
        two = graph.variant == "cpu"
        if isinstance(graph.adapted, Adapted) or isinstance(graph.prefill, str) != two:
            raise _bad("its draft model has other graphs than a model of its kind")
        folder = f"{graph.weights_folder}/"
        if not folder.startswith("draft/") or not any(path.startswith(folder) for path in paths):
            raise _bad(f"its draft model's weights are said to be in {graph.weights_folder!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", draft.checkpoint_sha256):
        raise _bad("its draft model has no SHA-256")


def _check_parity(parity: Parity) -> None:
    fields = msgspec.structs.asdict(parity)
    given = {name for name, value in fields.items() if value is not msgspec.UNSET}
    compared = {"reference", "layers", "tokens", "grade_error", "grade_bound"}
    if "not_run" not in given:
        given.discard("unpacked_by")
    if given not in ({"not_run"}, compared, compared | {"error", "bound"}):
        raise _bad("its parity says neither what was compared nor why nothing was")
    for error, bound in (("error", "bound"), ("grade_error", "grade_bound")):
        if error in given and not 0 <= fields[error] <= fields[bound]:
            raise _bad(f"its parity.{error} is beyond the bound")


def _check_adapted(graph: Graph, adapted: Adapted, *, joined: bool) -> None:
    needs_two = joined and graph.variant == "cpu"
    if graph.variant not in ("cpu", "native") or isinstance(adapted.prefill, str) != needs_two:
        raise _bad("graphs with adapters are for the CPU, and as many as there are without")
    _check_targets(adapted.targets)


def _check_targets(targets: tuple[AdapterTarget, ...]) -> None:
    names = [target.name for target in targets]
    if not names or len(names) != len(set(names)):
        raise _bad("adapters need a target, and each one once")
    for target in targets:
        if not (0 < target.inner < _MOST_WIDE and 0 < target.outer < _MOST_WIDE):
            raise _bad(f"the target {target.name} has the widths {target.inner}, {target.outer}")


def _check_adapter(manifest: Manifest, adapter: AdapterSpec, paths: list[str]) -> None:
    others = (manifest.decoder, manifest.encoder, manifest.generation, manifest.prompting)
    given = any(part is not None for part in others) or isinstance(manifest.reranker, RerankSpec)
    if manifest.graphs or manifest.tokenizer or given:
        raise _bad("an adapter has neither graphs nor anything else of a model")
    if manifest.family != adapter.base.family or not is_name(adapter.base.name):
        raise _bad(f"its base is {adapter.base.name!r} of the family {adapter.base.family!r}")
    if not 0 < adapter.rank <= MAX_RANK or not 0 < adapter.layers <= _MOST_LAYERS:
        raise _bad(f"its rank is {adapter.rank}, in {adapter.layers} layers")
    _check_targets(adapter.targets)
    if [path for path in paths if path.startswith("adapter/")] != list(adapter.files):
        raise _bad("it needs one file of weights for each layer")
    for entry in manifest.files:
        if entry.path.startswith("adapter/") and entry.size != adapter.file_size:
            raise _bad(
                f"{entry.path} has {entry.size} bytes; rank and targets mean {adapter.file_size}"
            )


def _check_numbers(manifest: Manifest) -> None:
    positive: dict[str, int] = {}
    if manifest.decoder is not None:
        positive |= _decoder_numbers("decoder", manifest.decoder)
    if isinstance(manifest.draft, DraftSpec):
        positive |= _decoder_numbers("draft.decoder", manifest.draft.decoder)
    if isinstance(manifest.head, HeadSpec):
        positive["head.hidden"] = manifest.head.hidden
    if isinstance(manifest.vision, VisionSpec):
        positive |= _vision_numbers(manifest)
    if manifest.encoder is not None:
        positive |= {
            "encoder.dimensions": manifest.encoder.dimensions,
            "encoder.max_length": manifest.encoder.max_length,
        } | _reading_numbers("encoder", manifest.encoder)
        if isinstance(fewest := manifest.encoder.min_dimensions, int):
            positive["encoder.min_dimensions"] = fewest
            if fewest > manifest.encoder.dimensions:
                raise _bad(f"encoder.min_dimensions is {fewest}, more than there are")
    if isinstance(manifest.reranker, RerankSpec):
        positive["reranker.max_length"] = manifest.reranker.max_length
        positive |= _reading_numbers("reranker", manifest.reranker)
    for name, value in positive.items():
        if not 0 < value < 1 << 31:
            raise _bad(f"{name} is {value}")


def _decoder_numbers(at: str, decoder: DecoderSpec) -> dict[str, int]:
    counts = msgspec.structs.asdict(decoder)
    del counts["cache"]
    return {f"{at}.{name}": count for name, count in counts.items()}


def _reading_numbers(at: str, spec: Reading) -> dict[str, int]:
    counts = {"vocab_size": spec.vocab_size, "token_bytes": spec.token_bytes}
    return {f"{at}.{name}": n for name, n in counts.items() if isinstance(n, int)}


def _vision_numbers(manifest: Manifest) -> dict[str, int]:
    """What must be positive. Raises LayoutError for what no image could be scaled to."""
    vision, decoder = manifest.vision, manifest.decoder
    assert isinstance(vision, VisionSpec)
    if decoder is None or not 0 <= vision.image_token < decoder.vocab_size:
        raise _bad("vision belongs to a chat model that has its token")
    names = ("patch", "temporal", "merge", "min_pixels", "max_pixels", "side", "window")
    counts = {name: getattr(vision, name) for name in names}
    folder = f"{vision.graph.rpartition('/')[0]}/"
    beside = [e.path for e in manifest.files if e.path.startswith(folder)]
    if len(beside) <= len(vision.graphs) or folder == f"{manifest.graph.weights_folder}/":
        raise _bad("the graph of vision has no weight files of its own")
    if len(set(vision.graphs)) < len(vision.graphs) or any(
        path.rpartition("/")[0] != folder[:-1] for path in vision.graphs
    ):
        raise _bad("the graphs of vision are not two of one folder")
    if vision.max_pixels < max(vision.min_pixels, (vision.patch * vision.merge) ** 2):
        raise _bad("vision.max_pixels is less than the smallest image")
    if not all(0 < value < 1e3 for value in vision.std) or not all(
        abs(value) < 1e3 for value in vision.mean
    ):
        raise _bad("vision.mean or vision.std is out of range")
    return {f"vision.{name}": n for name, n in counts.items() if isinstance(n, int)}


def _bad(reason: str) -> LayoutError:
    return LayoutError(
        f"{MANIFEST_NAME} is not a valid manifest: {reason}",
        path=MANIFEST_NAME,
        hint="get a fresh copy of the bundle, or build it again",
    )
