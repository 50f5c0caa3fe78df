"""What a whole clip takes in ComfyUI: sampler runs of full-size models, dense and sparse, side by side."""
