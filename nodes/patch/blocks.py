"""Which transformer block is running, also in models that do not say.

Some models put no ``block_index`` into ``transformer_options`` (LTX; MiniMax-H3 in ComfyUI 0.33), but all of these let a node put a
function in the place of a block, ``patches_replace["dit"][("double_block", number)]``. So for the length of one evaluation every block is
replaced by itself, which puts its number into the options that it is given. What another node put there is called in the same way.
Nothing is counted and nothing is written to the model; the number travels with the call, so threads never meet. Compiled blocks stay
compiled: what says the number is itself left out of torch.compile, and the block sees nothing but one entry more in a dictionary, as in
models that name their blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# Where the number travels in ``transformer_options``, apart from what the model itself says.
NUMBER = "svg_ear_block"


def naming_blocks(transformer_options: dict, blocks: int) -> dict:
    """``transformer_options`` of one evaluation of a model of ``blocks`` blocks, each of which then says which one it is."""
    replaced = transformer_options.get("patches_replace") or {}
    beneath = replaced.get("dit") or {}
    named = {("double_block", number): NamedBlock(number, beneath.get(("double_block", number))) for number in range(blocks)}
    return transformer_options | {"patches_replace": replaced | {"dit": beneath | named}}


def running_block(transformer_options: dict) -> tuple[str | None, int | None]:
    """Type and number of the block that an attention call is in; the number is None outside the blocks, or where nobody says it."""
    return transformer_options.get("block_type"), transformer_options.get("block_index", transformer_options.get(NUMBER))


class NamedBlock:
    """A block in its own place, or ``replacement`` that another node put there, told its number."""

    def __init__(self, number: int, replacement: Callable[[dict, dict], dict] | None = None):
        self.number, self.replacement = number, replacement

    # ComfyUI's compile node guards nothing in ``transformer_options``: compiled, the number of one block would be that of all.
    @torch.compiler.disable(recursive=False)
    def __call__(self, args: dict, extra: dict) -> dict:
        """Run the block as ComfyUI runs a replacement; ``extra`` has the ``original_block``."""
        args = {**args, "transformer_options": {**args["transformer_options"], NUMBER: self.number}}
        return extra["original_block"](args) if self.replacement is None else self.replacement(args, extra)
