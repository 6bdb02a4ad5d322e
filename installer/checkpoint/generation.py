"""Generation defaults of a checkpoint: what the engine does where a request is silent.

Owns the reading of generation_config.json. Refuses, by name, settings that the engine does not
have: leaving one out would change what the model says.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.bundle.specs import Generation
from appliance.errors import CheckpointError
from installer.checkpoint.reader import Checkpoint
from installer.checkpoint.settings import Settings
from installer.checkpoint.tokenizer import CheckpointTokenizer

NAME = "generation_config.json"

_HARMLESS = frozenset(
    {
        *("bos_token_id", "pad_token_id", "transformers_version", "_from_model_config"),
        *("max_length", "max_new_tokens", "use_cache", "cache_implementation"),
        *("output_attentions", "output_hidden_states", "return_dict_in_generate"),
    }
)


def read_generation(
    checkpoint: Checkpoint,
    tokenizer: CheckpointTokenizer,
    *,
    thinking: bool,
    end_ids: Iterable[int] = (),
) -> Generation:
    """The defaults; generation ends at `end_ids` and any end token that one of the files names.

    Raises CheckpointError naming an unsupported setting, or if no file names an end token.
    """
    document = checkpoint.document(NAME) if checkpoint.has(NAME) else {}
    settings = Settings(document, NAME)
    ends = {*end_ids, *settings.ids("eos_token_id")}
    ends |= set(Settings(checkpoint.config, "config.json").ids("eos_token_id"))
    end = tokenizer.id_of(tokenizer.special("eos_token"))
    if end is not None:
        ends.add(end)
    if not ends:
        raise CheckpointError("the checkpoint names no eos_token: its answers would never end")
    settings.expect("num_beams", 1)
    settings.expect("num_return_sequences", 1)
    sampled = settings.flag("do_sample", True)
    generation = Generation(
        eos_token_ids=tuple(sorted(ends)),
        temperature=settings.number("temperature", 1.0) if sampled else 0.0,
        top_p=settings.number("top_p", 1.0),
        top_k=settings.whole("top_k", 0),
        min_p=settings.number("min_p", 0.0),
        repetition_penalty=settings.number("repetition_penalty", 1.0),
        thinking=thinking,
    )
    if not sampled:
        settings.ignore("temperature")
    settings.finish(_HARMLESS)
    return generation
