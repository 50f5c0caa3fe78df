"""Models under torch.compile."""

from __future__ import annotations

# Where ComfyUI's compile nodes leave in ``model_options`` how they compile.
COMPILED = "torch_compile_kwargs"


def uncompiled(diffusion_model):
    """The diffusion model itself where torch.compile wraps it and hides its class."""
    return getattr(diffusion_model, "_orig_mod", diffusion_model)


def is_compiled(diffusion_model) -> bool:
    """Whether the model, or some block of it, is compiled."""
    modules = getattr(diffusion_model, "modules", tuple)
    return hasattr(diffusion_model, "_orig_mod") or any(hasattr(module, "_orig_mod") for module in modules())
