"""Adapters beside the model that they change.

adapters.py: added and removed while it serves
    ├── weights.py   read from a bundle
    ├── bank.py      those of all that are loaded, as graphs read them
    └── graphs.py    runs the graphs that have room for them
"""
