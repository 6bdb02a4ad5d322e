"""Drives a decoder graph as the engine does: slots of one pool, bound in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from appliance.bundle.specs import DecoderSpec
from appliance.compiler.compile import EXACT_PRODUCTS
from appliance.compiler.probe import AGAIN
from installer.checkpoint.widening import spell_out

Floats = npt.NDArray[np.float32]
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class SlotRunner:
    """`slots` sequences of at most `capacity` tokens over one session.

    `weights` is the folder of the weight files, if it is not the graph's own; without `prepack`
    kernels find no weights laid out for them.
    """

    def __init__(
        self,
        graph: Path,
        spec: DecoderSpec,
        *,
        slots: int = 1,
        capacity: int,
        weights: Path | None = None,
        prepack: bool = True,
    ) -> None:
        options = ort.SessionOptions()
        if not prepack:
            # Kernels then compute with the weights as they are, and activations in 32 bits.
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry(*EXACT_PRODUCTS)
        # Or widened weights and their product become a product of rounded activations.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(weights or graph.parent)
        )
        # Products of 8-bit floats are the GPU's alone.
        self._session = ort.InferenceSession(
            spell_out(graph.read_bytes()), options, providers=["CPUExecutionProvider"]
        )
        self._spec = spec
        inputs = {entry.name: entry.type for entry in self._session.get_inputs()}
        heads = spec.layer_heads
        self._inputs = inputs.keys()
        self._selects = "greedy" in {entry.name for entry in self._session.get_outputs()}
        self._pools = {
            name.removeprefix("past_"): np.zeros(
                (slots, own.kv_heads, capacity, own.head_dim), DTYPES[kind]
            )
            for name, kind in inputs.items()
            if name.startswith(("past_key_", "past_value_"))
            for own in [heads[int(name.rpartition("_")[2])]]
        }
        self._again = [
            entry.name.removeprefix("present_")
            for entry in self._session.get_outputs()
            if AGAIN in entry.name
        ]
        self._states = {
            entry.name.removeprefix("past_"): np.zeros((slots, *entry.shape[1:]), np.float32)
            for entry in self._session.get_inputs()
            if entry.name.startswith(("past_state_", "past_tail_", "past_further_"))
        }
        self.lengths = [0] * slots
        self.greedy: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        """What the graph chose in the last run, if it chooses."""

    def prefill(self, slot: int, tokens: Sequence[int]) -> Floats:
        """Append `tokens` to a sequence; logits after the last of them, [vocab]."""
        self.lengths[slot] += len(tokens)
        logits: Floats = self.run(slot, [tokens], last_index=[len(tokens) - 1])[0]
        return logits

    def decode(self, tokens: Sequence[int]) -> Floats:
        """Append one token to each of the first sequences; logits [len(tokens), vocab]."""
        for slot in range(len(tokens)):
            self.lengths[slot] += 1
        return self.run(0, [[token] for token in tokens], last_index=[0] * len(tokens))

    def copy(self, slot: int, target: int, count: int) -> None:
        """Begin another sequence with the first `count` tokens of one, as a cached prefix does.

        Of a running state, with all that it has read.
        """
        for pool in self._pools.values():
            pool[target, :, :count] = pool[slot, :, :count]
        for states in self._states.values():
            states[target] = states[slot]
        self.lengths[target] = count

    def fill(self, number: float) -> None:
        """Put a number wherever keys and values may stand."""
        for pool in self._pools.values():
            pool[...] = number

    def run(
        self, first: int, rows: Sequence[Sequence[int]], *, last_index: Sequence[int]
    ) -> Floats:
        """Run `rows` of tokens, already counted in `lengths`, in the slots from `first` on."""
        lengths = np.array(self.lengths[first : first + len(rows)], np.int32)
        counts = np.array([len(row) for row in rows], np.int32)
        inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": np.array(rows, np.int64),
            "seqlens_k": lengths - 1,
            "total_sequence_length": np.array(lengths.max(), np.int32),
            "query_seqlens": counts,
            "starts": (lengths - counts).astype(np.int64),
            "rows": np.arange(len(rows)) * len(rows[0]) + np.array(last_index, np.int64),
        }
        binding = self._session.io_binding()
        for name in inputs.keys() & self._inputs:
            binding.bind_cpu_input(name, inputs[name])
        for name, pool in (self._pools | self._states).items():
            view = pool[first : first + len(rows)]
            where = ("cpu", 0, view.dtype, view.shape, view.ctypes.data)
            binding.bind_input(f"past_{name}", *where)
            for again in (name, *(a for a in self._again if a.startswith(f"{name}{AGAIN}"))):
                binding.bind_output(f"present_{again}", *where)
        wanted = len(last_index)
        logits: Floats = np.full((wanted, self._spec.vocab_size), np.nan, np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        if self._selects:
            self.greedy = np.zeros(wanted, np.int64)
            where = ("cpu", 0, self.greedy.dtype, self.greedy.shape, self.greedy.ctypes.data)
            binding.bind_output("greedy", *where)
        self._session.run_with_iobinding(binding)
        return logits


def relative_error(got: Floats, wanted: Floats) -> float:
    """Largest difference over the largest magnitude."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
