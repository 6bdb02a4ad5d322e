"""What the operator and the packager type: the `appliance` command and what stands behind it."""
