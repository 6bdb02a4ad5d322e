"""The models on this node: content-addressed blobs, complete bundles, generations of activation.

Owns what is on disk and what is served. Refuses bytes that were not verified, and knows nothing
of how a model is compiled or run.
"""

from appliance.model_store.generations import Generation
from appliance.model_store.store import ModelStore, StoredBundle

__all__ = ["Generation", "ModelStore", "StoredBundle"]
