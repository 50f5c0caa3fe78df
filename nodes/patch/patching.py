"""What the nodes that patch a MODEL share."""

from __future__ import annotations

import textwrap

from comfy.patcher_extension import CallbacksMP, WrappersMP
from server import PromptServer

from .override import Patch

# Letters in a line of a node as wide as in the workflows: the interface itself breaks lines inside words.
LETTERS = 40
# Wrappers and callbacks carry this key, so that a second node can take the place of the first.
KEY = "svg_ear"


def patched(model, patch: Patch):
    """A clone of ``model`` that runs through ``patch``, whatever patch of this pack was there before; that one learns of it."""
    model = model.clone()
    for wrapper in model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        wrapper.__self__.recorder.taken_over_by = patch.name
    for wrapper_type, wrapper in (
        (WrappersMP.OUTER_SAMPLE, patch.outer_sample),
        (WrappersMP.APPLY_MODEL, patch.apply_model),
    ):
        model.remove_wrappers_with_key(wrapper_type, KEY)
        model.add_wrapper_with_key(wrapper_type, KEY, wrapper)
    model.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, patch.cleanup)
    return model


def tell(node_id, text: str) -> None:
    """Show a few words on a node; older servers have no way to."""
    send = getattr(PromptServer.instance, "send_progress_text", None)
    if send is not None and node_id is not None:
        send(textwrap.fill(text, LETTERS), node_id)
