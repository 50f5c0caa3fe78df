"""What a report says, and how far one latent is from another."""

import re

import numpy as np


def sparse_calls(text: str) -> int:
    """Sparse calls of a report."""
    return int(re.search(r"Sparse calls: (\d+)", text)[1])


def dense_calls(text: str) -> dict[str, int]:
    """Calls that stayed dense, by the name of the reason."""
    return {name: int(count) for count, name in re.findall(r"^  (\d+) ([a-z-]+):", text, re.MULTILINE)}


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what was expected."""
    return np.linalg.norm(value - expected) / np.linalg.norm(expected)
