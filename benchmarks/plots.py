"""Draw the committed results as SVG: hit, stampede, sweep stall, hit ratio.

    python -m benchmarks.plots [--results FOLDER] [--to FOLDER]

Nothing is measured here: the same results and the same matplotlib give the same bytes.
Needs matplotlib: pip install -e '.[benchmarks]'.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from .__main__ import RESULTS
from .peers import OURS, PEERS, S3FIFO
from .runner import ROOT, number
from .tables import Results, by_trace, load, load_ratios

PLOTS: Final = ROOT / "docs" / "plots"

COLOURS: Final = {OURS: "#1b7837", S3FIFO: "#7fbf7b"}
RIVAL: Final = "#8da0cb"
FLOOR: Final = "#cccccc"

HITS: Final = (
    "awaited, 1 argument, no ttl",
    "awaited, 1 argument, ttl",
    "awaited, 2 arguments and a keyword, ttl",
    "def, 1 argument, no ttl",
)
POLICIES: Final = {"lru": "o", "s3fifo": "D", "theine": "^", "cachebox": "s", "optimum": "|"}


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "async_safe_cache",  # or every run gives new ids
            "svg.fonttype": "none",  # text stays text
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    from matplotlib import pyplot

    return pyplot


def _case(results: Results, python: str, question: str, name: str) -> Mapping[str, Any] | None:
    cases = results[python].get(question, {}).get("cases", ())
    return next((case for case in cases if case["name"] == name), None)


def _colour(title: str) -> str:
    if title in COLOURS:
        return COLOURS[title]
    peer = PEERS.get(title)
    return FLOOR if peer is None or peer.floor else RIVAL


def _bars(
    results: Results, question: str, names: tuple[str, ...], title: str, unit: str, *, log: bool
) -> Any:
    """Return a figure with a row for each case and a column for each Python."""
    figure, grid = _pyplot().subplots(
        len(names),
        len(results),
        figsize=(4.6 * len(results), 1.9 * len(names) + 0.6),
        squeeze=False,
        layout="constrained",
        sharex="row",
    )
    figure.suptitle(title)
    for row, name in enumerate(names):
        for column, python in enumerate(results):
            axes = grid[row][column]
            case = _case(results, python, question, name)
            axes.set_title(f"{name}, {python}" if len(names) > 1 else python, fontsize=9)
            if case is None:
                continue
            figures = case["figures"]
            titles = list(figures)[::-1]
            middles = [figures[each]["median"] for each in titles]
            spread = [
                [figures[each]["median"] - figures[each]["low"] for each in titles],
                [figures[each]["high"] - figures[each]["median"] for each in titles],
            ]
            bars = axes.barh(titles, middles, xerr=spread, color=[_colour(t) for t in titles])
            axes.bar_label(bars, [f" {number(each)}" for each in middles], fontsize=8)
            if log:
                axes.set_xscale("log")
            axes.margins(x=0.18)
            if row == len(names) - 1:
                axes.set_xlabel(unit)
    return figure


def hit(results: Results) -> Any:
    """Draw what a hit costs."""
    return _bars(results, "hit", HITS, "One hit", "ns of CPU time, median and quartiles", log=False)


def stampede(results: Results) -> Any:
    """Draw what a waiter costs."""
    return _bars(
        results,
        "stampede",
        ("1,000 waiters on one key",),
        "1,000 waiters on one absent key",
        "us of CPU time a waiter, its task included",
        log=False,
    )


def sweep(results: Results) -> Any:
    """Draw how long a loop stands still."""
    return _bars(
        results,
        "sweep",
        ("longest stall, CPU",),
        "500,000 expired of 1,000,000 entries: the longest turn of the event loop",
        "ms of CPU time, logarithmic",
        log=True,
    )


def hit_ratio(facts: Mapping[str, Any]) -> Any:
    """Draw what each policy keeps, trace by trace."""
    traces = by_trace(facts)
    figure, axes = _pyplot().subplots(figsize=(8.4, 0.28 * len(traces) + 1.4), layout="constrained")
    names = list(traces)[::-1]
    for policy, marker in POLICIES.items():
        known = [(traces[name][policy], name) for name in names if policy in traces[name]]
        if known:
            axes.scatter(
                [value for value, _ in known],
                [names.index(name) for _, name in known],
                marker=marker,
                s=90 if marker == "|" else 26,
                label=policy,
                color={"lru": COLOURS[OURS], "s3fifo": COLOURS[S3FIFO]}.get(
                    policy, "black" if policy == "optimum" else RIVAL
                ),
            )
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1)
    axes.set_xlabel("hit ratio, mean over the sizes of the cache")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=len(POLICIES), frameon=False)
    return figure


def draw(results: Results, facts: Mapping[str, Any] | None, to: Path) -> list[Path]:
    """Write every plot that there are results for into *to*."""
    plots: dict[str, Callable[[], Any]] = {
        each.__name__: lambda each=each: each(results)
        for each in (hit, stampede, sweep)
        if any(each.__name__ in answers for answers in results.values())
    }
    if facts is not None:
        plots["hit_ratio"] = lambda: hit_ratio(facts)
    to.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, plot in plots.items():
        figure = plot()
        path = to / f"{name}.svg"
        # No date, and no release of the program that drew it.
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        _pyplot().close(figure)
        text = path.read_text(encoding="utf-8")
        path.write_text("\n".join(map(str.rstrip, text.splitlines())) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def main() -> int:
    """Draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plots", description="The results as SVG."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--to", type=Path, default=PLOTS, metavar="FOLDER")
    options = parser.parse_args()
    for path in draw(load(options.results), load_ratios(options.results), options.to):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
