"""``python -m benchmarks.calibrate``; see :mod:`.calibration.bench`."""

from .calibration.bench import main

if __name__ == "__main__":
    raise SystemExit(main())
