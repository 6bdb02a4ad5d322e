"""Embedders and rerankers: what they are for is found, and what no graph expresses is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from appliance.bundle.manifest import Manifest
from appliance.errors import CheckpointError
from installer.checkpoint import build_bundle
from installer.checkpoint.families.known import FAMILIES, FOR_A_PURPOSE
from installer.checkpoint.families.purpose import Kind
from installer.checkpoint.families.qwen3_encoder import PROMPT
from installer.checkpoint.families.which_family import family_of
from installer.checkpoint.quantize import SCHEMES
from installer.checkpoint.reader import Checkpoint
from tests.checkpoint.conftest import build_unsigned
from tests.checkpoint.test_parity_gate import Noted
from tests.fakes.checkpoints import write_bert, write_llama, write_qwen3
from tests.fakes.encoder_checkpoints import (
    write_cross_encoder,
    write_qwen3_embedding,
    write_qwen3_reranker,
    write_xlm_roberta,
)

Edit = Callable[[Any], object]
Write = Callable[[Path], Path]
CONFIG, POOLING = "config.json", "1_Pooling/config.json"
LIBRARY = "config_sentence_transformers.json"


def edit(path: Path, change: Edit) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    change(document)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


def built(checkpoint: Path, tmp_path: Path) -> Manifest:
    return build_unsigned(checkpoint, tmp_path / "out", precision="fp32")


def refused(checkpoint: Path, tmp_path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError, match=pattern) as caught:
        build_unsigned(checkpoint, tmp_path / "out")
    assert caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("write", "file", "change", "pattern"),
    [
        (write_bert, LIBRARY, lambda d: d.update(default_prompt_name="query"), "default_prompt"),
        (write_bert, LIBRARY, lambda d: d.update(truncate_dim=32), "truncate_dim"),
        (write_bert, POOLING, lambda d: d.update(word_embedding_dimension=32), "word_embedding"),
        (
            write_qwen3_embedding,
            "sentence_bert_config.json",
            lambda d: d.update(do_lower_case=True),
            "do_lower_case",
        ),
        (
            write_bert,
            POOLING,
            lambda d: d.update(pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True),
            "last token",
        ),
        (
            write_qwen3_embedding,
            POOLING,
            lambda d: d.update(pooling_mode_mean_tokens=True, pooling_mode_lasttoken=False),
            "mean",
        ),
        (write_qwen3_embedding, CONFIG, lambda d: d.update(attention_bias=True), "attention_bias"),
        (write_xlm_roberta, CONFIG, lambda d: d.update(position_embedding_type="rel"), "position"),
        (write_xlm_roberta, CONFIG, lambda d: d.update(architectures=["BertModel"]), "architect"),
        (
            write_cross_encoder,
            CONFIG,
            lambda d: d.update(id2label={"0": "A", "1": "B"}),
            "2 labels",
        ),
        (write_cross_encoder, CONFIG, lambda d: d.pop("id2label"), "2 labels"),
        (
            write_cross_encoder,
            CONFIG,
            lambda d: d.update(sbert_ce_default_activation_function="torch.nn.Tanh"),
            "sbert_ce_default",
        ),
        (
            write_cross_encoder,
            LIBRARY,
            lambda d: d.update(activation_fn="torch.nn.modules.linear.Identity"),
            "activation",
        ),
        (
            write_qwen3_reranker,
            LIBRARY,
            lambda d: d.update(activation_fn="torch.nn.modules.linear.Identity"),
            "sigmoid",
        ),
    ],
)
def test_settings_that_no_graph_expresses_are_refused_by_name(
    tmp_path: Path, write: Write, file: str, change: Edit, pattern: str
) -> None:
    checkpoint = write(tmp_path / "checkpoint")
    edit(checkpoint / file, change)
    refused(checkpoint, tmp_path, pattern)


def test_a_tokenizer_without_an_end_token_makes_no_vectors_of_last_tokens(tmp_path: Path) -> None:
    checkpoint = write_qwen3_embedding(tmp_path / "checkpoint")
    edit(checkpoint / "tokenizer.json", lambda d: d.update(post_processor=None))
    refused(checkpoint, tmp_path, "end token")


def test_a_tokenizer_that_joins_no_pairs_makes_no_reranker(tmp_path: Path) -> None:
    checkpoint = write_cross_encoder(tmp_path / "checkpoint")
    edit(checkpoint / "tokenizer.json", lambda d: d.update(post_processor=None))
    refused(checkpoint, tmp_path, "between two texts")


def test_other_families_for_these_purposes_are_refused(tmp_path: Path) -> None:
    checkpoint = write_llama(tmp_path / "checkpoint")
    edit(checkpoint / CONFIG, lambda d: d.update(architectures=["LlamaForSequenceClassification"]))
    refused(checkpoint, tmp_path, "llama checkpoint for rerank")


def test_a_card_that_says_nothing_of_ranking_leaves_a_chat_model(tmp_path: Path) -> None:
    checkpoint = write_qwen3(tmp_path / "checkpoint")
    card = "---\nlicense: cc0-1.0\n---\n\npipeline_tag: text-ranking\n"
    (checkpoint / "README.md").write_text(card)
    assert built(checkpoint, tmp_path).kind == "chat"


def kind_of(checkpoint: Path, asked: Kind | None = None) -> str:
    return family_of(Checkpoint(checkpoint), asked).kind


def test_a_model_of_several_uses_is_never_silently_one_of_them(tmp_path: Path) -> None:
    checkpoint = write_qwen3_reranker(tmp_path / "checkpoint")
    assert kind_of(checkpoint) == "rerank"
    with pytest.raises(CheckpointError, match="for rerank, not for chat"):
        kind_of(checkpoint, "chat")
    (checkpoint / "README.md").unlink()
    with pytest.raises(CheckpointError, match="nothing says what this qwen3") as caught:
        kind_of(checkpoint)
    assert caught.value.code == "kind_unknown"
    assert (kind_of(checkpoint, "rerank"), kind_of(checkpoint, "chat")) == ("rerank", "chat")
    (checkpoint / "README.md").write_text("A model.\n")
    said = Noted()
    build_bundle(*(checkpoint, tmp_path / "out"), name="m", version="1", signer=None, progress=said)
    assert any("it becomes a chat model" in text for text in said.said)


@pytest.mark.parametrize(("tag", "kind"), [("text-ranking", "rerank"), ("text-generation", "chat")])
def test_a_card_names_the_task(tmp_path: Path, tag: str, kind: str) -> None:
    checkpoint = write_qwen3_reranker(tmp_path / "checkpoint")
    (checkpoint / "README.md").write_text(f"---\npipeline_tag: {tag}\n---\n")
    assert kind_of(checkpoint) == kind


def test_a_template_that_judges_pairs_is_a_reranker_s(tmp_path: Path) -> None:
    checkpoint = write_qwen3_reranker(tmp_path / "checkpoint")
    (checkpoint / "README.md").unlink()
    words = f"{PROMPT.start}{PROMPT.document}{{{{ messages[-1].content }}}}"
    edit(checkpoint / "tokenizer_config.json", lambda d: d.update(chat_template=words))
    assert kind_of(checkpoint) == "rerank"


def test_a_chat_model_of_one_use_needs_no_card(tmp_path: Path) -> None:
    checkpoint = write_llama(tmp_path / "checkpoint")
    (checkpoint / "README.md").unlink()
    assert kind_of(checkpoint) == "chat"


@pytest.mark.parametrize(("shift", "accepted"), [(0, True), (1, False)])
def test_a_reranker_of_scored_logits_is_one_of_yes_and_no(
    tmp_path: Path, shift: int, accepted: bool
) -> None:
    checkpoint = write_qwen3_reranker(tmp_path / "checkpoint")
    (checkpoint / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    kinds = ("base.modules.transformer.Transformer", "cross_encoder.modules.LogitScore")
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, ("", "1_LogitScore"), strict=True))
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    yes, no = (tokenizer.get_vocab()[word] for word in ("yes", "no"))
    edit(
        checkpoint / "1_LogitScore/config.json",
        lambda d: d.update(true_token_id=yes, false_token_id=no + shift),
    )
    if accepted:
        assert built(checkpoint, tmp_path).kind == "rerank"
    else:
        refused(checkpoint, tmp_path, "false_token_id")


def test_lowered_case_is_the_tokenizer_s_work(tmp_path: Path) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    edit(checkpoint / "sentence_bert_config.json", lambda d: d.update(do_lower_case=True))
    assert built(checkpoint, tmp_path).kind == "embedding"


def test_a_newer_sentence_transformers_directory_means_the_same(tmp_path: Path) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint", pooling="cls")
    pooling = {"embedding_dimension": 64, "pooling_mode": "cls", "include_prompt": True}
    (checkpoint / POOLING).write_text(json.dumps(pooling))
    encoder = built(checkpoint, tmp_path).encoder
    assert encoder is not None
    assert encoder.pooling == "cls"


@pytest.mark.parametrize(
    ("listed", "fewest"), [({"matryoshka_dimensions": [16, 32]}, 16), ({"is_matryoshka": True}, 1)]
)
def test_a_publisher_s_shorter_vectors_are_in_the_manifest(
    tmp_path: Path, listed: dict[str, object], fewest: int
) -> None:
    checkpoint = write_bert(tmp_path / "checkpoint")
    edit(checkpoint / CONFIG, lambda d: d.update(listed))
    encoder = built(checkpoint, tmp_path).encoder
    assert encoder is not None
    assert encoder.min_dimensions == fewest


def test_every_grade_that_a_family_lacks_has_its_reason() -> None:
    families = [*FAMILIES.values(), *FOR_A_PURPOSE.values()]
    for family, precision in itertools.product(families, SCHEMES):
        if precision in family.grades:
            assert family.choose(precision) == precision
            continue
        with pytest.raises(CheckpointError, match=f"not built in {precision}: .{{20}}"):
            family.choose(precision)
