"""The comparison with other servers, on one machine, in one go."""
