"""The reference implementation's answer, computed in a process of its own.

A script, not a module: it imports nothing of this project, so that it runs isolated (`python -I`)
and whatever the reference's code does stays in this process, which has limits of memory and time.
Reads one JSON object on standard input, writes one on standard output and an array beside the
checkpoint. Never trusts remote code, never reaches for a network, reads safetensors only.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_UNREAD = "pooler."
"""A head that may be left out, and whose result is not looked at."""


def main() -> None:
    """Answer {"versions": …} and write the array, or answer {"failed": …, "detail": …}."""
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_DATA, (asked["memory"], asked["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = {"versions": _run(asked)}
    except _CannotError as error:
        answer = {"failed": str(error), "detail": ""}
    except Exception as error:
        # Whatever the reference raises is an answer too: it could not be asked.
        answer = {"failed": f"it raised {type(error).__name__}", "detail": str(error)}
    sys.stdout.write(json.dumps(answer))


class _CannotError(Exception):
    pass


def _run(asked: dict[str, Any]) -> str:
    import numpy as np
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    architecture = getattr(transformers, asked["architecture"], None)
    if architecture is None:
        raise _CannotError(f"it has no {asked['architecture']}")
    model, found = architecture.from_pretrained(
        asked["checkpoint"],
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **_unpacking(asked),
    )
    missing = [name for name in found["missing_keys"] if not name.startswith(_UNREAD)]
    if missing or found["mismatched_keys"]:
        raise _CannotError("it misses weights that the checkpoint should have")
    with torch.inference_mode():
        rows = [_rows(model.eval(), asked, given) for given in asked["inputs"]]
    wanted = torch.cat(rows).to(torch.float32).numpy()
    np.save(Path(asked["result"]), wanted, allow_pickle=False)
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


def _unpacking(asked: dict[str, Any]) -> dict[str, Any]:
    """How weights become floats that are not: 4-bit floats are told to."""
    from transformers.utils.quantization_config import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)} if asked["mxfp4"] else {}


def _rows(
    model: Any,  # noqa: ANN401  # the library has no types
    asked: dict[str, Any],
    given: dict[str, Any],
) -> torch.Tensor:
    """What is compared of one text, along the first axis."""
    import torch

    inputs = {"input_ids": torch.tensor([given["tokens"]])}
    if "types" in given:
        inputs["token_type_ids"] = torch.tensor([given["types"]])
    if asked["image"] is not None:
        inputs |= _seen(asked["image"], inputs["input_ids"])
    rows: torch.Tensor
    if asked["take"] == "states":
        # An embedder may be published under the name of the decoder that it was made from.
        rows = model.base_model(**inputs).last_hidden_state[0]
        return rows
    logits: torch.Tensor = model(**inputs).logits[0]
    if asked["take"] == "label":
        return logits[:1]
    if asked["take"] == "odds":
        yes, no = asked["odds"]
        return (logits[-1, yes] - logits[-1, no])[None]
    return logits[-asked["rows"] :]


def _seen(image: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """What a model that sees takes beside the tokens."""
    import numpy as np
    import torch

    return {
        "pixel_values": torch.tensor(np.load(image["patches"], allow_pickle=False)),
        "image_grid_thw": torch.tensor([image["grid"]]),
        "mm_token_type_ids": (ids == image["token"]).int(),
    }


if __name__ == "__main__":
    main()
