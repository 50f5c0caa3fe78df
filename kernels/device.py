"""What a device can run."""

import torch

SUPPORTED_TYPES = ("cpu", "cuda")


def unavailable_reason(device: torch.device) -> str | None:
    """Why SVG-EAR cannot run on ``device``, or None when it can.

    ROCm devices appear as ``cuda`` in torch.
    """
    if device.type in SUPPORTED_TYPES:
        return None
    return f"device type {device.type!r} is not supported (supported: {', '.join(SUPPORTED_TYPES)})"
