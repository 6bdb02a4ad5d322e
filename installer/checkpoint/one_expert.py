"""Mixtures of experts, as the processor computes them with one expert widened at a time.

The processor's kernel takes a layer's experts in 32 bits, all at once. Where the graph widens
them, that is several times the checkpoint's largest tensor. Here a loop takes one expert that some
token chose after the other, widens it alone, and adds what it gives times its weights. The sum is
the same, up to the order in which it is made. The loop is for graphs that are run while a bundle
is built; no bundle has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import NodeProto, TensorProto, helper

_MIXTURE = "MoE"
_EACH_NUMBER = frozenset({"Cast", "Mul"})
"""Conversions of a stack, and its division by a number."""
_X, _SCORES, _FIRST_WEIGHT = 0, 1, 2
"""Which of the kernel's inputs they are; experts' tensors from there on."""


def one_expert_at_a_time(graph: bytes) -> bytes:
    """`graph` with a loop for each mixture whose experts it widens; others are left alone."""
    model = onnx.load_model_from_string(graph)
    makers = {output: node for node in model.graph.node for output in node.output}
    stored = {tensor.name for tensor in model.graph.initializer}
    made: list[NodeProto] = []
    for node in model.graph.node:
        chains = {name: _chain(name, makers) for name in node.input[_FIRST_WEIGHT:] if name}
        widened = any(chain.steps for chain in chains.values())
        if node.op_type == _MIXTURE and widened and all(c.name in stored for c in chains.values()):
            made += _loop(node, chains)
        else:
            made.append(node)
    del model.graph.node[:]
    model.graph.node.extend(_needed(made, [output.name for output in model.graph.output]))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


@dataclass(frozen=True, slots=True)
class _Chain:
    """A tensor's name, and what is done to each of its numbers in turn."""

    name: str
    steps: Sequence[NodeProto] = ()


def _chain(name: str, makers: Mapping[str, NodeProto]) -> _Chain:
    maker = makers.get(name)
    if maker is None or maker.op_type not in _EACH_NUMBER:
        return _Chain(name)
    before = _chain(maker.input[0], makers)
    return _Chain(before.name, (*before.steps, maker))


def _loop(node: NodeProto, chains: Mapping[str, _Chain]) -> Iterator[NodeProto]:
    """The same output as `node`, expert by expert."""
    x, scores, at = node.input[_X], node.input[_SCORES], f"{node.name}.each"

    def own(name: str) -> str:
        return f"{at}.{name}"

    yield _ints(own("first"), [0])
    yield _ints(own("rest"), [-1])
    yield _floats(own("nothing"), [0.0])
    # A score that was not chosen is so low that its share is zero.
    yield helper.make_node("Softmax", [scores], [own("shares")], axis=-1)
    yield helper.make_node("ReduceMax", [own("shares"), own("first")], [own("largest")], keepdims=0)
    yield helper.make_node("Greater", [own("largest"), own("nothing")], [own("chosen")])
    yield helper.make_node("NonZero", [own("chosen")], [own("found")])
    yield helper.make_node("Reshape", [own("found"), own("rest")], [own("experts")])
    yield helper.make_node("Size", [own("experts")], [own("count")])
    yield helper.make_node("Shape", [x], [own("shape")])
    yield helper.make_node("Shape", [x], [own("tokens")], end=-1)
    yield helper.make_node("Concat", [own("tokens"), own("rest")], [own("rows")], axis=0)
    yield helper.make_node("Reshape", [own("shares"), own("rows")], [own("spread")])
    yield helper.make_node("ConstantOfShape", [own("shape")], [own("zero")])
    body = helper.make_graph(
        list(_body(node, chains, at)),
        at,
        [
            helper.make_tensor_value_info(own("turn"), TensorProto.INT64, []),
            helper.make_tensor_value_info(own("on"), TensorProto.BOOL, []),
            helper.make_tensor_value_info(own("before"), TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info(own("still"), TensorProto.BOOL, []),
            helper.make_tensor_value_info(own("after"), TensorProto.FLOAT, None),
        ],
    )
    yield helper.make_node(
        "Loop", [own("count"), "", own("zero")], [node.output[0]], name=at, body=body
    )


def _body(node: NodeProto, chains: Mapping[str, _Chain], at: str) -> Iterator[NodeProto]:
    """One turn: what was summed before, and what the turn's expert gives besides."""
    x, scores = node.input[_X], node.input[_SCORES]

    def own(name: str) -> str:
        return f"{at}.{name}"

    yield helper.make_node("Reshape", [own("turn"), own("rest")], [own("place")])
    yield helper.make_node("Gather", [own("experts"), own("place")], [own("expert")])
    # Of a single expert any score gives the weight one.
    yield helper.make_node("Gather", [scores, own("expert")], [own("score")], axis=1)
    given = [x, own("score")]
    for index, name in enumerate(node.input[_FIRST_WEIGHT:]):
        given.append(own(f"weight_{index}") if name else "")
        if name:
            yield from _taken(chains[name], own("expert"), given[-1])
    kernel = helper.make_node(_MIXTURE, given, [own("result")], domain=node.domain)
    kernel.attribute.extend(one for one in node.attribute if one.name != "k")
    kernel.attribute.append(helper.make_attribute("k", 1))
    yield kernel
    yield helper.make_node("Gather", [own("spread"), own("expert")], [own("share")], axis=-1)
    yield helper.make_node("Mul", [own("result"), own("share")], [own("part")])
    yield helper.make_node("Add", [own("before"), own("part")], [own("after")])
    yield helper.make_node("Identity", [own("on")], [own("still")])


def _taken(chain: _Chain, expert: str, to: str) -> Iterator[NodeProto]:
    """The expert's part of a stored stack, made into what the whole stack was made into."""
    names = [*(f"{to}.{step}" for step in range(len(chain.steps))), to]
    yield helper.make_node("Gather", [chain.name, expert], [names[0]], axis=0)
    for step, whole in enumerate(chain.steps):
        part = NodeProto()
        part.CopyFrom(whole)
        part.name = names[step + 1]
        part.input[0], part.output[0] = names[step], names[step + 1]
        yield part


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """Those that something still reads, for the runtime computes the others too."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
            for attribute in node.attribute:
                wanted.update(name for inner in attribute.g.node for name in inner.input)
    return kept[::-1]


def _ints(name: str, values: Sequence[int]) -> NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=values)


def _floats(name: str, values: Sequence[float]) -> NodeProto:
    return helper.make_node("Constant", [], [name], value_floats=values)
