"""Adapters on a graphics processor's runner: mixed in one batch, each is its merged model.

Over the device that every machine has, its own memory, as in test_runner.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from appliance.config import EngineSettings, Layout
from appliance.engine.adapters.adapters import AdaptedDecoder, Adapters, Ready
from appliance.engine.adapters.bank import AdapterBank
from appliance.engine.adapters.weights import read_adapter
from appliance.engine.device.adapters import DeviceAdapters
from appliance.engine.device.device import HostDevice
from appliance.engine.device.runner import DeviceRunner
from appliance.engine.generation import Generation
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.sampling import SamplingParams
from appliance.engine.tokenizer import Tokenizer
from appliance.errors import CapacityError, UnsupportedError
from appliance.model_store import ModelStore, StoredBundle
from tests.checkpoint.reference import ReferenceDecoder
from tests.conftest import BuildOnce
from tests.engine.device.on_host import cut_for, placed
from tests.engine.results import Results, run
from tests.fakes.adapter_node import ADAPTERS, BASE, NAME, build_adapter_node

NEAR = 0.02
"""Share of the largest logit by which 16-bit floats may take one token for another."""
NEAR_BYTES = 0.05
"""The same over weights of 8 bits."""
MEMORY = 256 << 20
GREEDY = SamplingParams(temperature=0, max_tokens=12)
Open = Callable[..., tuple[LLMEngine, DeviceRunner]]


@pytest.fixture(scope="module")
def root(build_once: BuildOnce) -> Path:
    return build_once(NAME, build_adapter_node)


@pytest.fixture
def device() -> HostDevice:
    return HostDevice(MEMORY)


@pytest.fixture
def open_base(root: Path, device: HostDevice, tmp_path: Path) -> Iterator[Open]:
    """Opens an engine on a graph for CUDA of the base; all memory is back at the end."""
    runners: list[DeviceRunner] = []

    def open_it(
        version: str = "1.0", precision: str = "fp16", *, gpus: int = 1
    ) -> tuple[LLMEngine, DeviceRunner]:
        bundle = ModelStore(Layout(root).models).get(BASE, version)
        manifest, decoder = bundle.manifest, bundle.manifest.decoder
        (graph,) = [g for g in manifest.variants("cuda") if g.precision == precision]
        prompting = manifest.prompting
        assert decoder is not None
        assert prompting is not None
        settings = EngineSettings(max_sequences=5, max_context=256, token_budget=96)
        if gpus == 1:
            sessions = [open_graph(bundle, graph.path, graph.weights_folder)]
        else:
            folder = bundle.directory / graph.weights_folder
            into = tmp_path / str(len(runners))
            sessions = cut_for(gpus, decoder, bundle.directory / graph.path, folder, into)
        stages = placed(sessions, decoder, settings, [device] * gpus)
        shape = stages.shape
        runner = DeviceRunner([*stages], decoder, 96, None, record=False)
        runners.append(runner)
        runner.warm_up()
        tokenizer = Tokenizer((bundle.directory / manifest.tokenizer).read_bytes())
        engine = LLMEngine(
            runner, tokenizer, prompting, vocab_size=decoder.vocab_size, slots=shape.slots,
            capacity=shape.capacity, token_budget=96, max_waiting=99,
        )  # fmt: skip
        return engine, runner

    yield open_it
    for runner in runners:
        runner.close()
    assert device.free_bytes() == MEMORY


def open_graph(bundle: StoredBundle, path: str, weights: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(bundle.directory / weights)
    )
    graph = (bundle.directory / path).read_bytes()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def adapter(root: Path, name: str) -> StoredBundle:
    return ModelStore(Layout(root).models).get(name)


def adapters_of(root: Path, engine: LLMEngine, runner: DeviceRunner, most: int = 8) -> Adapters:
    base = ModelStore(Layout(root).models).get(BASE, "1.0").manifest
    return Adapters(base, [(engine, AdaptedDecoder(lambda: runner.prepare))], most)


def bank_of(root: Path, *names: str) -> AdapterBank:
    store = ModelStore(Layout(root).models)
    room = store.get(BASE, "1.0").manifest.graph.adapted
    decoder = store.get(BASE, "1.0").manifest.decoder
    assert decoder is not None
    weights = [read_adapter(store.get(name)) for name in names]
    return AdapterBank(decoder.layers, room.targets, weights)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("version", "precision", "near", "gpus"),
    [
        ("1.0", "fp16", NEAR, 1),
        ("2.0", "fp16", NEAR_BYTES, 1),
        ("2.0", "int8", NEAR_BYTES, 1),
        ("1.0", "fp16", NEAR, 2),
    ],
)
def test_four_adapters_and_the_base_in_one_churning_batch_are_each_their_merged_model(
    root: Path, open_base: Open, version: str, precision: str, near: float, gpus: int
) -> None:
    engine, runner = open_base(version, precision, gpus=gpus)
    adapters, digests = adapters_of(root, engine, runner), {"": ""}
    for name in ADAPTERS:
        adapters.add(adapter(root, name))
        digests[name] = adapter(root, name).digest
    chance = random.Random(11)
    asked = {
        number: (
            chance.choice(list(digests)),
            [chance.randrange(300) for _ in range(chance.choice((5, 5, 20, 120)))],
        )
        for number in range(30)
    }
    waiting, results, mixed = list(asked), Results(), 0
    while waiting or engine.has_work:
        for _ in range(min(len(waiting), chance.randint(0, 3))):
            call = waiting.pop()
            name, prompt = asked[call]
            engine.add(Generation(call, prompt, GREEDY, adapter=digests[name]))
        results.step(engine)
        mixed += engine.running == 5
    assert mixed > 10
    reference = cache(
        lambda name: ReferenceDecoder(root / (f"merged-{name}" if name else "checkpoint"))
    )
    for call, (name, prompt) in asked.items():
        tokens = results.tokens(call)
        logits = reference(name).logits([*prompt, *tokens])[len(prompt) - 1 : -1]
        chosen = logits[np.arange(len(tokens)), tokens]
        assert (logits.max(-1) - chosen <= near * np.abs(logits).max(-1)).all(), (call, name)


def test_an_adapter_changes_what_is_said_and_leaves_nothing_behind(
    root: Path, open_base: Open, device: HostDevice
) -> None:
    engine, runner = open_base()
    prompt = [random.Random(5).randrange(300) for _ in range(30)]

    def said(digest: str = "") -> list[int]:
        return run(engine, Generation(0, prompt, GREEDY, adapter=digest)).tokens(0)

    alone, free = said(), device.free_bytes()
    adapters = adapters_of(root, engine, runner)
    for name in ("all", "attention"):
        adapters.add(adapter(root, name))
    both = [said(adapter(root, name).digest) for name in ("all", "attention")]
    assert len({tuple(alone), *map(tuple, both)}) == 3
    assert said() == alone
    adapters.remove(adapter(root, "all").digest)
    assert said(adapter(root, "attention").digest) == both[1]
    adapters.remove(adapter(root, "attention").digest)
    assert said() == alone
    assert device.free_bytes() == free


def test_prompts_that_begin_together_have_each_their_own_adapter(
    root: Path, open_base: Open
) -> None:
    engine, runner = open_base()
    adapters = adapters_of(root, engine, runner)
    names = ["all", "", "half", "all"]
    for name in {*names} - {""}:
        adapters.add(adapter(root, name))
    digests = [adapter(root, name).digest if name else "" for name in names]
    prompts = [[n * 7 + i for i in range(10)] for n in range(4)]
    given = list(zip(digests, prompts, strict=True))
    apart = [run(engine, Generation(9, p, GREEDY, adapter=d)).tokens(9) for d, p in given]
    together = run(engine, *(Generation(n, p, GREEDY, adapter=d) for n, (d, p) in enumerate(given)))
    assert [together.tokens(n) for n in range(4)] == apart


def test_where_there_is_no_room_the_former_adapters_stay(root: Path, open_base: Open) -> None:
    engine, runner = open_base()
    adapters = adapters_of(root, engine, runner)
    adapters.add(adapter(root, "all"))
    prompt, first = list(range(20)), adapter(root, "all").digest
    before = run(engine, Generation(0, prompt, GREEDY, adapter=first)).tokens(0)
    device = runner._stages.devices[-1]
    hoard = device.allocate(device.free_bytes())
    with pytest.raises(CapacityError) as caught:
        adapters.add(adapter(root, "attention"))
    device.release(hoard)
    assert caught.value.code == "adapters_full"
    assert adapters.digests == {first}
    assert run(engine, Generation(0, prompt, GREEDY, adapter=first)).tokens(0) == before


def test_on_several_gpus_an_adapter_is_loaded_on_all_or_on_none(
    root: Path, open_base: Open
) -> None:
    (one, first), (two, second) = open_base(), open_base()
    base = ModelStore(Layout(root).models).get(BASE, "1.0").manifest
    decoders = [(one, AdaptedDecoder(lambda: first.prepare))]

    def full(_bank: AdapterBank) -> Ready:
        raise CapacityError("no room", hint="unload one")

    half = Adapters(base, [*decoders, (two, AdaptedDecoder(lambda: full))], 8)
    with pytest.raises(CapacityError, match="no room"):
        half.add(adapter(root, "all"))
    assert half.digests == frozenset()

    both = Adapters(base, [*decoders, (two, AdaptedDecoder(lambda: second.prepare))], 8)
    both.add(adapter(root, "all"))
    digest, prompt = adapter(root, "all").digest, list(range(30))
    said = [run(e, Generation(0, prompt, GREEDY, adapter=digest)).tokens(0) for e in (one, two)]
    assert said[0] == said[1]
    assert said[0] != run(one, Generation(0, prompt, GREEDY)).tokens(0)


def test_a_graph_without_room_refuses_adapters_by_name(root: Path, open_base: Open) -> None:
    engine, _ = open_base()
    base = ModelStore(Layout(root).models).get(BASE, "1.0").manifest
    with pytest.raises(UnsupportedError, match="no room for adapters") as caught:
        Adapters(base, [(engine, None)], 8).add(adapter(root, "all"))
    assert caught.value.code == "adapters_need_processor"


def test_masks_are_sent_only_when_sequences_come_or_go(
    root: Path, device: HostDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = ModelStore(Layout(root).models).get(BASE, "1.0")
    graph = bundle.manifest.variant("cuda")
    assert graph is not None
    session = open_graph(bundle, graph.path, graph.weights_folder)
    held = DeviceAdapters(session, [session], device, 4)
    held.use(held.prepare(bank_of(root, "all", "half")))
    written = []
    monkeypatch.setattr(device, "write", lambda address, array: written.append(array.copy()))
    first, second = (adapter(root, name).digest for name in ("all", "half"))
    for adapters in ([first, ""], [first, ""], [first], [first, second], ["", ""]):
        held.choose(adapters)
    assert len(written) == 3
    sums = [int(masks.sum()) for masks in written]
    assert sums[0] > 0
    assert sums[1] > sums[0]
    assert sums[2] == 0
    held.close()
