"""One checkpoint for everybody: the shape of Qwen3-0.6B, random weights from a seed.

Its tokenizer is a byte-pair encoding made of letter groups, so that every id that random weights
can say is text and becomes a piece of the stream. A small one for trying the script out has the
same parts.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from bench_peers.work import say
from tests.fakes.checkpoints import write_qwen3

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
_SPACE = "Ġ"


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a Qwen3 model."""

    name: str
    vocab: int
    tokens: int
    """Ids that are text; the rest of `vocab` is special or padding."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int = 4096

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values in float32."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 4


FULL = Shape("qwen3-0.6b", 151_936, 151_643, 1024, 28, 16, 8, 128, 3072)
TINY = Shape("tiny", 4096, 4000, 256, 2, 4, 2, 64, 512)


def make_checkpoint(shape: Shape, directory: Path) -> None:
    """Write the checkpoint into `directory`."""
    say(f"making the checkpoint {shape.name} with random weights")
    write_qwen3(
        directory,
        seed=20_261_126,
        vocab=shape.vocab,
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate=shape.intermediate,
        context=shape.context,
        dtype="bfloat16",
    )
    tokenizer = make_tokenizer(shape.tokens)
    tokenizer.save(str(directory / "tokenizer.json"))
    pad, _, end = (tokenizer.token_to_id(token) for token in SPECIAL)
    _patch(directory / "config.json", bos_token_id=pad, eos_token_id=end)
    _patch(directory / "generation_config.json", eos_token_id=[end, pad], pad_token_id=pad)
    _patch(directory / "tokenizer_config.json", chat_template=TEMPLATE)


def make_tokenizer(tokens: int) -> Tokenizer:
    """A byte-level BPE of `tokens` ids, and three special ones behind them."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(_merges(), tokens - len(words)))
    vocab = {word: index for index, word in enumerate([*words, *map("".join, merges)])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    assert tokenizer.get_vocab_size() == tokens + len(SPECIAL)
    return tokenizer


def _merges() -> Iterator[tuple[str, str]]:
    """Space with a letter, pairs, words of two letters, triples, groups of four."""
    letters = string.ascii_lowercase
    yield from product(_SPACE, letters)
    yield from product(letters, letters)
    yield from ((_SPACE + one, other) for one, other in product(letters, letters))
    pairs = ["".join(pair) for pair in product(letters, letters)]
    yield from product(pairs, letters)
    yield from product(pairs, pairs)


def _patch(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")
