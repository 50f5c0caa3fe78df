"""Benchmarks. Each writes rows to ``results/``; :mod:`.results` says what is in every row."""
