"""The life of the keys after the ceremony: replaced, retired, renewed; what was signed, taken back.

Owns every change of a trust directory but the media's own metadata. Each change is whole or absent
after a crash (`publish`), and the root changes only with a threshold of the old and of the new
officers (TUF specification 1.0.34, section 6.1). Refuses to keep an old key beside a new one in
use, except for a model signer that is asked to overlap.
"""
