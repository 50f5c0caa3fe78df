"""``python -m benchmarks.quality``; see :mod:`.bench`."""

from .bench import main

raise SystemExit(main())
