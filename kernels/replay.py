"""What a computation launched, launched again for other tensors: the host then neither asks what to launch nor cuts tensors."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .numerics import ceil_div
from .strides import ALIGNMENT

if TYPE_CHECKING:
    from .triton_stages.launches import Kernel

# Pieces of memory begin at multiples of so many bytes, as those of PyTorch's allocator do.
ROUND = 512
# A length has one for each share of exact pairs, and for each way in which its tensors lie in memory.
MOST_RECORDINGS = 200
# None for a computation that does more than launch kernels.
_RECORDINGS: OrderedDict[tuple, Recording | None] = OrderedDict()
# Runs on several devices have a thread each.
_LOCK = threading.Lock()

Done = Callable[[str], None]
Computation = Callable[..., list[Tensor | None]]


def replayed(compute: Computation, key: tuple, tensors: Sequence[Tensor | None], done: Done) -> list[Tensor | None]:
    """``compute(done, *tensors)``, which the second time is a repetition of the kernels that it launched.

    Args:
        compute: has no effects but its results, new ones or views of the ``tensors``, and calls of ``done`` between launches.
        key: everything beside the tensors that decides what it launches; hashable.
        tensors: its inputs, the first of them on the device that it runs on.
        done: told when a stage ends.
    """
    # Kernels are compiled for the current device, whatever that of the tensors.
    device = torch.cuda.current_device() if tensors[0].is_cuda else None
    key = (*key, device, *_kinds(tensors))
    with _LOCK:
        is_known = key in _RECORDINGS
        if is_known:
            _RECORDINGS.move_to_end(key)
            recording = _RECORDINGS[key]
    if is_known:
        return compute(done, *tensors) if recording is None else recording.play(tensors, done)
    found, recording = _record(compute, tensors, done)
    with _LOCK:
        _RECORDINGS[key] = recording
        if len(_RECORDINGS) > MOST_RECORDINGS:
            _RECORDINGS.popitem(last=False)
    return found


def _start(tensor: Tensor) -> int:
    """Address of the memory that ``tensor`` lies in."""
    return tensor.data_ptr() - tensor.storage_offset() * tensor.itemsize


def _kinds(tensors: Sequence[Tensor | None]) -> list[tuple]:
    """Everything about the tensors but where their memory lies, save that tensors share it and that it begins at a round address."""
    starts = [tensor if tensor is None else _start(tensor) for tensor in tensors]
    return [
        ()
        if tensor is None
        else (
            *(tensor.shape, tensor.stride(), tensor.dtype, tensor.device),
            *(tensor.storage_offset(), tensor.untyped_storage().nbytes(), start % ALIGNMENT, starts.index(start)),
        )
        for tensor, start in zip(tensors, starts)
    ]


@dataclass(frozen=True)
class _Relaunch:
    """A launch.

    Attributes:
        launch: takes the arguments, addresses in the place of tensors.
        arguments: those that are no addresses; what is in the place of these does not count.
        addresses: the place of each, its piece of memory, and how many bytes it lies behind the start of that.
    """

    launch: Callable[..., None]
    arguments: list
    addresses: list[tuple[int, int, int]]

    def __call__(self, starts: dict[int, int], done: Done) -> None:
        arguments = self.arguments.copy()
        for place, piece, offset in self.addresses:
            arguments[place] = starts[piece] + offset
        self.launch(*arguments)


@dataclass(frozen=True)
class _StageEnd:
    """The end of a stage."""

    name: str

    def __call__(self, starts: dict[int, int], done: Done) -> None:
        done(self.name)


@dataclass(frozen=True)
class _Result:
    """A tensor in a piece of memory."""

    piece: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Recording:
    """What a computation does. Pieces of memory have numbers, those of the inputs first.

    Attributes:
        actions: in order; called with the address of each piece.
        results: None where there is none.
        kept: elements and their dtype of the pieces that results lie in, but for inputs.
        temporary: where in one more piece those lie that nothing is left of.
        nbytes: size of that.
    """

    actions: list[_Relaunch | _StageEnd]
    results: list[_Result | None]
    kept: dict[int, tuple[int, torch.dtype]]
    temporary: dict[int, int]
    nbytes: int

    def play(self, tensors: Sequence[Tensor | None], done: Done) -> list[Tensor | None]:
        """Do the same for other tensors of the same kinds."""
        device = tensors[0].device
        pieces = {piece: tensor for piece, tensor in enumerate(tensors) if tensor is not None}
        pieces |= {piece: torch.empty(elements, dtype=dtype, device=device) for piece, (elements, dtype) in self.kept.items()}
        starts = {piece: _start(tensor) for piece, tensor in pieces.items()}
        shared = torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        shared_start = shared.data_ptr()
        starts |= {piece: shared_start + offset for piece, offset in self.temporary.items()}
        for action in self.actions:
            action(starts, done)
        return [result and pieces[result.piece].as_strided(result.shape, result.stride, result.offset) for result in self.results]


def _record(compute: Computation, tensors: Sequence[Tensor | None], done: Done) -> tuple[list[Tensor | None], Recording | None]:
    """The results of ``compute``, and how to get them again; None where it does what cannot be repeated."""
    from .triton_stages.launches import taken_over

    recorder = _Recorder(tensors)

    def noted(stage: str) -> None:
        recorder.actions.append(_StageEnd(stage))
        done(stage)

    with recorder, taken_over(recorder.launch):
        found = compute(noted, *tensors)
    return found, recorder.recording(found)


@dataclass
class _Piece:
    """Memory that a recorded computation has.

    Attributes:
        elements, dtype: what it was allocated for.
        uses: the first and the last action that needs it; None for one that nothing has used.
        stays: whether it is an input's, or a result lies in it.
    """

    elements: int
    dtype: torch.dtype
    uses: tuple[int, int] | None = None
    stays: bool = False

    @property
    def nbytes(self) -> int:
        return ceil_div(self.elements * self.dtype.itemsize, ROUND) * ROUND


def _arranged(pieces: dict[int, _Piece]) -> tuple[dict[int, int], int]:
    """Where ``pieces`` lie in one, so that those that are needed at the same time do not overlap, and the size of that one."""
    offsets: dict[int, int] = {}
    for number, piece in sorted(pieces.items(), key=lambda item: -item[1].nbytes):
        first, last = piece.uses
        meanwhile = [other for other in offsets if pieces[other].uses[0] <= last and first <= pieces[other].uses[1]]
        offset = 0
        for other in sorted(meanwhile, key=offsets.get):
            if offset + piece.nbytes <= offsets[other]:
                break
            offset = max(offset, offsets[other] + pieces[other].nbytes)
        offsets[number] = offset
    return offsets, max((offset + pieces[number].nbytes for number, offset in offsets.items()), default=0)


class _Recorder(TorchDispatchMode):
    """Notes what is allocated and launched within the block, and whether that is all that happens to tensors."""

    def __init__(self, tensors: Sequence[Tensor | None]):
        super().__init__()
        self.actions: list[_Relaunch | _StageEnd] = []
        self._is_complete = True
        self._launches = False
        self._inputs = len(tensors)
        self._pieces = [_Piece(0, torch.uint8 if tensor is None else tensor.dtype, stays=True) for tensor in tensors]
        # The latest at each address, where one took the place of another. The first of inputs that share memory.
        self._places = {_start(tensor): piece for piece, tensor in reversed(list(enumerate(tensors))) if tensor is not None}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        if self._launches:
            return found
        if "empty" in function.__name__:
            self._allocate(found)
        else:
            given = {_start(value) for value in tree_leaves((arguments, options)) if isinstance(value, Tensor)}
            is_view = all(isinstance(value, Tensor) and (not value.numel() or _start(value) in given) for value in tree_leaves(found))
            self._is_complete &= is_view and not function._schema.is_mutable
        return found

    def launch(self, kernel: Kernel, grid: tuple[int, ...], arguments: tuple, options: dict) -> None:
        """Launch a kernel, and note how."""
        self._launches = True
        try:
            again = kernel.launch(grid, arguments, options)
        finally:
            self._launches = False
        if again is None:
            self._is_complete = False
            return
        addresses = [
            (place, self._use(value), value.data_ptr() - _start(value))
            for place, value in enumerate(arguments)
            if isinstance(value, Tensor) and value.numel()
        ]
        plain = [0 if isinstance(value, Tensor) else value for value in arguments]
        self.actions.append(_Relaunch(again, plain, addresses))

    def recording(self, found: list[Tensor | None]) -> Recording | None:
        """All that was noted, with the results ``found``."""
        results = [None if tensor is None else self._result(tensor) for tensor in found]
        if not self._is_complete:
            return None
        pieces = {number: piece for number, piece in enumerate(self._pieces) if number >= self._inputs}
        kept = {number: (piece.elements, piece.dtype) for number, piece in pieces.items() if piece.stays}
        temporary, nbytes = _arranged({number: piece for number, piece in pieces.items() if piece.uses and not piece.stays})
        return Recording(self.actions, results, kept, temporary, nbytes)

    def _allocate(self, tensor: Tensor) -> None:
        if tensor.numel():
            self._places[tensor.data_ptr()] = len(self._pieces)
            self._pieces.append(_Piece(tensor.untyped_storage().nbytes() // tensor.itemsize, tensor.dtype))

    def _use(self, tensor: Tensor) -> int:
        """The piece that ``tensor`` lies in, which the next action needs."""
        number = self._places.get(_start(tensor))
        if number is None:
            self._is_complete = False
            return 0
        piece, action = self._pieces[number], len(self.actions)
        piece.uses = (piece.uses[0] if piece.uses else action, action)
        return number

    def _result(self, tensor: Tensor) -> _Result:
        number = self._use(tensor)
        self._pieces[number].stays = True
        self._is_complete &= tensor.dtype == self._pieces[number].dtype
        return _Result(number, tensor.shape, tensor.stride(), tensor.storage_offset())
