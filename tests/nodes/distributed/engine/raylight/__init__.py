"""What SVG-EAR uses of raylight, in few lines: names, arguments and results as read in its commit 55ea37b; nothing of it is copied."""
