"""The command line: `async-safe-cache demo`, or `python -m async_safe_cache demo`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

_INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended


def _version() -> str:
    try:
        return version("async-safe-cache")
    except PackageNotFoundError:
        return "(not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        0, or 1 if a promise of the demo is broken, or 130 after Ctrl-C.

    Raises:
        SystemExit: The arguments are wrong, or ask for help or the version.
    """
    parser = argparse.ArgumentParser(
        prog="async-safe-cache",
        description="A coalesced, bounded, race-free in-memory cache for asyncio and threads.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="show on real work what fails without the library, and measure what holds with it",
        description="Six stories, each told without and with the library. "
        "Takes about 15 seconds; ends with status 1 if any promise is broken.",
    )
    demo.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(argv)

    from . import _demo  # only who asks for the demo waits for what it needs

    try:
        return _demo.main(version=_version(), as_json=options.json)
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
