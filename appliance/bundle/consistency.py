"""Whether a manifest's parts go together: names, sizes, graphs and numbers.

Owns that judgement alone. Refuses with the part that is wrong. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from appliance.bundle.files import MANIFEST_NAME, MAX_FILE_BYTES, SIGNATURE_NAME, is_name
from appliance.bundle.specs import (
    Adapted,
    AdapterSpec,
    AdapterTarget,
    DecoderSpec,
    DraftSpec,
    Graph,
    HeadSpec,
    LayerHeads,
    Parity,
    Reading,
    RecurrentSpec,
    RerankSpec,
    TailSpec,
    VisionSpec,
)
from appliance.errors import LayoutError
from appliance.fsops import check_relative

if TYPE_CHECKING:
    from appliance.bundle.manifest import Manifest

MAX_RANK = 512
"""Of an adapter: beyond that it is hardly smaller than what it is added to."""
_MOST_LAYERS = 4096
_MOST_WIDE = 1 << 24


def check(manifest: Manifest) -> None:
    """Raise LayoutError for what no bundle may say of itself."""
    paths = _check_files(manifest)
    adapter = manifest.as_adapter
    if (manifest.kind == "adapter") != (adapter is not None):
        raise bad("what it adds to a model belongs to an adapter, and to nothing else")
    if adapter is not None:
        _check_adapter(manifest, adapter, paths)
        return
    _check_variants(manifest)
    for path in _named(manifest):
        if path not in paths:
            raise bad(f"it names {path!r}, which is not among its files")
    _check_kind(manifest)
    _check_reading(manifest)
    _check_graphs(manifest, paths)
    _check_numbers(manifest)
    if isinstance(manifest.draft, DraftSpec):
        _check_draft(manifest, manifest.draft, paths)
    if isinstance(manifest.head, HeadSpec):
        _check_head(manifest, manifest.head)
    if isinstance(manifest.parity, Parity):
        _check_parity(manifest.parity)


def _check_files(manifest: Manifest) -> list[str]:
    """Its own names and its files' too; their paths."""
    for word, value in (("name", manifest.name), ("version", manifest.version)):
        if not is_name(value):
            raise bad(f"its {word} {value!r} is not 1-64 of a-z 0-9 . _ -")
    paths = [entry.path for entry in manifest.files]
    if paths != sorted(set(paths)) or len({p.lower() for p in paths}) != len(paths):
        raise bad("its files are not sorted, or two differ only in case")
    for entry in manifest.files:
        check_relative(entry.path)
        if entry.path in {MANIFEST_NAME, SIGNATURE_NAME}:
            raise bad(f"it lists {entry.path}")
        if not 0 < entry.size <= MAX_FILE_BYTES:
            raise bad(f"{entry.path} has the size {entry.size}")
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise bad(f"{entry.path} has no SHA-256")
    return paths


def _check_variants(manifest: Manifest) -> None:
    kinds = {(graph.variant, graph.precision) for graph in manifest.graphs}
    if len(manifest.graphs) != len(kinds) or not manifest.graphs:
        raise bad("it needs one graph for each variant and precision")
    if len(manifest.variants("cpu")) != 1:
        raise bad("it needs one graph for the CPU")
    if manifest.graphs[0].variant != "cpu":
        raise bad("its first graph is not the one for the CPU")


def _named(manifest: Manifest) -> list[str]:
    """Every file that some part of it names."""
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
    return named


def _check_kind(manifest: Manifest) -> None:
    if manifest.kind == "chat" and not (
        manifest.decoder and manifest.generation and manifest.prompting
    ):
        raise bad("a chat bundle needs decoder, generation and prompting")
    if manifest.kind == "embedding" and not manifest.encoder:
        raise bad("an embedding bundle needs encoder")
    if (manifest.kind == "rerank") != isinstance(manifest.reranker, RerankSpec):
        raise bad("a rerank bundle needs reranker, and no other has one")


def _check_graphs(manifest: Manifest, paths: list[str]) -> None:
    joined = manifest.decoder is not None and manifest.decoder.cache == "int8"
    if len(manifest.variants("native")) > joined:
        raise bad("a graph of native operators belongs to an 8-bit cache, and there is one")
    if manifest.decoder is not None and manifest.decoder.recurrent:
        _check_recurrent(manifest)
    if manifest.decoder is not None and manifest.decoder.heads:
        _check_heads(manifest)
    for graph in manifest.graphs:
        if isinstance(graph.prefill, str) != (joined and graph.variant == "cpu"):
            raise bad("a graph for prompts belongs to an 8-bit cache on the CPU, and to no other")
        if isinstance(graph.adapted, Adapted):
            _check_adapted(graph, graph.adapted, joined=joined)
        folder = f"{graph.weights_folder}/"
        if not any(path.startswith(folder) for path in paths):
            raise bad(f"it names the folder {graph.weights_folder!r}, which has no files")


def _check_recurrent(manifest: Manifest) -> None:
    """Nothing that takes it for granted that what was read can be cut off again."""
    variants = {graph.variant for graph in manifest.graphs}
    if not variants <= {"cpu", "cuda"} or any(graph.adapted for graph in manifest.graphs):
        raise bad("a model with a running state has graphs for the CPU and CUDA, and no adapters")
    if manifest.draft or manifest.head:
        raise bad("a model with a running state has nothing that guesses for it")
    decoder = manifest.decoder
    assert decoder is not None
    assert isinstance(decoder.recurrent, RecurrentSpec)
    if decoder.recurrent.further and "cuda" in variants:
        raise bad("a model with a further convolution has graphs for the CPU alone")


def _check_heads(manifest: Manifest) -> None:
    """Nothing that takes the slots of all layers to be alike."""
    variants = {graph.variant for graph in manifest.graphs}
    if not variants <= {"cpu", "cuda"} or any(graph.adapted for graph in manifest.graphs):
        raise bad("a model whose layers differ in heads has graphs for the CPU and CUDA alone")
    assert manifest.decoder is not None
    if "cuda" in variants and manifest.decoder.query_heads is msgspec.UNSET:
        raise bad("a graph for CUDA over heads that differ needs decoder.query_heads")
    if manifest.draft or manifest.head or manifest.vision:
        raise bad("a model whose layers differ in heads has nothing that guesses, nor reads images")


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
        raise bad("a graph for CUDA needs vocab_size, token_bytes and of a reranker sigmoid")
    if manifest.variants("native") or manifest.variants("trt"):
        raise bad("embedders and rerankers have graphs for the CPU and for CUDA alone")


def _check_head(manifest: Manifest, head: HeadSpec) -> None:
    """It reads states of the graph of native operators, and guesses alone."""
    decoder = manifest.decoder
    if decoder is None or manifest.variant("native") is None or head.graph == manifest.graph.path:
        raise bad("a head belongs to a chat model with a graph of native operators")
    if isinstance(manifest.draft, DraftSpec):
        raise bad("it has both a draft model and a head")
    if head.decoder != msgspec.structs.replace(decoder, layers=1):
        raise bad("its head has another cache than one layer of the model's")


def _check_draft(manifest: Manifest, draft: DraftSpec, paths: list[str]) -> None:
    """A model that cannot verify several tokens at once has no use for guesses."""
    decoder, sees = manifest.decoder, isinstance(manifest.vision, VisionSpec)
    states = draft.decoder.recurrent
    if decoder is None or {decoder.cache, draft.decoder.cache} != {"int8"} or sees or states:
        raise bad("a draft model belongs to a chat model for text, both with an 8-bit cache")
    if [graph.variant for graph in draft.graphs] not in (["cpu"], ["cpu", "native"]):
        raise bad("its draft model needs a graph for the CPU, and may have a native one")
    for graph in draft.graphs:
        two = graph.variant == "cpu"
        if isinstance(graph.adapted, Adapted) or isinstance(graph.prefill, str) != two:
            raise bad("its draft model has other graphs than a model of its kind")
        folder = f"{graph.weights_folder}/"
        if not folder.startswith("draft/") or not any(path.startswith(folder) for path in paths):
            raise bad(f"its draft model's weights are said to be in {graph.weights_folder!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", draft.checkpoint_sha256):
        raise bad("its draft model has no SHA-256")


def _check_parity(parity: Parity) -> None:
    fields = msgspec.structs.asdict(parity)
    given = {name for name, value in fields.items() if value is not msgspec.UNSET}
    compared = {"reference", "layers", "tokens", "grade_error", "grade_bound"}
    if "not_run" not in given:
        given.discard("unpacked_by")
    if given not in ({"not_run"}, compared, compared | {"error", "bound"}):
        raise bad("its parity says neither what was compared nor why nothing was")
    for error, bound in (("error", "bound"), ("grade_error", "grade_bound")):
        if error in given and not 0 <= fields[error] <= fields[bound]:
            raise bad(f"its parity.{error} is beyond the bound")


def _check_adapted(graph: Graph, adapted: Adapted, *, joined: bool) -> None:
    needs_two = joined and graph.variant == "cpu"
    if graph.variant == "trt" or isinstance(adapted.prefill, str) != needs_two:
        raise bad("graphs with adapters are for the CPU and CUDA, and as many as there are without")
    if (adapted.path == graph.path) != (graph.variant == "cuda"):
        raise bad("a graph for CUDA has room for adapters itself, and no other has")
    _check_targets(adapted.targets)


def _check_targets(targets: tuple[AdapterTarget, ...]) -> None:
    names = [target.name for target in targets]
    if not names or len(names) != len(set(names)):
        raise bad("adapters need a target, and each one once")
    for target in targets:
        if not (0 < target.inner < _MOST_WIDE and 0 < target.outer < _MOST_WIDE):
            raise bad(f"the target {target.name} has the widths {target.inner}, {target.outer}")


def _check_adapter(manifest: Manifest, adapter: AdapterSpec, paths: list[str]) -> None:
    others = (manifest.decoder, manifest.encoder, manifest.generation, manifest.prompting)
    given = any(part is not None for part in others) or isinstance(manifest.reranker, RerankSpec)
    if manifest.graphs or manifest.tokenizer or given:
        raise bad("an adapter has neither graphs nor anything else of a model")
    if manifest.family != adapter.base.family or not is_name(adapter.base.name):
        raise bad(f"its base is {adapter.base.name!r} of the family {adapter.base.family!r}")
    if not 0 < adapter.rank <= MAX_RANK or not 0 < adapter.layers <= _MOST_LAYERS:
        raise bad(f"its rank is {adapter.rank}, in {adapter.layers} layers")
    _check_targets(adapter.targets)
    if [path for path in paths if path.startswith("adapter/")] != list(adapter.files):
        raise bad("it needs one file of weights for each layer")
    for entry in manifest.files:
        if entry.path.startswith("adapter/") and entry.size != adapter.file_size:
            raise bad(
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
                raise bad(f"encoder.min_dimensions is {fewest}, more than there are")
    if isinstance(manifest.reranker, RerankSpec):
        positive["reranker.max_length"] = manifest.reranker.max_length
        positive |= _reading_numbers("reranker", manifest.reranker)
    for name, value in positive.items():
        if not 0 < value < 1 << 31:
            raise bad(f"{name} is {value}")


def _decoder_numbers(at: str, decoder: DecoderSpec) -> dict[str, int]:
    counts = msgspec.structs.asdict(decoder)
    del counts["cache"], counts["recurrent"], counts["heads"]
    if counts["query_heads"] is msgspec.UNSET:
        del counts["query_heads"]
    if isinstance(decoder.heads, tuple):
        counts |= _heads_numbers(decoder, decoder.heads)
    if isinstance(decoder.recurrent, RecurrentSpec):
        own = msgspec.structs.asdict(decoder.recurrent)
        further = own.pop("further")
        if isinstance(further, TailSpec):
            tail = msgspec.structs.asdict(further)
            counts |= {f"recurrent.further.{name}": count for name, count in tail.items()}
        state = ("heads", "key_dim", "value_dim")
        if not any(own[name] for name in state):
            own = {name: count for name, count in own.items() if name not in state}
        counts |= {f"recurrent.{name}": count for name, count in own.items()}
    return {f"{at}.{name}": count for name, count in counts.items()}


def _heads_numbers(decoder: DecoderSpec, heads: tuple[LayerHeads, ...]) -> dict[str, int]:
    most = (
        max((one.kv_heads for one in heads), default=0),
        max((one.head_dim for one in heads), default=0),
    )
    if len(heads) != decoder.layers or most != (decoder.kv_heads, decoder.head_dim):
        raise bad("decoder.heads contradicts its counts")
    return {
        f"heads.{layer}.{name}": count
        for layer, one in enumerate(heads)
        for name, count in msgspec.structs.asdict(one).items()
    }


def _reading_numbers(at: str, spec: Reading) -> dict[str, int]:
    counts = {"vocab_size": spec.vocab_size, "token_bytes": spec.token_bytes}
    return {f"{at}.{name}": n for name, n in counts.items() if isinstance(n, int)}


def _vision_numbers(manifest: Manifest) -> dict[str, int]:
    """What must be positive. Raises LayoutError for what no image could be scaled to."""
    vision, decoder = manifest.vision, manifest.decoder
    assert isinstance(vision, VisionSpec)
    if decoder is None or not 0 <= vision.image_token < decoder.vocab_size:
        raise bad("vision belongs to a chat model that has its token")
    around = vision.around if isinstance(vision.around, tuple) else ()
    if not all(0 <= token < decoder.vocab_size for token in around):
        raise bad("vision.around has tokens that the model has not")
    if isinstance(vision.table, str) and not isinstance(vision.side, int):
        raise bad("vision.table is said of no table")
    names = ("patch", "temporal", "merge", "min_pixels", "max_pixels", "side", "window")
    counts = {name: getattr(vision, name) for name in names}
    folder = f"{vision.graph.rpartition('/')[0]}/"
    beside = [e.path for e in manifest.files if e.path.startswith(folder)]
    if len(beside) <= len(vision.graphs) or folder == f"{manifest.graph.weights_folder}/":
        raise bad("the graph of vision has no weight files of its own")
    if len(set(vision.graphs)) < len(vision.graphs) or any(
        path.rpartition("/")[0] != folder[:-1] for path in vision.graphs
    ):
        raise bad("the graphs of vision are not two of one folder")
    if vision.max_pixels < max(vision.min_pixels, (vision.patch * vision.merge) ** 2):
        raise bad("vision.max_pixels is less than the smallest image")
    if not all(0 < value < 1e3 for value in vision.std) or not all(
        abs(value) < 1e3 for value in vision.mean
    ):
        raise bad("vision.mean or vision.std is out of range")
    return {f"vision.{name}": n for name, n in counts.items() if isinstance(n, int)}


def bad(reason: str) -> LayoutError:
    """The error for a manifest of which `reason` is said."""
    return LayoutError(
        f"{MANIFEST_NAME} is not a valid manifest: {reason}",
        path=MANIFEST_NAME,
        hint="get a fresh copy of the bundle, or build it again",
    )
