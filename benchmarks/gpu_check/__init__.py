"""The check of a GPU that SVG-EAR GPU Check makes, without ComfyUI."""
