"""Which of a release's two interpreters the engine runs with, and what it can compute on.

Owns that choice as far as the machine decides it. A release on a node with a GPU has a second
virtual environment, because the runtime for the GPU and the one for the processor own the same
import folder. One engine serves all models, so one of the two is in force for the whole node.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from appliance.compiler import machine as machines
from appliance.compiler.child import run_compiler
from appliance.compiler.hardware import NO_DRIVER, has_driver
from appliance.compiler.ladder import unusable
from appliance.compiler.machine import Machine
from appliance.compiler.record import Refusal
from appliance.config import Layout, gpu_python
from appliance.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Runtime:
    """An interpreter to run the engine with.

    Attributes:
        python: the interpreter.
        machine: what it can compute on.
        processor: the interpreter with the processor's runtime, whose logits are compared with.
        reason: why it is not the GPU's; None if it is.
    """

    python: Path
    machine: Machine
    processor: Path
    reason: Refusal | None

    @property
    def on_gpu(self) -> bool:
        return self.reason is None

    def below(self) -> Runtime:
        """The processor's runtime, where no model can be computed on the GPU."""
        if not self.on_gpu:
            return self
        return processor_runtime(
            self.processor, _refusal("no_model", "no set of this node's models computes on it")
        )


def release_python(layout: Layout) -> Path:
    """The interpreter of the current release; this process's if there is none."""
    return layout.python if layout.python.exists() else Path(sys.executable)


def choose_runtime(python: Path) -> Runtime:
    """The runtime for the GPU if the release has it and this machine's GPU can be used.

    `python` is the release's interpreter with the processor's runtime. Raises UnsupportedError if
    that cannot be started; what is wrong with the other is a reason.
    """
    on_gpu = gpu_python(python)
    if not on_gpu.exists():
        return processor_runtime(python, _without_programs())
    try:
        machine = _ask(on_gpu)
    except UnsupportedError as error:
        return processor_runtime(python, _refusal(error.code, error.message))
    reason = unusable(machine)
    if reason is not None:
        return processor_runtime(python, reason)
    return Runtime(on_gpu, machine, python, None)


def processor_runtime(python: Path, reason: Refusal) -> Runtime:
    """The processor's runtime, because of `reason`. Raises UnsupportedError."""
    seen = _ask(python)
    machine = Machine(reason=reason.message, code=reason.code, fingerprints=seen.fingerprints)
    return Runtime(python, machine, python, reason)


def _ask(python: Path) -> Machine:
    return machines.decode(run_compiler(python, ["--machine"]))


def _without_programs() -> Refusal:
    if not has_driver():
        return _refusal("no_gpu", NO_DRIVER)
    return _refusal("no_runtime", "this node was installed without the programs for a GPU")


def _refusal(code: str, message: str) -> Refusal:
    return Refusal(provider="cuda", code=code, message=message)
