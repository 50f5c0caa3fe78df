"""One attention call of a patched model: where it is, why it stays dense, and what computes it."""
