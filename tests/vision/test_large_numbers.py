"""Words and images whose numbers outgrow 16-bit floats between the decoder's layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import CheckpointError
from appliance.scheduler import Sequence
from installer.checkpoint.graph.half import HalfBuilder
from tests.checkpoint.conftest import build_unsigned
from tests.checkpoint.enlarged import LARGEST, Peaks, enlarge
from tests.checkpoint.runner import relative_error
from tests.vision.conftest import COUNTED, MOST, WRITERS, Seeing
from tests.vision.test_device import TOLERANCE, on_device
from tests.vision.test_parity import IMAGES, Reference, prompt_of, sight_of

FACTOR = 2.0**13
FACTORS = {
    r"embed_tokens\.weight": FACTOR,
    r"layers\.\d+\.self_attn\.o_proj\.weight": FACTOR,
    r"layers\.\d+\.linear_attn\.out_proj\.weight": FACTOR,
    r"layers\.\d+\.mlp\.(shared_expert\.)?down_proj\.weight": FACTOR,
    r"merger\.mlp\.2\.(weight|bias)": FACTOR,
    r"(deepstack_)?merger(_list\.\d+)?\.linear_fc2\.(weight|bias)": FACTOR,
}
"""What the tower gives enters the decoder in 16 bits, and must fit. Muse norms it, and words."""


@pytest.mark.parametrize("family", [family for family in MOST if family != COUNTED])
def test_images_and_words_share_a_stream_that_outgrows_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    checkpoint = enlarge(WRITERS[family](tmp_path / "checkpoint", tied=False), FACTORS)
    build_unsigned(checkpoint, tmp_path / "bundle", precision="fp32")
    model = Seeing(checkpoint, tmp_path / "bundle")
    reference = Reference(model)
    peaks = Peaks(reference.model)
    ids, sight = sight_of(model, prompt_of(model, len(IMAGES)), IMAGES)
    wanted = reference.logits(ids, IMAGES)[-1]
    assert peaks.stream > 1.5 * LARGEST
    with on_device(model) as runner:
        whole = Sequence(sight.keyed(ids), beside=sight)
        got = runner.prefill(whole, 0, len(ids))[0]
    assert relative_error(got, wanted) <= TOLERANCE
    monkeypatch.setattr(HalfBuilder, "shrink", 1.0)
    with pytest.raises(CheckpointError, match="not finite"):
        build_unsigned(checkpoint, tmp_path / "other", precision="fp32")
