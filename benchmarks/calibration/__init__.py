"""What a calibration of the demo model is worth."""
