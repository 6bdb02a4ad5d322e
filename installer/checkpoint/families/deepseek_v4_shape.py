"""DeepSeek-V4's numbers, from config.json in the publisher's words or in the reference's.

Owns which layers compress what, how much, by which angles they turn, and what a layer keeps of each
token (graph/kept.py). Refuses what the reference does not compute either, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from appliance.errors import CheckpointError
from installer.checkpoint.graph import decoder_shape, experts
from installer.checkpoint.graph.decoder_shape import AroundDecoder, DecoderShape
from installer.checkpoint.graph.experts import Mixture
from installer.checkpoint.graph.hyper import HyperConnections
from installer.checkpoint.graph.kept import Layout
from installer.checkpoint.graph.kinds import SLIDING, Kinds, LayerKind
from installer.checkpoint.graph.lightning import Lightning
from installer.checkpoint.graph.rope import Basis, Rope, read_ropes, read_scaling
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings

Kind = Literal["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
SPARSE: Kind = "compressed_sparse_attention"
HEAVY: Kind = "heavily_compressed_attention"
_PLAIN: Kind = "sliding_attention"
_OF_RATIO: Mapping[int, Kind] = {0: _PLAIN, 4: SPARSE, 128: HEAVY}
_RATES: Mapping[Kind, tuple[str, int]] = {
    SPARSE: ("compress_rate_csa", 4),
    HEAVY: ("compress_rate_hca", 128),
}
"""What one number of each kind is called, and usually is."""
_HASHED, _LEARNED = "hash_moe", "moe"
_TURNED, _HEAD = 64, 512
"""Of so many numbers of a head so many turn, where nothing is said."""
_UNIT = 16
_HARMLESS = decoder_shape.HARMLESS_KEYS | experts.HARMLESS_KEYS
_HARMLESS |= {"router_jitter_noise", "num_nextn_predict_layers", "expert_dtype"}
# Of layers that predict further tokens, which are left out.
_HARMLESS |= {"dspark_block_size", "dspark_noise_token_id", "dspark_target_layer_ids"}
_HARMLESS |= {"dspark_markov_rank"}


@dataclass(frozen=True, slots=True)
class CompressedShape(AroundDecoder):
    """A decoder of several streams, whose layers read a window and entries of compressed ones.

    Attributes:
        kinds: of each layer, what it reads beside its window.
        rates: tokens of one entry, of the kinds that have them.
        heads, head_dim: of queries; keys have one head, which is the values' as well.
        queries: of the vector that queries are made of.
        window: tokens that each token sees, itself among them.
        groups, group_rank: of heads that are projected together, and to how many numbers.
        index: of the layers that choose entries.
        hyper: between layers.
        hashed: the layers whose experts are chosen by the token alone.
        factor: what the mixture's result is multiplied by.
    """

    kinds: tuple[Kind, ...]
    rates: Mapping[Kind, int]
    heads: int
    head_dim: int
    queries: int
    window: int
    groups: int
    group_rank: int
    index: Lightning
    hyper: HyperConnections
    hashed: frozenset[int]
    factor: float

    def layout(self, layer: int) -> Layout:
        """What a layer keeps of each token."""
        return layout_of(self.kinds[layer], self.head_dim, self.index.width)


def layout_of(kind: Kind, head_dim: int, index: int) -> Layout:
    """The key in front; then, of layers with entries, the running means that these are made of
    (compressed.py), with overlap those of what the next window takes, too."""
    key = ("key", head_dim)
    if kind == HEAVY:
        return Layout((key, ("sums", head_dim), ("means", head_dim)))
    if kind == SPARSE:
        both = head_dim + index
        names = ("next_sums", "next_means", "sums", "means")
        return Layout((key, *((name, both) for name in names)))
    return Layout((key,))


def read(checkpoint: Checkpoint) -> CompressedShape:
    """Read config.json. Raises CheckpointError naming a key that this graph cannot express."""
    config = checkpoint.settings("config.json")
    for key, *values in (
        ("architectures", ["DeepseekV4ForCausalLM"]),
        ("hidden_act", "silu"),
        ("num_key_value_heads", 1),
        ("n_shared_experts", 1),
        ("norm_topk_prob", True),
        ("scoring_func", "sqrtsoftplus"),
        ("topk_method", "noaux_tc"),
        ("attention_bias", False),
        ("mlp_bias", False),
        ("tie_word_embeddings", False),
        ("n_group", 1),
        ("topk_group", 1),
    ):
        config.expect(key, *values)
    layers, head_dim = config.integer("num_hidden_layers"), config.integer("head_dim", _HEAD)
    kinds, rates = _read_kinds(config, layers), _read_rates(config)
    turned = _read_turned(config, head_dim)
    index = Lightning(
        heads=config.integer("index_n_heads", 64),
        width=config.integer("index_head_dim", 128),
        chosen=config.integer("index_topk", 512),
        interleaved=True,
    )
    _check_widths(head_dim, turned, index.width)
    shape = _read_decoder(config, _layer_kinds(config, kinds, head_dim, turned, index.width))
    heads, groups = config.integer("num_attention_heads"), config.integer("o_groups", 8)
    if heads % groups:
        raise CheckpointError(
            f"config.json: {heads} heads do not divide into o_groups = {groups}",
            hint="the checkpoint's config.json belongs to another model",
        )
    result = CompressedShape(
        shape,
        kinds=kinds,
        rates=rates,
        heads=heads,
        head_dim=head_dim,
        queries=config.integer("q_lora_rank"),
        window=config.integer("sliding_window", 128),
        groups=groups,
        group_rank=config.integer("o_lora_rank"),
        index=index,
        hyper=_read_hyper(config, shape),
        hashed=_read_hashed(config, layers),
        factor=config.number("routed_scaling_factor", 1.5),
    )
    config.finish(_HARMLESS)
    return result


def _read_kinds(config: Settings, layers: int) -> tuple[Kind, ...]:
    """What each layer reads: by its name, or by how many tokens make an entry of it."""
    usual: list[str] = [HEAVY if at < 2 or at % 2 == 0 else SPARSE for at in range(layers)]
    ratios = config.ids("compress_ratios")
    if ratios:
        # Behind the last layer, that of a layer that predicts further tokens may follow.
        usual = [_OF_RATIO.get(ratio, f"ratio {ratio}") for ratio in ratios[:layers]]
    names = config.texts("layer_types", usual)
    found = tuple(kind for name in names for kind in _OF_RATIO.values() if kind == name)
    if len(found) != len(names) or len(names) != layers:
        raise CheckpointError(
            f"config.json: layer_types or compress_ratios name {len(names)} layers of "
            f"{', '.join(sorted(set(names)))}",
            hint=f"this model needs {layers} of {', '.join(_OF_RATIO.values())}, which are "
            "compress_ratios of 0, 4 and 128",
        )
    return found


def _read_rates(config: Settings) -> Mapping[Kind, int]:
    section = config.section("compress_rates")
    rates: dict[Kind, int] = {}
    for kind, (key, usual) in _RATES.items():
        rates[kind] = usual if section is None else section.integer(kind, usual)
        rates[kind] = config.integer(key, rates[kind])
    if section is not None:
        section.finish()
    if min(rates.values()) < 2:
        raise CheckpointError(
            "config.json: compress_rates of one token compress nothing",
            hint="the checkpoint's config.json belongs to another model",
        )
    return rates


def _read_turned(config: Settings, head_dim: int) -> int:
    """How many numbers of a head turn, the last ones."""
    turned = config.integer("qk_rope_head_dim", head_dim * _TURNED // _HEAD)
    share = config.number("partial_rotary_factor", turned / head_dim)
    if "qk_rope_head_dim" in config:
        config.expect("partial_rotary_factor", turned / head_dim)
    return int(head_dim * share)


def _check_widths(head_dim: int, turned: int, index: int) -> None:
    if head_dim % (2 * _UNIT) or index % _UNIT or not turned <= min(head_dim // 2, index):
        raise CheckpointError(
            f"config.json: of heads of {head_dim} numbers and {index} of an index, the last "
            f"{turned} cannot turn",
            hint=f"they are multiples of {2 * _UNIT} and {_UNIT}, and half of the former and all "
            "of the latter hold what turns",
        )


def _layer_kinds(
    config: Settings, kinds: Sequence[Kind], head_dim: int, turned: int, index: int
) -> Kinds:
    """The kernel writes what a layer keeps, and sees nothing but the token itself."""
    main, compressed = _read_ropes(config, head_dim, turned)
    return tuple(
        LayerKind(
            main if kind == SLIDING else compressed,
            window=1,
            head_dim=layout_of(kind, head_dim, index).head_dim,
        )
        for kind in kinds
    )


def _read_ropes(config: Settings, head_dim: int, turned: int) -> tuple[Rope, Rope]:
    """The angles of layers that see a window alone, and of those that compress."""
    thetas = {
        "main": config.number("rope_theta", 10_000.0),
        "compress": config.number("compress_rope_theta", 160_000.0),
    }
    basis = Basis(thetas["main"], turned, config.integer("max_position_embeddings"))
    parameters = config.section("rope_parameters")
    if parameters is not None and "main" in parameters and "compress" in parameters:
        ropes = read_ropes(parameters, thetas, basis, turned / head_dim)
        found = ropes["main"], ropes["compress"]
    else:
        found = _read_flat(parameters or config.section("rope_scaling"), thetas, basis)
    config.ignore("rope_scaling")
    main, compressed = (replace(rope, interleaved=True) for rope in found)
    return main, compressed


def _read_flat(
    scaling: Settings | None, thetas: Mapping[str, float], basis: Basis
) -> tuple[Rope, Rope]:
    """Of one rescaling, which is of compressing layers alone, and sharpens nothing."""
    magnitude = 1.0
    if scaling is not None:
        magnitude = scaling.number("attention_factor", 1.0)
        scaling.ignore("rope_theta", "partial_rotary_factor")
    compressed = read_scaling(scaling, replace(basis, theta=thetas["compress"]))
    return read_scaling(None, basis), replace(compressed, magnitude=magnitude)


def _read_decoder(config: Settings, kinds: Kinds) -> DecoderShape:
    """As the kernel and the engine see it: one head that is written."""
    context = config.integer("max_position_embeddings")
    return DecoderShape(
        vocab=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        layers=len(kinds),
        heads=1,
        kv_heads=1,
        head_dim=max(kind.head_dim or 0 for kind in kinds),
        inner=config.integer("moe_intermediate_size"),
        context=max(context, *(kind.rope.reach for kind in kinds)),
        epsilon=config.number("rms_norm_eps", 1e-6),
        kinds=kinds,
        tied=False,
        scale=1.0,
        mixture=_read_mixture(config),
    )


def _read_mixture(config: Settings) -> Mixture:
    inner = config.integer("moe_intermediate_size")
    config.expect("intermediate_size", inner)
    mixture = Mixture(
        experts=config.integer("n_routed_experts"),
        chosen=config.integer("num_experts_per_tok"),
        inner=inner,
        limit=config.number("swiglu_limit", 10.0),
        shared=inner,
    )
    config.expect("num_local_experts", mixture.experts)
    if mixture.chosen > mixture.experts:
        raise CheckpointError(
            f"config.json: {mixture.chosen} of {mixture.experts} experts cannot be chosen",
            hint="the checkpoint's config.json belongs to another model",
        )
    return mixture


def _read_hyper(config: Settings, shape: DecoderShape) -> HyperConnections:
    return HyperConnections(
        streams=config.integer("hc_mult", 4),
        rounds=config.integer("hc_sinkhorn_iters", 20),
        epsilon=config.number("hc_eps", 1e-6),
        norm_epsilon=shape.epsilon,
        hidden=shape.hidden,
    )


def _read_hashed(config: Settings, layers: int) -> frozenset[int]:
    """The layers whose experts a table names for each token: so many at the bottom, if nothing
    else is said."""
    first = min(config.whole("num_hash_layers", 3), layers)
    names = config.texts("mlp_layer_types", [_HASHED] * first + [_LEARNED] * (layers - first))
    if len(names) != layers or not {_HASHED, _LEARNED} >= set(names):
        raise CheckpointError(
            f"config.json: mlp_layer_types names {len(names)} layers of "
            f"{', '.join(sorted(set(names)))}",
            hint=f"this model needs {layers} of {_HASHED}, {_LEARNED}",
        )
    return frozenset(at for at, name in enumerate(names) if name == _HASHED)
