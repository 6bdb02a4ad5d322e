"""One run on a GPU machine: which provider serves, how exactly, how fast, beside a peer."""
