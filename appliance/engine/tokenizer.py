"""Text to tokens and back.

Owns the tokenizer of one bundle. A control token is only ever encoded where the chat template
wrote it; in what users write it stays text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer as NativeTokenizer
from tokenizers.decoders import DecodeStream

from appliance.errors import RequestError, UnsupportedError
from appliance.prompting import Prompt
from appliance.prompting.marks import ControlTokens


class Tokenizer:
    """One tokenizer.json. Thread-safe, except that each Detokenizer belongs to one thread.

    Args:
        data: the bytes of tokenizer.json.
        visible: special tokens that are part of the output text all the same, such as
            reasoning tags.
        hidden: tokens that are not, special or not.

    Raises UnsupportedError if this build cannot read the file.
    """

    def __init__(
        self, data: bytes, *, visible: Iterable[str] = (), hidden: Iterable[str] = ()
    ) -> None:
        self._native = _load(data)
        # A second instance, since the switch is a property of the instance.
        self._plain = _load(data)
        self._plain.encode_special_tokens = True
        self._added = self._native.get_added_tokens_decoder()
        special = {i: token for i, token in self._added.items() if token.special}
        self.control = ControlTokens(token.content for token in special.values())
        self._specials = {token.content: (i, token) for i, token in special.items()}
        shown = set(visible)
        self._hidden = {i for i, token in special.items() if token.content not in shown}
        left_out = set(hidden)
        self._hidden |= {i for i, token in self._added.items() if token.content in left_out}
        self._bytes = _byte_alphabet() if _is_byte_level(data) else None

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self._native.get_vocab(with_added_tokens=True).values()) + 1

    def encode_text(self, text: str) -> list[int]:
        """Encode `text` as the model was trained to see a whole text; all of it is plain."""
        return self._plain.encode(text).ids

    def encode_inside(self, text: str) -> list[int]:
        """Encode `text` as a part of something larger: nothing is added; all of it is plain."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Two plain texts as the model was trained to see them together, and whose each token is.

        The second list has 0 for the first text and what stands around it, 1 for the second.
        """
        encoded = self._plain.encode(first, second)
        return encoded.ids, encoded.type_ids

    def cut(self, text: str, tokens: int) -> str:
        """The beginning of `text` that its first `tokens` tokens stand for."""
        encoded = self._plain.encode(text, add_special_tokens=False)
        if len(encoded.ids) <= tokens:
            return text
        end: int = encoded.offsets[tokens - 1][1]
        return text[:end]

    def id_of(self, token: str) -> int:
        """The id of a token that the vocabulary has."""
        token_id: int | None = self._native.token_to_id(token)
        assert token_id is not None, token
        return token_id

    def encode_fill_in(self, prefix: str, suffix: str, controls: Sequence[int]) -> list[int]:
        """Two texts with a control token before each and one behind; the texts are all plain."""
        before, between, behind = controls
        ids: list[int] = self._plain.encode("").ids  # what every text begins with, if anything
        ids = [*ids, before, *self._plain.encode(prefix, add_special_tokens=False).ids]
        return [*ids, between, *self._plain.encode(suffix, add_special_tokens=False).ids, behind]

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Encode a rendered prompt: the template's control tokens, everything else as text."""
        if not prompt.mark:
            return self._native.encode(prompt.text, add_special_tokens=False).ids
        ids: list[int] = []
        strip_next = False
        for plain, control in self.control.split(prompt.text, prompt.mark):
            token_id, token = self._specials.get(control, (None, None))
            text = plain.lstrip() if strip_next else plain
            text = text.rstrip() if token is not None and token.lstrip else text
            ids += self._plain.encode(text, add_special_tokens=False).ids
            if token_id is not None:
                ids.append(token_id)
            strip_next = token is not None and token.rstrip
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens as they are written. Raises RequestError."""
        if ids and max(ids) >= self.vocab_size:
            raise RequestError(f"token ids must be below {self.vocab_size}", param="tokens")
        text: str = self._native.decode(list(ids), skip_special_tokens=False)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 fragment that a token stands for; possibly not valid on its own."""
        if token_id in self._added:
            return self._added[token_id].content.encode()
        word = self._native.id_to_token(token_id)
        if word is None:
            return b""
        if self._bytes is not None and all(char in self._bytes for char in word):
            return bytes(self._bytes[char] for char in word)
        if len(word) == 6 and word.startswith("<0x") and word.endswith(">"):
            return bytes([int(word[3:5], 16)])  # SentencePiece's byte fall-back
        return word.replace("\u2581", " ").encode()

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder."""
        return Detokenizer(self._native, self._hidden)


class Detokenizer:
    """Turns one sequence's tokens into text as they come."""

    def __init__(self, native: NativeTokenizer, hidden: set[int]) -> None:
        self._native = native
        self._hidden = hidden
        self._stream = DecodeStream(skip_special_tokens=False)
        self._pending: list[int] = []

    def step(self, token_id: int) -> str:
        """The text that is complete with this token; a character's bytes may be still missing."""
        if token_id in self._hidden:
            return ""
        self._pending.append(token_id)
        text: str | None = self._stream.step(self._native, token_id)
        if text is None:
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        """What is left when no token follows: incomplete bytes, as replacement characters."""
        if not self._pending:
            return ""
        pending, self._pending = self._pending, []
        return self._native.decode(pending, skip_special_tokens=False)


def _load(data: bytes) -> NativeTokenizer:
    try:
        native = NativeTokenizer.from_buffer(data)
    except Exception as error:  # the native library raises bare Exception
        raise UnsupportedError(
            f"the tokenizer cannot be read: {error}", hint="the bundle is at fault: build it again"
        ) from None
    # Lengths are checked here, never cut; a batch is padded by its runner.
    native.no_truncation()
    native.no_padding()
    return native


def _is_byte_level(data: bytes) -> bool:
    decoder = json.loads(data).get("decoder") or {}
    parts = [decoder, *decoder.get("decoders", ())]
    return any(part.get("type") == "ByteLevel" for part in parts)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map of bytes to printable characters, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}
