"""``python -m benchmarks.speed``; see :mod:`.bench`."""

from .bench import main

raise SystemExit(main())
