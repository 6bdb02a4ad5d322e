"""Runs models: tokens in, tokens, text and vectors out.

Owns tokenizers, samplers, the key-value cache and the steps of each model. Knows nothing of
gRPC, of requests on a wire, or of where a bundle came from.
"""
