"""What docs/api.md tells a developer to write, for tests that set just that."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY


def block(title: str, language: str) -> str:
    """The first block of `language` below the heading `title`."""
    guide = (REPOSITORY / "docs/api.md").read_text("utf-8").split(f"\n### {title}\n", 1)[1]
    found = re.search(rf"```{language}\n(.*?)```", guide, re.DOTALL)
    assert found is not None
    return found[1]
