"""Keys, TUF metadata, model signers, the node's own key.

Owns the answer to "whose bytes are these?". Refuses networks, wall-clock optimism and partial
trust: a file is verified whole or it is not used.
"""
