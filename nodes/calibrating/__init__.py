"""What a calibrating run gathers, and the files that it is kept in."""
