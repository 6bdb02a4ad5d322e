"""Reads the Huffman code of header strings (RFC 7541 section 5.2 and appendix B).

The code is canonical, so who has which length is all of it. Refuses what no header of gRPC may
have: control characters, and bytes that are not ASCII; their codes are longer.
"""

from __future__ import annotations

from appliance.shim.rpc.frames import BrokenFrameError

_OF_LENGTH = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: '!"()?',
    11: "'+|",
    12: "#>",
    13: "\0$@[]~",
    14: "^}",
    15: "<`{",
    19: "\\",
}
_LONGEST = max(_OF_LENGTH)
_PADDING = 7
"""Bits of ones that may fill the last byte."""


def _codes() -> dict[tuple[int, int], str]:
    """Characters by length and code."""
    codes, code, last = {}, 0, 0
    for length, characters in _OF_LENGTH.items():
        code <<= length - last
        last = length
        for character in characters:
            codes[length, code] = character
            code += 1
    return codes


_CODES = _codes()


def decode(data: bytes) -> str:
    """Raises BrokenFrameError."""
    text: list[str] = []
    length = code = 0
    for bit in "".join(f"{byte:08b}" for byte in data):
        length, code = length + 1, code << 1 | (bit == "1")
        character = _CODES.get((length, code))
        if character is not None:
            text.append(character)
            length = code = 0
        elif length > _LONGEST:
            raise BrokenFrameError("a character that no header has")
    if length > _PADDING or code != (1 << length) - 1:
        raise BrokenFrameError("a header ends within a character")
    return "".join(text)
