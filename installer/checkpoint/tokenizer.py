"""The checkpoint's tokenizer, as the bundle carries it.

Owns tokenizer.json and the lookup of special tokens. Padding and truncation are taken out of the
file: they are the engine's decisions, and publishers leave settings of their training in it. So are
control tokens that the model has no row for: Gemma's text models come with that of images.
Refuses checkpoints without a tokenizer.json (older formats need code to load).
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from appliance.errors import CheckpointError
from installer.checkpoint.reader import Checkpoint

NAME = "tokenizer.json"
CONFIG = "tokenizer_config.json"


class CheckpointTokenizer:
    """The tokenizer of one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, vocab: int) -> None:
        """`vocab` is the size of the embedding table. Raises CheckpointError."""
        text = checkpoint.text(NAME)
        document = checkpoint.document(NAME)
        settings = any(document.get(key) is not None for key in ("padding", "truncation"))
        added, kept = document.get("added_tokens"), _within(document.get("added_tokens"), vocab)
        if settings or added != kept:
            document |= {"padding": None, "truncation": None, "added_tokens": kept}
            text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        try:
            # The library reports every fault of the file as a bare Exception.
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:
            raise CheckpointError(f"{NAME} is not a tokenizer: {error}") from error
        self.json = text
        self._config = checkpoint.document(CONFIG) if checkpoint.has(CONFIG) else {}
        largest = max(self.tokens.values(), default=0)
        if largest >= vocab:
            raise CheckpointError(
                f"{NAME} has a token {largest}, the model only {vocab} tokens",
                hint="the tokenizer belongs to another checkpoint",
            )

    @property
    def tokens(self) -> dict[str, int]:
        """Every token's number, added ones included."""
        tokens: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return tokens

    def special(self, key: str) -> str:
        """The text of a special token such as `eos_token`, empty if there is none."""
        value = self._config.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else ""

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, or None."""
        return self._tokenizer.token_to_id(token) if token else None

    def text_of(self, token_id: int) -> str:
        """The text of a token of the vocabulary."""
        return self._tokenizer.id_to_token(token_id) or ""

    def is_special(self, token: str) -> bool:
        """Whether `token` is a control token, which a text cannot spell by accident."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return any(entry.special and entry.content == token for entry in added)

    @property
    def ends_texts(self) -> bool:
        """Whether a whole text gets a control token behind it."""
        ids = self._tokenizer.encode("a").ids
        entry = self._tokenizer.get_added_tokens_decoder().get(ids[-1]) if ids else None
        return entry is not None and entry.special

    @property
    def joins_pairs(self) -> bool:
        """Whether two texts that are encoded together get control tokens around them."""
        together: list[int] = self._tokenizer.encode("a", "a").ids
        return len(together) > 2 * len(self.encode("a"))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, control tokens recognised, nothing added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def template(self) -> str:
        """The chat template in tokenizer_config.json, empty if there is none."""
        value = self._config.get("chat_template")
        if isinstance(value, list):
            templates = (item for item in value if isinstance(item, dict))
            named = {item.get("name"): item.get("template") for item in templates}
            value = named.get("default")
        return value if isinstance(value, str) else ""


def _within(added: object, vocab: int) -> object:
    """Added tokens without control tokens beyond the model's own; what is no list stays."""
    if not isinstance(added, list):
        return added
    return [token for token in added if not _is_beyond(token, vocab)]


def _is_beyond(token: object, vocab: int) -> bool:
    if not isinstance(token, dict) or token.get("special") is not True:
        return False
    number = token.get("id")
    return type(number) is int and number >= vocab
