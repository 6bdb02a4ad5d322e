"""The reference implementation's answer, computed in a process of its own.

A script, not a module: it imports nothing of this project, so that it runs isolated (`python -I`)
and whatever the reference's code does stays in this process, which has limits of memory and time.
Reads one JSON object on standard input, writes one on standard output and an array beside the
checkpoint. Never trusts remote code, never reaches for a network, reads safetensors only.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

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
    )
    missing = [name for name in found["missing_keys"] if not name.startswith(_UNREAD)]
    if missing or found["mismatched_keys"]:
        raise _CannotError("it misses weights that the checkpoint should have")
    with torch.inference_mode():
        # An embedder may be published under the name of the decoder that it was made from.
        asked_model = model.eval() if asked["logits"] else model.eval().base_model
        output = asked_model(input_ids=torch.tensor([asked["tokens"]]))
    rows = output.logits if asked["logits"] else output.last_hidden_state
    wanted = rows[0, -asked["rows"] :].to(torch.float32).numpy()
    np.save(Path(asked["result"]), wanted, allow_pickle=False)
    return f"transformers {transformers.__version__}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
