"""``make demo``: one clip of the trained demo model, dense and with SVG-EAR, side by side."""
