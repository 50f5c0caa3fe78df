"""``python -m benchmarks.demo``; see :mod:`.run`."""

import sys

try:
    from .run import main

    raise SystemExit(main())
except KeyboardInterrupt:
    print("stopped before anything was done", file=sys.stderr)
    raise SystemExit(130) from None
