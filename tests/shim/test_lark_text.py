"""Lark grammars as patterns: the same texts, and a refusal by name of what is not one pattern."""

from __future__ import annotations

import re

import pytest

from appliance.engine.grammar.pattern import check_pattern
from appliance.shim.wire.lark_text import MAX_PATTERN, LarkError, pattern_of

PATCH = """start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
"""What a coding assistant gives with its tool for patches."""
GOOD = "*** Begin Patch\n*** Update File: a.py\n@@ def f\n-one\n+two\n*** End Patch\n"


def test_a_patch_is_one_pattern_that_the_engine_takes() -> None:
    pattern = pattern_of(PATCH)
    assert re.fullmatch(pattern, GOOD)
    assert re.fullmatch(pattern, GOOD.rstrip())
    for spoilt in (
        GOOD.replace("@@", "??"),
        GOOD[1:],
        GOOD + "x",
        "*** Begin Patch\n*** End Patch",
    ):
        assert not re.fullmatch(pattern, spoilt)
    assert check_pattern(f"^(?:{pattern})$") < 1000


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('start: "a.b"', ["a.b"], ["axb"]),
        ('start: "a" "b"*', ["a", "abb"], ["ba", ""]),
        ('start: ["a" | "bc"] "d"', ["d", "ad", "bcd"], ["ab"]),
        ('start: ("a" | "bc")~2..3', ["aa", "bca", "bcbcbc"], ["a", "aaaa"]),
        ('start: "ab"~2', ["abab"], ["ab", "abb"]),
        ('?start: x\n  | "c"  // or so\nx.2: A -> one\nA: /[ab]/', ["a", "b", "c"], ["d"]),
        ('start: "say \\"x\\"" NL\n%import common.LF -> NL', ['say "x"\n'], ["say x"]),
        ("start: INT WS_INLINE\n%import common.INT\n%import common.WS_INLINE", ["12 "], ["1"]),
        ('start: /a\\/b/ "/"', ["a/b/"], ["a/b"]),
    ],
)
def test_the_pattern_admits_what_the_grammar_does(
    grammar: str, good: list[str], bad: list[str]
) -> None:
    pattern = pattern_of(grammar)
    check_pattern(pattern)
    assert all(re.fullmatch(pattern, text) for text in good), pattern
    assert not any(re.fullmatch(pattern, text) for text in bad), pattern


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ('start: "(" start? ")"', "'start' contains itself"),
        ('start: a\na: b\nb: "x" a?', "'a' contains itself"),
        ("start: a", "there is no 'a'"),
        ('begin: "a"', "there is no 'start'"),
        ('start: "a"\nstart: "b"', "there twice"),
        ('start: "a"\n%ignore " "', "'%ignore' is not supported"),
        ("start: X\n%import python.X", "'%import' is not supported"),
        ("start: ESCAPED_STRING\n%import common.ESCAPED_STRING", "common.ESCAPED_STRING"),
        ('start: "a"i', "without regard to case"),
        ("start: /a/i", "flags"),
        ('start: "a".."z"', "is not supported"),
        ('start{x}: "a"', "is not supported"),
        ('start: "a" (', "is not closed"),
        ('start: "a" )', "closes nothing"),
        ("start: *", "nothing is repeated"),
        ('start: "\\q"', "escape"),
        ("\n".join(["start: a0", *(f"a{i}: a{i + 1} a{i + 1}" for i in range(40)), 'a40: "x"']),
         str(MAX_PATTERN)),
    ],
)  # fmt: skip
def test_what_is_not_one_pattern_is_refused_with_its_reason(grammar: str, why: str) -> None:
    with pytest.raises(LarkError, match=re.escape(why)):
        pattern_of(grammar)
