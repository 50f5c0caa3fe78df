"""``python -m benchmarks.runs``; see :mod:`.bench`."""

from .bench import main

raise SystemExit(main())
