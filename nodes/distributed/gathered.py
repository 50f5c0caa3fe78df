"""The order of the tokens that a GPU has after the all-to-all of sequence parallelism, and the way there and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...kernels.numerics import ceil_div


@dataclass(frozen=True)
class Gathered:
    """Tokens that several ranks share, as Ulysses' all-to-all leaves them: all tokens of some heads.

    The engine pads each stream of tokens, such as the text and the video, to a multiple of the ranks and gives every rank a part of
    each. Gathered, the parts of rank 0 come first, then those of rank 1. Raises ValueError for streams without any token.

    Attributes:
        streams: tokens of each stream without the padding, in the order in which a rank holds them.
        ranks: how many share the tokens.
    """

    streams: tuple[int, ...]
    ranks: int

    def __post_init__(self):
        if self.ranks < 1 or min(self.streams, default=-1) < 0 or not sum(self.streams):
            raise ValueError(f"streams are {self.streams} on {self.ranks} ranks; a stream has 0 tokens or more, all together at least one")

    def __len__(self):
        """Tokens of the gathered sequence, with the padding."""
        return self.ranks * sum(self._parts)

    @property
    def _parts(self) -> list[int]:
        """Tokens of each stream that a rank holds, with the padding."""
        return [ceil_div(tokens, self.ranks) for tokens in self.streams]

    def collect(self, tensor: Tensor) -> Tensor:
        """The streams one after the other, ``[B, sum(streams), H, D]``, without the padding, of a gathered ``[B, len(self), H, D]``.

        A single stream is not copied.
        """
        if len(self.streams) == 1:
            return tensor[:, : self.streams[0]]
        parts = tensor.unflatten(1, (self.ranks, -1)).split(self._parts, dim=2)
        return torch.cat([part.flatten(1, 2)[:, :tokens] for part, tokens in zip(parts, self.streams)], dim=1)

    def spread(self, tensor: Tensor) -> Tensor:
        """The way back from ``[B, sum(streams), H, D]``, with zeros as padding."""
        parts = []
        for stream, tokens, part in zip(tensor.split(self.streams, dim=1), self.streams, self._parts):
            missing = part * self.ranks - tokens
            padded = pad(stream, (0, 0, 0, 0, 0, missing)) if missing else stream
            parts.append(padded.unflatten(1, (self.ranks, part)))
        return (torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]).flatten(1, 2)
