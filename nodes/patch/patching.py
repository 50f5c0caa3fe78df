"""What the nodes that patch a MODEL share."""

from __future__ import annotations

import textwrap

from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..recording.record import ATTACHMENT
from .compiled import uncompiled
from .identity import layer_count, require_model
from .override import Patch

# Letters in a line of a node as wide as in the workflows: the interface itself breaks lines inside words.
LETTERS = 40
# Wrappers and callbacks carry this key, so that a second node can take the place of the first.
KEY = "svg_ear"


def patched(model, patch: Patch):
    """A clone of ``model`` that runs through ``patch``, whatever patch of this pack was there before; that one learns of it."""
    for wrapper in model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        wrapper.__self__.recorder.taken_over_by = patch.name
    model = unpatched(model)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, patch.outer_sample)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, patch.apply_model)
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, patch.cleanup)
    return model


def unpatched(model):
    """A clone of ``model`` without a patch of this pack."""
    model = model.clone()
    for wrapper_type in (WrappersMP.OUTER_SAMPLE, WrappersMP.APPLY_MODEL):
        model.remove_wrappers_with_key(wrapper_type, KEY)
    model.remove_callbacks_with_key(CallbacksMP.ON_CLEANUP, KEY)
    return model


def recorded(model, patch: Patch):
    """A clone of ``model`` that runs through ``patch``, whose runs the nodes behind the sampler find.

    Raises ValueError where the options are not of such a model.
    """
    diffusion_model = uncompiled(model.model.diffusion_model)
    layers = layer_count(diffusion_model)
    if layers is not None:
        patch.options.require_layers(layers)
    if patch.options.profile is not None:
        require_model(patch.options.profile, diffusion_model)
    model = patched(model, patch)
    model.set_attachments(ATTACHMENT, patch.recorder)
    return model


def tell(node_id, text: str) -> None:
    """Show a few words on a node; older servers have no way to."""
    # Workers of other processes patch models too, and have no server.
    from server import PromptServer

    send = getattr(PromptServer.instance, "send_progress_text", None)
    if send is not None and node_id is not None:
        send(textwrap.fill(text, LETTERS), node_id)
