"""Images in prompts: decoded apart, cut into patches, seen by a tower, placed among the tokens."""
