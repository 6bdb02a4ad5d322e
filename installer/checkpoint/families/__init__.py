"""Which model families are built, one file each, in the words of `installer.checkpoint.graph`."""
