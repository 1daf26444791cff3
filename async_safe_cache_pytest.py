"""The pytest plugin: tests run under many schedules, a clock, and a cache that is checked.

    @pytest.mark.interleavings(schedules=500)   this async test is explored
    fake_clock, fresh_cache                     made anew for each test, and for each schedule
    --replay-schedule "order 1/2 ..."           one schedule again

pytest imports this module in every run of every project that has the package
installed. So it imports nothing of the package until it is used.

An explored test runs in loops of the explorer's own, whatever other plugins do
with async tests. It is therefore an item of its own kind, whose function is no
coroutine function: pytest-asyncio and anyio leave it alone, in any order.

PYTEST_DONT_REWRITE: it asserts nothing, and may be imported before pytest looks.
"""

import asyncio
import functools
import inspect
import shlex
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

if TYPE_CHECKING:
    from async_safe_cache import AsyncSafeCache
    from async_safe_cache.testing import FakeClock

__all__ = ["fake_clock", "fresh_cache"]

MARK: Final = "interleavings"

_HELP: Final = (
    f"{MARK}(schedules=500, seed=0, policy=('fifo', 'random', 'pct'), cancel=None, "
    "max_steps=10_000, max_shrinks=1_000): run this async test under many schedules, as "
    "async_safe_cache.testing.explore does, and fail with the shortest one that fails."
)

_PROPERTY: Final = "interleavings"
"""Name of the user property (in JUnit files too) that tells what was explored."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --replay-schedule."""
    parser.getgroup("async_safe_cache").addoption(
        "--replay-schedule",
        metavar="SCHEDULE",
        help=f"run the one selected test marked {MARK} under this schedule, as its failure printed",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _HELP)


# -- fixtures


@pytest.fixture
def fake_clock() -> "FakeClock":
    """Return a clock that moves when told; under `interleavings`, that of the schedule."""
    from async_safe_cache.testing import FakeClock

    return FakeClock()


@pytest.fixture
def fresh_cache(fake_clock: "FakeClock") -> "Iterator[AsyncSafeCache]":
    """Return an empty cache on `fake_clock`; it is checked and closed when the test is over."""
    from async_safe_cache import AsyncSafeCache

    cache = AsyncSafeCache("fresh", clock=fake_clock)
    yield cache
    cache.check()
    # A loop of its own, for the test's may be closed, or another plugin's; not asyncio.run, which
    # would take away the current loop of those that set one. Nobody runs now who could be waited
    # for: what the test left in a loop that lives on is cancelled when that loop runs again.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(cache.aclose(timeout=0))
    finally:
        loop.close()


_PER_SCHEDULE: Final = ("fake_clock", "fresh_cache")


# -- collection


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(
    collector: pytest.Module | pytest.Class,
) -> Generator[None, Any, Any]:
    """Turn the marked tests of *collector* into explored ones."""
    made: Any = yield
    nodes: list[Any] = [made] if made is None or isinstance(made, pytest.Collector) else made
    explored: list[Any] = []
    for node in nodes:
        mark = node.get_closest_marker(MARK) if isinstance(node, pytest.Function) else None
        if mark is None:
            explored.append(node)
        elif not _is_for_another_backend(node):
            explored.append(ExploredFunction.of(node, mark, collector))
    return made if explored == nodes else explored


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse marks that would do nothing."""
    for item in items:
        if item.get_closest_marker(MARK) and not isinstance(item, ExploredFunction):
            raise pytest.UsageError(
                f"{item.nodeid}: mark.{MARK} can explore functions and methods of plain classes, "
                f"not a {type(item).__name__}; write it as an async def test of pytest's own"
            )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to replay one schedule in several tests."""
    if session.config.getoption("replay_schedule") is None:
        return
    explored = [item for item in session.items if isinstance(item, ExploredFunction)]
    if len(explored) != 1:
        raise pytest.UsageError(
            f"--replay-schedule needs exactly one selected test with mark.{MARK}, not "
            f"{len(explored)}: name it, as the failure that printed the schedule does"
        )


def _is_for_another_backend(node: Any) -> bool:
    """Tell whether anyio's plugin made *node* for trio: an explored test runs on asyncio, once."""
    callspec = getattr(node, "callspec", None)
    backend: Any = callspec.params.get("anyio_backend", "asyncio") if callspec else "asyncio"
    return (backend if isinstance(backend, str) else backend[0]) != "asyncio"


def _options(mark: pytest.Mark) -> dict[str, Any]:
    """Return the options of *mark* for `explore`.

    Raises:
        TypeError, ValueError: They are none.
    """
    from async_safe_cache.testing import explore

    options: dict[str, Any] = dict(mark.kwargs)
    known = [each for each in inspect.signature(explore).parameters if each != "scenario"]
    if mark.args:
        raise TypeError(f"it takes keyword arguments only: {', '.join(known)}")
    for option in options:
        if option not in known:
            raise TypeError(f"{option!r} is no option of it; it has {', '.join(known)}")

    async def nothing() -> None: ...

    # The explorer itself checks the values; there is no task to cancel in nothing.
    cancel = options.get("cancel")
    if cancel is not None and not (isinstance(cancel, str) and cancel):
        raise TypeError(f"cancel must be the name of a task, or None, not {cancel!r}")
    schedules = options.get("schedules", 1)
    if type(schedules) is int:
        schedules = min(schedules, 1)
    trial: dict[str, Any] = {**options, "cancel": None, "schedules": schedules}
    explore(nothing, **trial)
    return options


# -- running


class ExploredFunction(pytest.Function):
    """A test that is run under many schedules.

    Attributes:
        options: Those of `explore`.
    """

    options: dict[str, Any]

    @classmethod
    def of(cls, node: Any, mark: pytest.Mark, collector: Any) -> "ExploredFunction":
        """Return *node*, which has the *mark*, as an explored test.

        Raises:
            CollectError: It cannot be explored, or not so.
        """
        problem = _problem(node)
        options: dict[str, Any] = {}
        if not problem:
            try:
                options = _options(mark)
            except (TypeError, ValueError) as error:
                problem = f"mark.{MARK}: {error}"
        if problem:
            raise collector.CollectError(f"{node.nodeid}: {problem}")
        made: ExploredFunction = cast("Any", cls).from_parent(
            node.parent,
            name=node.name,
            callspec=getattr(node, "callspec", None),
            fixtureinfo=node._fixtureinfo,
            keywords=node.keywords,
            originalname=node.originalname,
        )
        made.options = options
        return made

    def _getobj(self) -> Callable[..., None]:
        test: Any = super()._getobj()  # type: ignore[no-untyped-call]

        @functools.wraps(test)
        def explored(**arguments: Any) -> None:
            self._explore(test, arguments)

        return explored

    def runtest(self) -> None:
        """Explore. Not by pytest_pyfunc_call, in which other plugins expect their own tests."""
        names: tuple[str, ...] = self._fixtureinfo.argnames
        self.obj(**{name: self.funcargs[name] for name in names})

    def _explore(self, test: Callable[..., Any], arguments: dict[str, Any]) -> None:
        from async_safe_cache import AsyncSafeCache
        from async_safe_cache.testing import explore, replay

        once = {name: each for name, each in arguments.items() if name not in _PER_SCHEDULE}

        async def scenario(clock: "FakeClock") -> None:
            __tracebackhide__ = True
            again: dict[str, Any] = {}
            if "fake_clock" in arguments:
                again["fake_clock"] = clock
            if "fresh_cache" not in arguments:
                await test(**once, **again)
                return
            cache = AsyncSafeCache("fresh", clock=clock)
            try:
                await test(**once, **again, fresh_cache=cache)
                cache.check()
            finally:
                await cache.aclose()

        scenario.__qualname__ = test.__qualname__
        schedule = self.config.getoption("replay_schedule")
        try:
            if schedule is not None:
                replay(scenario, schedule, max_steps=self.options.get("max_steps", 10_000))
                return
            told = str(explore(scenario, **self.options))
        except ValueError as error:
            # Not the test's, which would be an ExplorationError: a schedule that does not fit, or
            # a task to cancel that does not exist.
            pytest.fail(f"mark.{MARK}: {error}", pytrace=False)
        self.user_properties.append((_PROPERTY, told))
        self.add_report_section("call", MARK, told)

    def repr_failure(self, excinfo: Any) -> Any:  # type: ignore[override]
        """Show the assertion that failed, and the schedule; not the machinery between."""
        from async_safe_cache.testing import ExplorationError

        plain: Any = super().repr_failure
        error = excinfo.value
        if not isinstance(error, ExplorationError):
            return plain(excinfo)
        text, _, _ = str(error).partition("to run it again:")
        line = f"pytest {shlex.quote(self.nodeid)} --replay-schedule {shlex.quote(error.schedule)}"
        text = f"{text.rstrip()}\n\nto run it again:  {line}"
        cause: BaseException | None = error.cause
        if cause is None or cause.__traceback__ is None:
            return text
        info: Any = cast("Any", pytest.ExceptionInfo).from_exception(cause)
        shown = plain(info)
        if not hasattr(shown, "addsection"):
            return f"{shown}\n\n{text}"
        shown.addsection("the schedule that fails", text)
        return shown


def _problem(node: Any) -> str:
    """Return why *node* cannot be explored; empty if it can."""
    if not inspect.iscoroutinefunction(node.obj):
        return (
            f"mark.{MARK} explores the schedules of an `async def` test, and this one is not: "
            "it has no awaits at which another task could run; take the mark away, or make it async"
        )
    for name, definitions in node._fixtureinfo.name2fixturedefs.items():
        definition = definitions[-1]
        function = definition.func
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            return (
                f"the fixture {name!r} is async, and mark.{MARK} runs the test in loops of its "
                "own, one per schedule: make in the test what the fixture makes"
            )
        ours = function.__module__ == __name__
        if name in _PER_SCHEDULE and not ours:
            return (
                f"the fixture {name!r} is not this plugin's but one of {function.__module__}, "
                f"and mark.{MARK} needs a new one for each schedule: rename it, and make in the "
                "test what it makes"
            )
        stale = [each for each in definition.argnames if each in _PER_SCHEDULE and not ours]
        if stale:
            return (
                f"the fixture {name!r} asks for {stale[0]!r}, which mark.{MARK} makes anew for "
                f"each schedule, while {name!r} is made once: make in the test what it makes"
            )
    return ""


# -- telling


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many tests were explored, and with -v how far each."""
    told = [
        (report.nodeid, text)
        for report in terminalreporter.stats.get("passed", ())
        for name, text in getattr(report, "user_properties", ())
        if name == _PROPERTY and report.when == "call"
    ]
    if not told or terminalreporter.verbosity < 0:
        return
    if terminalreporter.verbosity > 0:
        terminalreporter.section(MARK)
        for nodeid, text in told:
            terminalreporter.write_line(f"{nodeid}: {text}")
        return
    exhausted = sum(text.endswith("exhausted: yes") for _, text in told)
    terminalreporter.write_line(
        f"{MARK}: {len(told)} explored, {exhausted} of them exhaustively; -v tells how far each"
    )
