"""A small Wan-shaped video model trained on procedural video, for tests, benchmarks and the demo."""
