"""Models with Mamba-2 layers: as they are published, in what grades, and what they are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from appliance.bundle.specs import RecurrentSpec
from appliance.errors import CheckpointError
from installer.checkpoint.families.family import RECURRENT, SPARSE, Family
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.graph.decoder_shape import DecoderShape
from tests.checkpoint.conftest import OpenConfig
from tests.checkpoint.families.granite import EXPERTS, GRANITE, HYBRID
from tests.checkpoint.published_states import GRANITE_H_MICRO, GRANITE_H_SMALL, GRANITE_H_TINY


@dataclass(frozen=True, slots=True)
class Published:
    """Attributes:
    config: the document.
    recurrent: of its Mamba-2 layers.
    attending: layers that attend.
    chosen: experts of a token.
    """

    config: dict[str, Any]
    recurrent: RecurrentSpec
    attending: int
    chosen: int = 0


def states(layers: int, heads: int, channels: int, width: int = 64) -> RecurrentSpec:
    return RecurrentSpec(
        layers=layers, heads=heads, key_dim=128, value_dim=width, channels=channels, tail=3
    )


PUBLISHED = {
    "Granite-4.0-H-Micro": Published(GRANITE_H_MICRO, states(36, 64, 4096 + 256), 4),
    "Granite-4.0-H-Tiny": Published(GRANITE_H_TINY, states(36, 48, 3072 + 256), 4, 6),
    "Granite-4.0-H-Small": Published(GRANITE_H_SMALL, states(36, 128, 8192 + 256), 4, 10),
}


def read(open_config: OpenConfig, document: dict[str, Any]) -> tuple[Family, DecoderShape]:
    checkpoint = open_config(document)
    family = family_of(checkpoint)
    shape = family.read(checkpoint)
    assert isinstance(shape, DecoderShape)
    return family, shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_understood(open_config: OpenConfig, name: str) -> None:
    wanted = PUBLISHED[name]
    family, shape = read(open_config, wanted.config)
    assert family.precisions == (SPARSE if wanted.chosen else RECURRENT)
    spec = shape.spec()
    assert (spec.recurrent, spec.layers) == (wanted.recurrent, wanted.attending)
    assert (shape.mixture.chosen if shape.mixture else 0) == wanted.chosen


def test_layers_of_granite_decide_what_builds_it(open_config: OpenConfig) -> None:
    plain = GRANITE | HYBRID
    dense, _ = read(open_config, plain)
    sparse, shape = read(open_config, plain | EXPERTS)
    assert (dense.recurrent, dense.standard, "w4a8" in dense.grades) == (False, True, True)
    assert (sparse.recurrent, sparse.standard, sparse.precisions) == (False, False, SPARSE)
    assert shape.mixture is not None
    assert (shape.mixture.inner, shape.mixture.shared, shape.inner) == (96, 128, 128)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_types": ["mamba"] * 40}, "layer_types"),
        ({"layer_types": ["mamba", "sliding_attention"] * 20}, "layer_types"),
        ({"mamba_d_head": 32}, "mamba_d_head"),
        ({"mamba_n_groups": 5}, "5 groups"),
        ({"mamba_conv_bias": False}, "mamba_conv_bias"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias"),
        ({"time_step_limit": [0.001, 0.1]}, "time_step_limit"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_granite_cannot_be_is_refused_by_its_key(
    open_config: OpenConfig, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(open_config, {**GRANITE_H_TINY, **changes})


def test_steps_without_bounds_may_be_said_so(open_config: OpenConfig) -> None:
    _, silent = read(open_config, GRANITE_H_TINY)
    said = {"time_step_limit": [0.0, float("inf")], "mamba_d_head": "auto"}
    assert read(open_config, {**GRANITE_H_TINY, **said})[1] == silent
