"""A chat model brought to life: tokenizer, template, grammars, and an engine on each of its GPUs.

Owns everything that it holds in memory, until `close`. Refuses a bundle file whose bytes are not
the ones in the manifest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from appliance.bundle.manifest import Manifest
from appliance.bundle.specs import (
    DecoderSpec,
    DraftSpec,
    Generation,
    HeadSpec,
    Prompting,
    VisionSpec,
)
from appliance.compiler import Artifact
from appliance.config import EngineSettings
from appliance.engine.adapters.adapters import Adapters
from appliance.engine.bundle_files import bytes_below, read_checked
from appliance.engine.cache_budget import CacheBudget
from appliance.engine.grammar.compiler import GrammarCompiler
from appliance.engine.grammar.turn import Tags
from appliance.engine.guessing.guesser import why_unused
from appliance.engine.llm_engine import LLMEngine
from appliance.engine.opened import open_decoders
from appliance.engine.opened_decoder import OpenedDecoder
from appliance.engine.tokenizer import Tokenizer
from appliance.engine.vision.decoder import Image
from appliance.engine.vision.eyes import Eyes, Shown
from appliance.engine.vision.tower import open_tower
from appliance.errors import RequestError, UnavailableError
from appliance.model_store import StoredBundle
from appliance.prompting import ChatTemplate, Conversation
from appliance.prompting.formats import hidden_tags, visible_tags


class ChatModel:
    """A chat model, ready to generate. Raises as its parts do."""

    def __init__(
        self,
        bundle: StoredBundle,
        artifact: Artifact,
        settings: EngineSettings,
        budget: CacheBudget,
    ) -> None:
        manifest = bundle.manifest
        decoder, generation, prompting = _chat_parts(manifest)
        self.bundle = bundle
        self.generation = generation
        self.prompting = prompting
        self.tokenizer = Tokenizer(
            read_checked(bundle, manifest.tokenizer),
            visible=(
                prompting.reasoning_start,
                prompting.reasoning_end,
                *visible_tags(prompting.tool_format),
            ),
            hidden=hidden_tags(prompting.tool_format),
        )
        self.eyes: Eyes | None = None
        """None if the model reads text only."""
        with ExitStack() as made:
            self._template = ChatTemplate(
                read_checked(bundle, prompting.template).decode("utf-8"),
                bos_token=prompting.bos_token,
                eos_token=prompting.eos_token,
                control=self.tokenizer.control,
                tool_format=prompting.tool_format,
                efforts=prompting.efforts or (),
            )
            made.callback(self._template.close)
            self.grammars = GrammarCompiler(
                read_checked(bundle, manifest.tokenizer),
                vocab_size=decoder.vocab_size,
                end_ids=generation.eos_token_ids,
                tags=Tags(
                    prompting.reasoning_start, prompting.reasoning_end, prompting.tool_format
                ),
            )
            made.callback(self.grammars.close)
            vision = manifest.vision
            if isinstance(vision, VisionSpec):
                self.eyes = Eyes(open_tower(artifact.directory, settings), vision)
                made.callback(self.eyes.close)
            draft = manifest.draft.decoder if isinstance(manifest.draft, DraftSpec) else None
            head = manifest.head if isinstance(manifest.head, HeadSpec) else None
            decoders = open_decoders(
                *(artifact, decoder, settings, budget),
                sees=self.eyes is not None,
                draft=draft,
                head=head,
            )
            for opened in decoders:
                made.callback(opened.close)
            self.grammars.await_tables()
            opened = decoders[0]
            settings, self.cache_shape = opened.settings, opened.shape
            """Of the first engine."""
            self.recorded = opened.recorded
            """Whether steps are replayed on a GPU, not started kernel by kernel."""
            self.draft_unused = (
                "" if opened.draft else why_unused(manifest, artifact.provider, settings)
            )
            """What of the bundle does not guess, and why; "" if it does, or there is nothing."""
            self.engines = tuple(map(self._engine, decoders))
            """One, or one on each GPU that it is loaded on; `engine` is the first."""
            self.engine = self.engines[0]
            able = [opened.adapted for opened in decoders]
            self.adapters = Adapters(
                manifest, [*zip(self.engines, able, strict=True)], settings.max_adapters
            )
            self.cache_bytes = sum(opened.shape.total_bytes for opened in decoders)
            self.memory_bytes = len(decoders) * bytes_below(artifact.directory) + self.cache_bytes
            self._made = made.pop_all()

    def _engine(self, opened: OpenedDecoder) -> LLMEngine:
        decoder, settings = self.bundle.manifest.decoder, opened.settings
        assert decoder is not None, "a chat model has one"
        return LLMEngine(
            opened.runner,
            self.tokenizer,
            self.prompting,
            vocab_size=decoder.vocab_size,
            slots=opened.shape.slots,
            capacity=self.cache_shape.capacity,
            token_budget=settings.token_budget,
            max_waiting=settings.max_waiting,
            max_waiting_per_caller=settings.max_waiting_per_caller,
            draft_tokens=settings.draft_tokens,
            draft=opened.draft,
            step_seconds=settings.step_milliseconds / 1000,
            shared_step_seconds=settings.shared_step_milliseconds / 1000,
            gathered=opened.gathered,
            snapshots=opened.snapshots,
        )

    @property
    def cache_bytes_used(self) -> int:
        positions = sum(engine.cached_positions for engine in self.engines)
        return positions * self.cache_shape.token_bytes

    @property
    def max_sequences(self) -> int:
        """That are computed at once, over all engines."""
        return sum(engine.slots for engine in self.engines)

    def encode_chat(self, conversation: Conversation) -> tuple[list[int], bool]:
        """Token ids of the rendered conversation, and whether it opens a reasoning tag.

        Blocks on the template's process. Raises RequestError.
        """
        prompt = self._template.render(conversation)
        start = self.prompting.reasoning_start
        opened = bool(start) and prompt.text.rstrip().endswith(start)
        return self.tokenizer.encode_prompt(prompt), opened

    def opening(self, conversation: Conversation, prompt: Sequence[int]) -> int:
        """How many first tokens of the rendered `prompt` stand before all that is said in it.

        0 if there are none, or for a model whose cache can be cut anywhere. Blocks on the
        template's process, and asks nothing of it that could refuse the request.
        """
        assert self.bundle.manifest.decoder is not None, "a chat model has one"
        alike = conversation.opening() if self.bundle.manifest.decoder.recurrent else None
        if alike is None:
            return 0
        try:
            other, _ = self.encode_chat(alike)
        except (RequestError, UnavailableError):
            return 0
        pairs = zip(prompt, other, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def show(self, prompt: Sequence[int], images: Sequence[tuple[str, Image]]) -> Shown | None:
        """The images of a rendered conversation, decoded and placed in it; None if there are none.

        Each comes with the parameter that it was given as. Blocks on the decoder's process. Raises
        RequestError.
        """
        if not images:
            return None
        assert self.eyes is not None, "who reads text only was not given images"
        return self.eyes.show(prompt, images)

    def encode_fill_in(self, prefix: str, suffix: str) -> list[int]:
        """Token ids of a prompt for what stands between two texts. Raises RequestError."""
        controls = self.fill_in_ids
        if not controls:
            raise RequestError(
                "this model cannot fill in the middle of a text",
                param="suffix",
                hint="leave it out, or ask a model for code",
                code="unsupported_parameter",
            )
        return self.tokenizer.encode_fill_in(prefix, suffix, controls)

    @property
    def fill_in_ids(self) -> tuple[int, ...]:
        """The control tokens of filling in, of which none belongs into what is filled in.

        Empty if the model has none.
        """
        tokens = self.prompting.fill_in
        if isinstance(tokens, msgspec.UnsetType):
            return ()
        return tuple(map(self.tokenizer.id_of, (tokens.prefix, tokens.suffix, tokens.middle)))

    def close(self) -> None:
        """Free what the cache took and end the processes of template and grammars."""
        self._made.close()


def _chat_parts(manifest: Manifest) -> tuple[DecoderSpec, Generation, Prompting]:
    decoder, generation, prompting = manifest.decoder, manifest.generation, manifest.prompting
    assert decoder is not None
    assert generation is not None
    assert prompting is not None
    return decoder, generation, prompting
