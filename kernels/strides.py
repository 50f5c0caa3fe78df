"""What kernels can read."""

from torch import Tensor

# Bytes of which Triton asks whether an address is a multiple.
ALIGNMENT = 16


def readable(tensor: Tensor) -> Tensor:
    """``tensor``, copied only when the elements of a row are apart, which kernels do not read."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def head_stride(biases: Tensor | None) -> int | None:
    """The stride between the heads of ``[B, H, T]``; None for no tensor."""
    return None if biases is None else biases.stride(1)
