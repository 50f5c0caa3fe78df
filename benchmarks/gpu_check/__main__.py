"""``python -m benchmarks.gpu_check``; see :mod:`.bench`."""

from .bench import main

raise SystemExit(main())
