"""Run the story: `python -m examples.market_data`."""

import sys

from .compare import main

if __name__ == "__main__":
    sys.exit(main())
