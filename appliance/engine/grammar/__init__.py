"""Constrained decoding: output that a JSON schema, a regex or a grammar admits, and nothing else.

    structured output, tools ──> turn.py ──> compiler.py ──> constraint.py ──> sampler's mask
                                  │ schema.py, pattern.py      one for each sequence
                                  v
                                a keyword that cannot be honoured is refused by name

Owns what may be asked, how much work it may cost, and the compiled grammars of a model. The
automaton itself is llguidance's (docs/decisions/0090-llguidance.md).
"""
