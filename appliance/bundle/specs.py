"""What a model is, as its manifest says it: the parts of `bundle.json`.

Owns the meaning of every field in them. Refuses unknown fields and wrong types; whether the parts
go together is asked in consistency.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class FileEntry(Strict, frozen=True):
    """One file of the bundle; `path` is relative, portable, with forward slashes."""

    path: str
    size: int
    sha256: str


class AdapterTarget(Strict, frozen=True):
    """A linear layer of every block that adapters may change; `inner` to `outer` numbers."""

    name: Literal["q", "k", "v", "o", "gate", "up", "down"]
    """The layer `NAME_proj` of the checkpoint."""
    inner: int
    outer: int


class Adapted(Strict, frozen=True):
    """Graphs over the same weights as the plain ones, with room for adapters beside them."""

    path: str
    """For CUDA the graph's own: it has the room itself."""
    targets: tuple[AdapterTarget, ...]
    prefill: str | msgspec.UnsetType = msgspec.UNSET
    """As the plain graph's."""


class Graph(Strict, frozen=True):
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
        return tuple(path for path in paths if isinstance(path, str) and path != self.path)

    @property
    def weights_folder(self) -> str:
        """The folder inside the bundle that weight files are named relative to."""
        return self.weights if isinstance(self.weights, str) else self.path.rpartition("/")[0]


class TailSpec(Strict, frozen=True):
    """The last `tail` inputs [tail, channels] of a further convolution that some layers have."""

    layers: int
    channels: int
    tail: int


class RecurrentSpec(Strict, frozen=True):
    """Layers that keep a running state of what they have read, in place of keys and values.

    Each has, for a sequence, a state [heads, key_dim, value_dim] and the last `tail` inputs of a
    convolution [tail, channels], both float32 (Yang et al., Gated Delta Networks, 2024). Without
    heads the convolution is all that remembers.
    """

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    channels: int
    tail: int
    further: TailSpec | msgspec.UnsetType = msgspec.UNSET
    """Of those that have a second convolution; left out where none has."""

    @property
    def nbytes(self) -> int:
        """Of one sequence, over all layers, in 32 bits."""
        numbers = self.heads * self.key_dim * self.value_dim + self.tail * self.channels
        own = self.further
        further = own.layers * own.tail * own.channels if isinstance(own, TailSpec) else 0
        return 4 * (self.layers * numbers + further)


class LayerHeads(Strict, frozen=True):
    """The key heads of one layer."""

    kv_heads: int
    head_dim: int

    @property
    def numbers(self) -> int:
        """Of a token's keys; of its values as many."""
        return self.kv_heads * self.head_dim


class DecoderSpec(Strict, frozen=True):
    """Shapes that the key-value cache is built from. Counts, not bytes."""

    layers: int
    """Those that keep keys and values."""
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    cache: Literal["int8"] | msgspec.UnsetType = msgspec.UNSET
    """How the cache stores a number; left out where it is float32."""
    recurrent: RecurrentSpec | msgspec.UnsetType = msgspec.UNSET
    """The further layers, which keep a running state; left out where there are none."""
    heads: tuple[LayerHeads, ...] | msgspec.UnsetType = msgspec.UNSET
    """Of each layer that keeps keys and values, where these differ from `kv_heads` and `head_dim`,
    which then are the most that one has; left out where all are alike."""
    query_heads: int | msgspec.UnsetType = msgspec.UNSET
    """Those that read them, in each layer; said where `heads` is and a graph for CUDA."""

    @property
    def layer_heads(self) -> tuple[LayerHeads, ...]:
        """Of each layer that keeps keys and values."""
        if isinstance(self.heads, tuple):
            return self.heads
        return (LayerHeads(kv_heads=self.kv_heads, head_dim=self.head_dim),) * self.layers


class DraftSpec(Strict, frozen=True):
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


class HeadSpec(Strict, frozen=True):
    """A layer of the model's own that predicts further tokens from the states behind its last one.

    Whatever it predicts is verified. The graph of native operators then gives out these states.
    """

    graph: str
    """Path of its graph of native operators, over the model's own weights."""
    hidden: int
    """Numbers of a state."""
    decoder: DecoderSpec
    """Of the cache of its one layer; the rest is as the model's."""


class VisionSpec(Strict, frozen=True):
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
    table: Literal["centres"] | msgspec.UnsetType = msgspec.UNSET
    """How the table of learned positions lies on an image: the centres of its entries and of the
    patches are spread alike, and nothing is beyond its edge. Left out if its corners lie on the
    image's."""
    sizing: Literal["tokens"] | msgspec.UnsetType = msgspec.UNSET
    """How an image is scaled: to so many tokens a side that their ratio is nearest to its own.
    Left out if each side is rounded."""
    resample: Literal["lanczos"] | msgspec.UnsetType = msgspec.UNSET
    """By which filter; left out where it is bicubic."""
    around: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    """Tokens in front of an image's and behind them; left out where the template writes them."""
    cuda: str | msgspec.UnsetType = msgspec.UNSET
    """Path of the tower's graph for the CUDA provider, in the same folder, if there is one."""

    @property
    def graphs(self) -> tuple[str, ...]:
        """Paths of all of the tower's graphs."""
        return (self.graph, self.cuda) if isinstance(self.cuda, str) else (self.graph,)


class EncoderSpec(Strict, frozen=True):
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


class PairPrompt(Strict, frozen=True):
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


class RerankSpec(Strict, frozen=True):
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


class AdapterBase(Strict, frozen=True):
    """The model that an adapter was trained on: the only one that it may be computed with."""

    name: str
    """Of the bundle, in whatever grade and version."""
    family: str
    checkpoint_sha256: str
    """As the base's manifest has it, so all of its versions are made from the same weights."""


class AdapterSpec(Strict, frozen=True):
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


class Generation(Strict, frozen=True):
    """Defaults where a request is silent. Temperature 0 is greedy; top_k 0 is off."""

    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    thinking: bool = False


class FillIn(Strict, frozen=True):
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
    "llama4",
    "deepseek",
    "deepseek_v31",
    "dsml",
    "dsml_v4",
    "minimax",
    "minimax_m3",
    "qwen_coder",
    "glm",
    "glm_v47",
    "hy3",
    "mistral",
    "mistral_v11",
    "mistral_v13",
    "harmony",
    "apertus",
    "cohere",
    "seed_oss",
    "gemma4",
    "kimi_k2",
    "lfm2",
    "pythonic",
    "granite",
    "glm4",
    "muse",
]
"""How a model writes its calls; empty if it calls no tools."""


Effort = Literal["none", "no_think", "low", "medium", "high"]
Efforts = Annotated[tuple[Effort, ...], msgspec.Meta(min_length=2)]


class Prompting(Strict, frozen=True):
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
    `reasoning_effort`, or the same by another name."""
    efforts: Efforts | msgspec.UnsetType = msgspec.UNSET
    """Words of `reasoning_effort` by which alone its template is told whether to reason: the first
    switches it off, the others ask for it, from little to much. Left out of all others."""


class Parity(Strict, frozen=True):
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
