"""How far a clip is from another: uint8 frames ``[T, H, W, 3]`` each, on one device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 255.0
# The window and constants of Wang et al., Image quality assessment, 2004.
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
# The constant of Xue et al., Gradient magnitude similarity deviation, 2014, for gradients of 8-bit images.
GRADIENT_CONSTANT = 170.0


def psnr(frames: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal clips."""
    return _decibels((frames.float() - reference.float()).square().mean().item())


def flicker_psnr(frames: Tensor, reference: Tensor) -> float:
    """PSNR of the differences between neighbouring frames, in dB: errors that stay still do not count, flicker does."""
    changes, expected = (clip.float().diff(dim=0) for clip in (frames, reference))
    return _decibels((changes - expected).square().mean().item())


def ssim(frames: Tensor, reference: Tensor) -> float:
    """Structural similarity of luma, mean over pixels and frames: 1 for equal clips. Frames of at least 11x11 pixels."""
    one, two = _luma(frames), _luma(reference)
    mean_one, mean_two = _blurred(one), _blurred(two)
    variance_one = _blurred(one.square()) - mean_one.square()
    variance_two = _blurred(two.square()) - mean_two.square()
    covariance = _blurred(one * two) - mean_one * mean_two
    likeness = (2 * mean_one * mean_two + C1) * (2 * covariance + C2)
    return (likeness / ((mean_one.square() + mean_two.square() + C1) * (variance_one + variance_two + C2))).mean().item()


def gradient_deviation(frames: Tensor, reference: Tensor) -> float:
    """Gradient magnitude similarity deviation of luma, mean over frames: 0 for equal clips, larger for broken edges."""
    one, two = (_gradients(F.avg_pool2d(_luma(clip), 2)) for clip in (frames, reference))
    similarity = (2 * one * two + GRADIENT_CONSTANT) / (one.square() + two.square() + GRADIENT_CONSTANT)
    return similarity.flatten(1).std(dim=1, correction=0).mean().item()


def _decibels(squared_error: float) -> float:
    return 10 * math.log10(PEAK**2 / squared_error) if squared_error else math.inf


def _luma(frames: Tensor) -> Tensor:
    """``[T, 1, H, W]``."""
    return (frames.float() @ frames.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32))[:, None]


def _blurred(images: Tensor) -> Tensor:
    """Gaussian window means, without the border that a window would leave."""
    offsets = torch.arange(WINDOW, device=images.device) - WINDOW // 2
    window = torch.softmax(-offsets.square() / (2 * SIGMA**2), dim=0)
    return F.conv2d(F.conv2d(images, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))


def _gradients(images: Tensor) -> Tensor:
    """Gradient magnitudes by Prewitt's operator, without the border, where it would see the edge of the frame."""
    across = images.new_tensor([[1.0, 0.0, -1.0]]).expand(3, 3) / 3
    kernels = torch.stack((across, across.T))[:, None]
    return F.conv2d(images, kernels).square().sum(1, keepdim=True).sqrt()
