"""`python -m benchmarks.family`: what tools/figures runs."""

import sys

from benchmarks.family.cli import main

sys.exit(main())
