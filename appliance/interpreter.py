"""Which of a release's two interpreters runs the engine: a word that the compiler leaves.

Owns that word, the name of a virtual environment in a file beside the artifacts. The engine's
unit and `appliance serve` always start the processor's interpreter; the engine reads the word and
goes on as the other one, so a changed choice needs a restart and nothing to be rewritten. Refuses
to believe it: an interpreter whose artifacts no record vouches for loads none.
"""

from __future__ import annotations

from pathlib import Path

from appliance.config import GPU_VENV, VENV, Layout, gpu_python
from appliance.fsops import write_durable

_LONGEST = 64


def choose_interpreter(layout: Layout, python: Path) -> bool:
    """Let the engine run with the interpreter `python` of a release from its next start on.

    True if that is another kind than before. Raises OSError.
    """
    word = python.parent.parent.name
    if (word == GPU_VENV) == (_word(layout) == GPU_VENV):
        return False
    write_durable(layout.engine_environment, f"{word}\n".encode(), mode=0o644)
    return True


def engine_python(layout: Layout, python: Path) -> Path:
    """What runs the engine of the release whose interpreter for the processor is `python`.

    That one itself, unless the GPU's was chosen and this release has it.
    """
    other = gpu_python(python)
    return other if _word(layout) == GPU_VENV and other.exists() else python


def _word(layout: Layout) -> str:
    """The word, or the processor's if there is none that can be read."""
    try:
        with layout.engine_environment.open("rb") as file:
            return file.read(_LONGEST).decode("ascii", "replace").strip()
    except OSError:
        return VENV
