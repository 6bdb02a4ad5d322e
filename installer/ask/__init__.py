"""`appliance ask`: retrieval over the installed handbook, and the guide's answer."""
