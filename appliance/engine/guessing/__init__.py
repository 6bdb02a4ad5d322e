"""Tokens that are guessed, or that a grammar forces, and verified several in one step.

    guessing.py: what a step computes beyond one token a sequence
        ├── forced.py       what grammars leave no choice about
        ├── drafting.py     what was said before, and a caller's prediction
        ├── guesser.py      draft_model.py, a small model; head.py, the model's own layer
        └── speculation.py  how many guesses pay

What is guessed never changes what is said: a token counts only where the model says it itself.
"""
