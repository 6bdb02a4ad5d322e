"""What the endpoint adds to the engine: time, throughput and processor."""
