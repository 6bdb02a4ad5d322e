"""Measures what a weight grade costs in quality, against fp32, on trained weights.

The fp32 bundle answers questions greedily; each grade is then led along those answers. Printed:
how often its most likely token is fp32's, its perplexity on the answers beside fp32's, and how
many answers it gives token for token when it goes alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from appliance.bundle.files import MANIFEST_NAME
from appliance.bundle.manifest import decode
from appliance.compiler import compile_in_process
from appliance.engine.cache_budget import CacheShape, token_bytes
from appliance.engine.model_runner import ModelRunner
from appliance.engine.native_pool import NativePool, whole_blocks
from appliance.engine.native_runner import Graph, Step
from appliance.engine.session import NATIVE_NAME, PREFILL_NAME, open_session
from appliance.engine.slot_pool import Array, SlotPool
from appliance.prompting.environment import compile_template, render
from installer.ask.passages import Passage, read_handbook
from installer.ask.system_turn import system_turn
from installer.checkpoint import build_bundle

GUIDE = Path(__file__).resolve().parent.parent / "model-bundles/guide"
HANDBOOK = GUIDE.parent.parent / "docs/handbook"
GRADES = ("w8a8", "w4a8", "int8", "int4")
LONGEST = 120


@dataclass(frozen=True, slots=True)
class Case:
    prompt: list[int]
    answer: list[int]


class _Natively:
    """The graph of native operators over one slot, where this processor has them."""

    def __init__(self, artifact: Path, pool: NativePool) -> None:
        self._graph = Graph(open_session(artifact, 0, NATIVE_NAME), pool)

    def prefill(self, slot: int, start: int, tokens: Sequence[int], logits: Array) -> None:
        step = Step()
        step.tokens, step.spans = list(tokens), [(slot, start, len(tokens))]
        step.rows = list(range(len(tokens) - len(logits), len(tokens)))
        self._graph.run(step, logits, ort.RunOptions())

    def decode(self, starts: Sequence[int], tokens: Sequence[Sequence[int]], logits: Array) -> None:
        self.prefill(0, starts[0], tokens[0], logits)


class Grade:
    """One bundle of the guide, run one sequence at a time."""

    def __init__(self, checkpoint: Path, precision: str, work: Path) -> None:
        bundle, artifact = work / f"bundle-{precision}", work / precision
        build_bundle(
            checkpoint,
            bundle,
            name="guide",
            version="1",
            precision=precision,  # type: ignore[arg-type]
            signer=None,
            created=0,
        )
        compile_in_process(bundle, artifact, python=Path(sys.executable))
        spec = decode((bundle / MANIFEST_NAME).read_bytes()).decoder
        assert spec is not None
        shape = CacheShape(1, spec.context_length, token_bytes(spec))
        self._vocab = spec.vocab_size
        self._runner: ModelRunner | _Natively
        if (artifact / NATIVE_NAME).exists():
            self._runner = _Natively(artifact, NativePool(spec, whole_blocks(shape)))
            return
        prompts = open_session(artifact, 0, PREFILL_NAME) if spec.cache == "int8" else None
        self._runner = ModelRunner(
            *(open_session(artifact, 0), SlotPool(spec, shape)),
            *(spec.vocab_size, spec.context_length, prompts),
        )

    def follow(self, prompt: Sequence[int], answer: Sequence[int]) -> Array:
        """Logits before each token of `answer`, given the ones before it: [answer, vocab]."""
        rows = np.zeros((len(answer), self._vocab), np.float32)
        self._runner.prefill(0, 0, prompt, rows[:1])
        for index, token in enumerate(answer[:-1]):
            start = len(prompt) + index
            self._runner.decode([start], [[token]], rows[index + 1 : index + 2])
        return rows

    def answer(self, prompt: Sequence[int], end: int) -> list[int]:
        row = np.zeros((1, self._vocab), np.float32)
        self._runner.prefill(0, 0, prompt, row)
        answer = [int(row[0].argmax())]
        while answer[-1] != end and len(answer) < LONGEST:
            self._runner.decode([len(prompt) + len(answer) - 1], [answer[-1:]], row)
            answer.append(int(row[0].argmax()))
        return answer


def prompts(checkpoint: Path) -> list[list[int]]:
    """The development questions, each with the three passages that share most words with it."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    template = compile_template((checkpoint / "chat_template.jinja").read_text("utf-8"))
    passages = read_handbook(HANDBOOK)
    lines = (GUIDE / "data/dev.txt").read_text("utf-8").splitlines()
    found = []
    for question in (line for line in lines if line and line[0] != "#"):
        best = sorted(passages, key=lambda p: -_shared(question, p))[:3]
        messages = [
            {"role": "system", "content": system_turn(best)},
            {"role": "user", "content": question},
        ]
        given = {"messages": messages, "add_generation_prompt": True, "enable_thinking": False}
        text = render(template, given, 1 << 20)
        found.append(tokenizer.encode(text, add_special_tokens=False).ids)
    return found


def _shared(question: str, passage: Passage) -> int:
    words = set(question.lower().split())
    return len(words & set(f"{passage.heading} {passage.lead}".lower().split()))


def _logprobs(logits: Array, tokens: Sequence[int]) -> Array:
    below = logits - logits.max(-1, keepdims=True)
    total = np.log(np.exp(below).sum(-1))
    result: Array = below[np.arange(len(tokens)), tokens] - total
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grades", nargs="*", help=f"of {', '.join(GRADES)}; all if none")
    parser.add_argument("--questions", type=int, default=100)
    options = parser.parse_args()
    checkpoint = GUIDE / "checkpoint"
    end = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).token_to_id("<|im_end|>")
    with tempfile.TemporaryDirectory() as work:
        exact = Grade(checkpoint, "fp32", Path(work))
        cases = [Case(p, exact.answer(p, end)) for p in prompts(checkpoint)[: options.questions]]
        print(f"{len(cases)} answers, {sum(len(c.answer) for c in cases)} tokens", flush=True)
        print(f"{'grade':8}{'agreement':>12}{'perplexity':>12}{'same answers':>14}")
        for name in ("fp32", *(options.grades or GRADES)):
            grade = exact if name == "fp32" else Grade(checkpoint, name, Path(work))
            logits = [grade.follow(case.prompt, case.answer) for case in cases]
            pairs = list(zip(logits, cases, strict=True))
            agreed = np.concatenate([r.argmax(-1) == c.answer for r, c in pairs]).mean()
            logprob = np.concatenate([_logprobs(r, c.answer) for r, c in pairs]).mean()
            same = sum(grade.answer(c.prompt, end) == c.answer for c in cases)
            figures = f"{agreed:12.4f}{np.exp(-logprob):12.4f}{same:>9} / {len(cases)}"
            print(f"{name:8}{figures}", flush=True)


if __name__ == "__main__":
    main()
