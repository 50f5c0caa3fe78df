"""The attention that a model's own modules prefer, which ComfyUI (0.36 and later) forgets where there is an override."""

from __future__ import annotations

from collections.abc import Callable

from .blocks import running_block
from .evaluation import Evaluation

# Where a module keeps what a checkpoint, a LoRA or a node chose for it: ``function``, None for ComfyUI's default.
CHOICE = "comfy_attention"


class UnclearPreference(LookupError):
    """Modules that cannot be told apart prefer different attention."""


def preferred_attention(evaluation: Evaluation, transformer_options: dict, is_cross: bool) -> Callable | None:
    """The function that the module of a running call prefers, None where it prefers none.

    The call does not say which module it is of. Known are the block, where the model names it, and whether the call is
    ``is_cross``; the modules that are left have to agree.

    Raises UnclearPreference where they do not.
    """
    key = (*running_block(transformer_options), is_cross)
    if key not in evaluation.preferred:
        evaluation.preferred[key] = _choices(_root(evaluation, transformer_options), is_cross)
    choices = evaluation.preferred[key]
    if len(choices) > 1:
        raise UnclearPreference
    return next(iter(choices), None)


def _root(evaluation: Evaluation, transformer_options: dict):
    """The block of a call, or the whole model."""
    block = evaluation.named_block(transformer_options)
    blocks = [block for name in evaluation.architecture.block_lists for block in getattr(evaluation.model, name)]
    return blocks[block.layer] if block is not None and block.layer < len(blocks) else evaluation.model


def _choices(root, is_cross: bool) -> set[Callable | None]:
    modules = dict(root.named_modules()) if hasattr(root, "named_modules") else {}
    found = {name: module.function for name, module in modules.items() if name.rpartition(".")[2] == CHOICE}
    alike = {function for name, function in found.items() if ("cross" in name) == is_cross}
    return alike or set(found.values())
