"""How long attention takes on a GPU, dense and sparse, and which tiles suit it; knows no ComfyUI but what it is given."""
