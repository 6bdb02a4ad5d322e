"""Checkpoints whose matrices are quantized already: one file for each method of storing them.

A method says which stored tensors stand for the matrix that a graph asks for, what numbers they
mean, and, where a grade can hold the very same integers, gives those.
"""
