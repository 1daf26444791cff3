"""Write the tables of docs/benchmarks.md and of the README from the committed results.

    python -m benchmarks.tables [--results FOLDER] [--check]

Nothing is measured here: the same results give the same text. With --check nothing is
written either: status 1 if a page is not what the results say.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .__main__ import QUESTIONS, RESULTS
from .peers import OURS, PEERS, S3FIFO
from .runner import ROOT, goal_text, number, verdict

PAGE: Final = ROOT / "docs" / "benchmarks.md"
README: Final = ROOT / "README.md"
RATIOS: Final = "hit_ratios.json"

HIGHER: Final = ("calls a CPU second",)
"""Units of which more is better; of all others less is."""

IN_README: Final = (
    ("hit", "awaited, 1 argument, ttl", "a hit, 1 argument, ttl"),
    ("hit", "awaited, 2 arguments and a keyword, ttl", "a hit, 2 arguments and a keyword, ttl"),
    ("stampede", "1,000 waiters on one key", "a waiter, of 1,000 on one key"),
    ("miss", "value of 100 bytes", "a miss whose load ends at once, evicting"),
)

Results = Mapping[str, Mapping[str, Any]]
"""By minor release of Python: the answers by question."""


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the answers of each Python that has results in *folder*, the oldest first."""
    found = {}
    for path in folder.glob("*.*.json"):
        found[path.stem] = json.loads(path.read_text(encoding="utf-8"))["questions"]
    return dict(sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".")]))


def load_ratios(folder: Path = RESULTS) -> dict[str, Any] | None:
    """Return the results of hit_ratios.py, if there are any."""
    path = folder / RATIOS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


# ---- Markdown


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield _line(head)
    yield "|---" * len(head) + "|"
    for row in rows:
        yield _line(row)


def _text(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    low, middle, high = (number(value[each]) for each in ("low", "median", "high"))
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def _cases(results: Results, question: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the cases of *question* by name, each by Python."""
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    for python, answers in results.items():
        for case in answers.get(question, {}).get("cases", ()):
            cases.setdefault(case["name"], {})[python] = case
    return cases


def heading(results: Results) -> Iterator[str]:
    """Yield one line per Python: what was measured where, when, and with which releases."""
    for answers in results.values():
        each = list(answers.values())
        dates = sorted({facts["date"] for facts in each})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        versions = {name: v for facts in each for name, v in facts["versions"].items()}
        named = ", ".join(f"{name} {v}" for name, v in versions.items() if PEERS[name].pinned)
        seconds = sum(facts["seconds"] for facts in each)
        trial = " A TRIAL." if any(facts["scale"] != 1 for facts in each) else ""
        yield (
            f"- CPython {each[0]['python']}, {each[0]['machine']}, {each[0]['system']}, {when}; "
            f"{named}; {seconds:.0f} s.{trial}"
        )


def goals(results: Results) -> Iterator[str]:
    """Yield the table of all goals, with a column for each Python."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    texts: dict[tuple[str, str, str], dict[str, str]] = {}
    for question in QUESTIONS:
        for name, by_python in _cases(results, question).items():
            for python, case in by_python.items():
                for goal in case["goals"]:
                    kind = "goal" if goal["limit"] is not None else "aim"
                    # A limit may differ by Python; the row is one.
                    key = (question, name, f"{kind} {goal['of']}")
                    observed = number(goal["observed"])
                    said = verdict(goal)
                    mark = f"**{said}**" if said == "NOT MET" else said
                    rows.setdefault(key, {})[python] = f"{observed}, {mark}"
                    texts.setdefault(key, {})[python] = _goal(goal)
    table = []
    for key, cells in rows.items():
        wanted = list(dict.fromkeys(texts[key].values()))
        goal = (
            wanted[0]
            if len(wanted) == 1
            else "; ".join(f"{python}: {text}" for python, text in texts[key].items())
        )
        table.append([key[0], key[1], goal, *(cells.get(python, "-") for python in results)])
    yield from _table(["question", "job", "goal (aim)", *results], table)


def _goal(goal: Mapping[str, Any]) -> str:
    if goal["limit"] is None:
        return f"(aim: {goal_text(goal)})"
    aim = "" if goal["aim"] is None else f" (aim: {goal['aim']:g})"
    return goal_text(goal) + aim


def details(results: Results) -> Iterator[str]:
    """Yield a section for each question, with a table for each of its cases."""
    for question in QUESTIONS:
        cases = _cases(results, question)
        if not cases:
            continue
        facts = next(answers[question] for answers in results.values() if question in answers)
        yield f"\n### {question}: {facts['question']}\n"
        for name in ("workload", "rivals", "floor", "not_measured"):
            if facts[name]:
                yield f"- {name.replace('_', ' ').capitalize()}: {facts[name]}."
        for name, by_python in cases.items():
            yield f"\n**{name}**\n"
            yield from _case(by_python, list(results))


def _case(by_python: Mapping[str, Mapping[str, Any]], pythons: list[str]) -> Iterator[str]:
    unit = next(iter(by_python.values()))["unit"]
    titles = list(dict.fromkeys(title for case in by_python.values() for title in case["figures"]))
    if titles:
        with_ratio = any(case["ratios"] for case in by_python.values())
        head = [unit]
        for python in pythons:
            head += [python, f"ours / it, {python}"] if with_ratio else [python]
        rows = []
        for title in titles:
            row = [title]
            for python in pythons:
                case = by_python.get(python, {"figures": {}, "ratios": {}})
                row.append(_text(case["figures"].get(title)))
                if with_ratio:
                    row.append(_text(case["ratios"].get(title)))
            rows.append(row)
        yield from _table(head, rows)
    names = list(dict.fromkeys(name for case in by_python.values() for name in case["facts"]))
    if names:
        yield ""
        rows = [
            [name, *(number(by_python.get(p, {"facts": {}})["facts"].get(name)) for p in pythons)]
            for name in names
        ]
        yield from _table(["", *pythons], rows)


def losses(results: Results) -> Iterator[str]:
    """Yield a line for each job that a rival does better, by the medians."""
    rivals = [name for name, peer in PEERS.items() if not peer.floor and name not in (OURS, S3FIFO)]
    lines = []
    for question in QUESTIONS:
        for name, by_python in _cases(results, question).items():
            better: dict[str, list[str]] = {}
            for python, case in by_python.items():
                ours = case["figures"].get(OURS)
                for rival in rivals:
                    theirs = case["figures"].get(rival)
                    if ours is None or theirs is None or not theirs["median"]:
                        continue
                    factor = (
                        case["ratios"][rival]["median"]
                        if rival in case["ratios"]
                        else ours["median"] / theirs["median"]
                    )
                    factor = 1 / factor if case["unit"] in HIGHER else factor
                    if factor > 1:
                        better.setdefault(rival, []).append(f"{number(factor)} on {python}")
            for rival, factors in better.items():
                lines.append(
                    f"- {question}, {name}: {rival} is better by a factor of {', '.join(factors)}."
                )
    yield from lines or ["Nowhere, in what is measured here."]


def ratios(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the hit ratios: shares of the optimum, then each trace's mean over its sizes."""
    names = list(dict.fromkeys(name for row in facts["rows"] for name in row["hit_ratio"]))
    named = ", ".join(f"{name} {found}" for name, found in facts["versions"].items() if found)
    yield f"CPython {facts['python']}, {facts['date']}; {named}. {facts['workload']}."
    yield "\n![hit ratios, trace by trace](plots/hit_ratio.svg)\n"
    groups = [
        key.removeprefix("share_of_optimum_")
        for key in facts
        if key.startswith("share_of_optimum_")
    ]
    rows = []
    for group in groups:
        shares = facts[f"share_of_optimum_{group}"]
        least = facts[f"least_points_over_lru_{group}"]
        cells = [f"{shares[name]:.3f}" if name in shares else "-" for name in names]
        rows.append([group, *cells, f"{least:+.2f}"])
    head = ["share of the optimum, 500 entries and more", *names]
    yield from _table([*head, "s3fifo over LRU, least, points"], rows)
    yield ""
    rows = []
    for trace, each in by_trace(facts).items():
        rows.append([trace, *(f"{each[name]:.3f}" if name in each else "-" for name in names)])
    yield from _table(["hit ratio, mean of the sizes", *names], rows)


def by_trace(facts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the mean hit ratio of each policy over the sizes, by trace."""
    sums: dict[str, dict[str, list[float]]] = {}
    for row in facts["rows"]:
        for name, hits in row["hit_ratio"].items():
            sums.setdefault(row["trace"], {}).setdefault(name, []).append(hits)
    return {
        trace: {name: sum(each) / len(each) for name, each in names.items()}
        for trace, names in sums.items()
    }


def readme(results: Results) -> Iterator[str]:
    """Yield the short table: ours over two rivals, for each Python."""
    rivals = ("async-lru", "cachebox")
    head = ["CPU time, ours / theirs"]
    head += [f"{rival}, {python}" for rival in rivals for python in results]
    rows = []
    for question, name, title in IN_README:
        by_python = _cases(results, question).get(name, {})
        row = [title]
        for rival in rivals:
            for python in results:
                ratio = by_python.get(python, {"ratios": {}})["ratios"].get(rival)
                row.append("-" if ratio is None else _text(ratio))
        rows.append(row)
    yield from _table(head, rows)


# ---- pages


def written_into(text: str, mark: str, new: str) -> str:
    """Return *text* with *new* between the lines of *mark*.

    Raises:
        ValueError: One of the lines is missing.
    """
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"the file must hold the lines {begin} and {end}: the text goes between")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def pages(folder: Path = RESULTS) -> dict[Path, str]:
    """Return what the pages should hold."""
    results, facts = load(folder), load_ratios(folder)
    page = PAGE.read_text(encoding="utf-8")
    parts = {
        "benchmarks-goals": [*heading(results), "", *goals(results)],
        "benchmarks-losses": list(losses(results)),
        "benchmarks-details": list(details(results)),
        "benchmarks-ratios": ["Not measured yet."] if facts is None else list(ratios(facts)),
    }
    for mark, lines in parts.items():
        page = written_into(page, mark, "\n".join(lines).strip("\n"))
    short = written_into(
        README.read_text(encoding="utf-8"), "benchmarks", "\n".join(readme(results))
    )
    return {PAGE: page, README: short}


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables", description="The tables of the docs."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if stale")
    options = parser.parse_args()
    stale = False
    for path, text in pages(options.results).items():
        if path.read_text(encoding="utf-8") == text:
            continue
        stale = True
        if options.check:
            print(f"{path} is not what the results say: make plots", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"written into {path}")
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
