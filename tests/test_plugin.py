"""The pytest plugin, used as its users do: by pytest, on files of theirs."""

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import async_safe_cache
import async_safe_cache_pytest as plugin

pytest_plugins = ["pytester"]

OURS = plugin.__name__
ASYNCIO = "pytest_asyncio.plugin"
ANYIO = "anyio.pytest_plugin"
BARE = ("asyncio_default_fixture_loop_scope = function",)

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest on a source, with the named plugins alone; a warning is an error."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(async_safe_cache.__file__).parent.parent))

    def run(
        source: str,
        *args: str,
        plugins: Iterable[str] = (OURS,),
        ini: Iterable[str] = (),
        apart: bool = False,
    ) -> pytest.RunResult:
        lines = ["[pytest]", "filterwarnings = error", "addopts = --strict-markers", *ini]
        pytester.makeini("\n".join(lines))
        pytester.makepyfile(test_it="import asyncio, pytest\n\n" + source)
        chosen = [part for each in plugins for part in ("-p", each)]
        start = pytester.runpytest_subprocess if apart else pytester.runpytest_inprocess
        return start("-p", "no:cacheprovider", *chosen, *args)

    return run


RACY = """
from async_safe_cache.testing import pause

async def fetch(calls, key):
    calls.append(key)
    await pause()
    return len(calls)

@pytest.mark.interleavings
async def test_one_fetch():
    store, calls = {}, []

    async def price(key):
        if key not in store:
            store[key] = await fetch(calls, key)
        return store[key]

    async with asyncio.TaskGroup() as group:
        group.create_task(price("a"), name="first")
        group.create_task(price("a"), name="second")
    assert calls == ["a"]
"""

FINE = """
@pytest.mark.interleavings(schedules=20)
async def test_fine(fresh_cache):
    async def load():
        await asyncio.sleep(1)
        return 1
    assert await asyncio.gather(*(fresh_cache.get_or_load("k", load) for _ in range(3))) == [1] * 3
"""


# -- what is shown


def test_a_failing_test_shows_its_assertion_and_its_schedule_once(run: Run) -> None:
    result = run(RACY)
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert text.count("test_one_fetch fails (error)") == 1
    assert text.count("step   seconds  who") == 1
    result.stdout.fnmatch_lines(
        [
            '>       assert calls == [[]"a"[]]',
            "E       AssertionError: assert [[]'a', 'a'[]] == [[]'a'[]]",
            "*--- the schedule that fails ---*",
            "test_one_fetch fails (error): *",
            "*first *test_it.py:*in fetch*",
            "to run it again:  pytest test_it.py::test_one_fetch --replay-schedule '*'",
            "FAILED test_it.py::test_one_fetch - *assert*",
        ]
    )
    for machinery in ("_explore.py", "_loop.py", "plugin.py", "replay(", "asyncio/"):
        assert machinery not in text
    assert len(result.outlines) < 100  # CI=true shows whole diffs


def test_failures_of_a_task_group_show_its_tasks_and_no_machinery(run: Run) -> None:
    result = run(
        """
@pytest.mark.interleavings(schedules=5)
async def test_group():
    async def child():
        assert 1 == 2
    async with asyncio.TaskGroup() as group:
        group.create_task(child())
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*", "test_group fails (error): *"])
    assert "_explore.py" not in result.stdout.str()
    assert "plugin.py" not in result.stdout.str()


@pytest.mark.parametrize("style", ["short", "line", "native", "no"])
def test_every_style_of_traceback_shows_it(run: Run, style: str) -> None:
    result = run(RACY, f"--tb={style}")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    if style in ("short", "native"):
        assert "to run it again" in text
    assert "_explore.py" not in text
    assert "INTERNALERROR" not in text


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("await asyncio.get_running_loop().create_future()", "deadlock"),
        ("keep = asyncio.create_task(asyncio.sleep(60), name='late')", "leak"),
        ("import time; time.sleep(1)", "real world"),
        ("while True: await asyncio.sleep(0)", "livelock"),
    ],
)
def test_a_failure_without_an_assertion_is_told_in_one_text(run: Run, body: str, kind: str) -> None:
    result = run(
        f"""
@pytest.mark.interleavings(schedules=3, max_steps=500)
async def test_stuck():
    {body}
"""
    )
    result.assert_outcomes(failed=1)
    assert result.stdout.str().count(f"test_stuck fails ({kind})") in (1, 2)  # 2: in the summary
    result.stdout.fnmatch_lines(["to run it again:  pytest test_it.py::test_stuck *"])
    assert "_explore.py" not in result.stdout.str()  # the reader's own line is shown, no machinery


def test_a_passing_test_tells_how_far_it_was_explored(run: Run) -> None:
    once = """
@pytest.mark.interleavings(policy="exhaustive")
async def test_all():
    await asyncio.sleep(0)
"""
    run(FINE + once).stdout.fnmatch_lines(
        ["interleavings: 2 explored, 1 of them exhaustively; -v tells how far each"]
    )
    run(FINE + once, "-v").stdout.fnmatch_lines(
        [
            "test_it.py::test_fine: explored 20 schedules, * distinct, exhausted: no",
            "test_it.py::test_all: explored * exhausted: yes",
        ]
    )
    assert "interleavings" not in run(FINE, "-q").stdout.str()
    assert "interleavings" not in run("def test_plain(): pass").stdout.str()


# -- running it again


def command(result: pytest.RunResult) -> list[str]:
    """Return the arguments of the line that runs a failure again."""
    found = re.search(r"^to run it again:  pytest (.*)$", result.stdout.str(), re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


def test_the_printed_line_fails_again_in_the_same_way(run: Run) -> None:
    line = command(run(RACY))
    again = run(RACY + FINE, *line)
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["test_one_fetch fails (error): *", "found by a replay*"])
    assert command(again) == line


def test_a_schedule_that_does_not_fit_any_more_is_told_so(run: Run) -> None:
    line = command(run(RACY))
    result = run(RACY.replace("await pause()", "await pause(); await pause()"), *line)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["mark.interleavings: the schedule does not fit test_one_fetch any more: *"]
    )
    assert "_explore.py" not in result.stdout.str()


def test_a_task_to_cancel_that_does_not_exist_is_told_with_those_that_do(run: Run) -> None:
    result = run(FINE.replace("schedules=20", "cancel='leader'"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["mark.interleavings: no task named 'leader' was started; the scenario's are: task-1, *"]
    )
    assert "_explore.py" not in result.stdout.str()


def test_a_schedule_is_replayed_in_one_test_only(run: Run) -> None:
    line = command(run(RACY))[1:]
    for selection in ((), ("-k", "nothing")):
        result = run(RACY + FINE, *line, *selection)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: --replay-schedule needs exactly one selected test*"])


# -- fixtures of explored tests


def test_clock_and_cache_are_new_in_every_schedule_and_other_fixtures_are_not(run: Run) -> None:
    result = run(
        """
from async_safe_cache import AsyncSafeCache

caches, made = [], []

@pytest.fixture
def log():
    made.append(1)
    return []

@pytest.mark.interleavings(schedules=10)
async def test_new(fresh_cache, fake_clock, log, tmp_path):
    assert (type(fresh_cache), len(fresh_cache), fake_clock.now) == (AsyncSafeCache, 0, 0.0)
    caches.append(fresh_cache)
    log.append(1)
    await fresh_cache.set("k", 1, ttl=5)
    await asyncio.sleep(3)  # in the virtual time of the run, in which steps may take time too
    assert await fresh_cache.get("k") == 1
    await asyncio.sleep(2)
    assert await fresh_cache.get("k") is None
    assert 5 <= fake_clock.now < 10

def test_afterwards():
    assert len({id(each) for each in caches}) == len(caches) >= 10
    assert all(each.closed for each in caches)
    assert made == [1]
"""
    )
    result.assert_outcomes(passed=2)


def test_a_cache_that_breaks_is_found_in_the_schedule_that_breaks_it(run: Run) -> None:
    """In a process apart: here, its cache would fail this test too."""
    source = """
@pytest.mark.interleavings(schedules=5)
async def test_broken(fresh_cache):
    await fresh_cache.set("k", 1)
    fresh_cache._engine.store.bytes += 1

def test_broken_too(fresh_cache):
    fresh_cache._engine.store.bytes += 1
"""
    result = run(source, apart=True)
    result.assert_outcomes(failed=1, passed=1, errors=1)
    result.stdout.fnmatch_lines(["E *broken invariant of the store*", "test_broken fails (error)*"])
    explored = result.stdout.str().partition("_ test_broken _")[2]
    assert explored.count("plugin.py") == 0


def test_parameters_and_methods_are_explored_one_by_one(run: Run) -> None:
    result = run(
        """
class TestIt:
    pytestmark = pytest.mark.interleavings(schedules=5)
    factor = 2

    def setup_method(self):
        self.base = 10

    @pytest.mark.parametrize("n", [1, 2])
    @pytest.mark.parametrize("m", [pytest.param(3, id="three")])
    async def test_method(self, n, m, fresh_cache):
        assert (self.factor, self.base, m) == (2, 10, 3)
        await fresh_cache.set("k", n)
        assert n == 1

    @staticmethod
    async def test_static(fake_clock):
        await asyncio.sleep(1)

    @pytest.mark.skip
    async def test_skipped(self): ...

    @pytest.mark.xfail(strict=True)
    async def test_expected(self):
        assert False
""",
        "-v",
    )
    result.assert_outcomes(passed=2, failed=1, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines_random(
        ["test_it.py::TestIt::test_method?three-1? PASSED*", "test_it.py::TestIt::test_static: *"]
    )
    assert command(result)[0] == "test_it.py::TestIt::test_method[three-2]"


def test_a_task_can_be_cancelled_at_each_of_its_awaits(run: Run) -> None:
    source = """
@pytest.mark.interleavings(schedules=60, cancel="leader")
async def test_lock():
    lock = asyncio.Lock()

    async def work():
        {body}

    leader = asyncio.create_task(work(), name="leader")
    await asyncio.wait([leader])
    async with asyncio.timeout(5):
        await lock.acquire()
"""
    leaks = "await lock.acquire(); await asyncio.sleep(1); lock.release()"
    result = run(source.format(body=leaks))
    result.assert_outcomes(failed=1)
    assert "leader@" in command(result)[-1]
    sound = "async with lock: await asyncio.sleep(1)"
    result = run(source.format(body=sound), "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*explored * cancellations, exhausted: *"])


# -- what is refused, where it is written

TEST = "async def test_it(): ..."
ASKS = "@pytest.mark.interleavings\nasync def test_it({}): ..."


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "@pytest.mark.interleavings\ndef test_it(): ...",
            "an `async def` test, and this one is not",
        ),
        (
            f"@pytest.mark.interleavings(shedules=5)\n{TEST}",
            "'shedules' is no option of it; it has",
        ),
        (f"@pytest.mark.interleavings(500)\n{TEST}", "it takes keyword arguments only: schedules,"),
        (f"@pytest.mark.interleavings(schedules=0)\n{TEST}", "schedules=0 must be at least 1"),
        (f"@pytest.mark.interleavings(schedules='5')\n{TEST}", "schedules must be an int, not str"),
        (f"@pytest.mark.interleavings(seed=None)\n{TEST}", "seed must be an int, not NoneType"),
        (f"@pytest.mark.interleavings(policy='rand')\n{TEST}", "policy"),
        (f"@pytest.mark.interleavings(cancel=1)\n{TEST}", "cancel must be the name of a task"),
        (f"@pytest.mark.interleavings(max_steps=-1)\n{TEST}", "max_steps=-1 must be at least 1"),
        (f"@pytest.fixture\nasync def db(): ...\n{ASKS.format('db')}", "fixture 'db' is async"),
        (
            f"@pytest.fixture(autouse=True)\nasync def db(): yield\n{ASKS.format('')}",
            "the fixture 'db' is async",
        ),
        (
            f"@pytest.fixture\ndef prices(fresh_cache): ...\n{ASKS.format('prices')}",
            "the fixture 'prices' asks for 'fresh_cache', which",
        ),
        (
            f"@pytest.fixture\ndef fake_clock(): ...\n{ASKS.format('fresh_cache')}",
            "the fixture 'fake_clock' is not this plugin's but one of test_it",
        ),
    ],
)
def test_what_cannot_be_explored_is_an_error_of_its_file(
    run: Run, source: str, message: str
) -> None:
    result = run(source)
    result.assert_outcomes(errors=1)
    text = " ".join(result.stdout.str().split())
    assert " ".join(message.split()) in text
    assert "test_it.py::test_it" in text
    assert "plugin.py" not in text  # the message alone


def test_a_mark_that_would_do_nothing_is_refused(run: Run) -> None:
    result = run(
        """
import unittest

class TestOld(unittest.IsolatedAsyncioTestCase):
    @pytest.mark.interleavings
    async def test_it(self): ...
"""
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*TestOld::test_it: mark.interleavings can explore functions*"])


def test_the_marker_is_known_and_explained(run: Run) -> None:
    run("", "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.interleavings(schedules=500, seed=0, policy=*): run this async test*"]
    )


def test_the_help_of_the_marker_names_the_options_of_the_explorer() -> None:
    import inspect

    from async_safe_cache.testing import explore

    wanted = {
        name: each.default
        for name, each in inspect.signature(explore).parameters.items()
        if name != "scenario"
    }
    told = eval(f"dict{plugin._HELP[len(plugin.MARK) : plugin._HELP.index('):') + 1]}")
    assert told == wanted


# -- fixtures of other tests


def test_the_fixtures_serve_tests_of_every_kind(run: Run) -> None:
    result = run(
        """
caches = []

def test_sync(fresh_cache, fake_clock):
    caches.append(fresh_cache)
    assert len(fresh_cache) == 0 == fake_clock.now
    asyncio.run(fresh_cache.set("k", 1, ttl=5))
    fake_clock.advance(4.9)
    assert fresh_cache.peek("k") == 1
    fake_clock.advance(0.1)
    assert len(fresh_cache) == 0

@pytest.mark.asyncio
async def test_async(fresh_cache):
    caches.append(fresh_cache)
    await fresh_cache.start()  # and leaves its sweeper to the fixture
    late = asyncio.create_task(fresh_cache.get_or_load("k", lambda: asyncio.sleep(60)))
    await asyncio.sleep(0)

@pytest.mark.asyncio(loop_scope="module")
async def test_in_a_loop_that_lives_on(fresh_cache):
    caches.append(fresh_cache)
    await fresh_cache.start()

@pytest.mark.asyncio(loop_scope="module")
async def test_there_it_is_over():
    await asyncio.sleep(0.01)
    assert [task for task in asyncio.all_tasks() if "sweeper" in task.get_name()] == []

def test_closed():
    assert len(set(caches)) == 3
    assert all(cache.closed for cache in caches)
""",
        "--durations=0",
        plugins=(OURS, ASYNCIO),
        ini=BARE,
    )
    result.assert_outcomes(passed=5)
    seconds = re.findall(r"([\d.]+)s teardown", result.stdout.str())
    assert sum(map(float, seconds)) < 1, "a teardown waits for a loop that does not run"


# -- beside other plugins

MIXED = """
seen = []

@pytest.mark.interleavings(schedules=5)
async def test_explored(fake_clock):
    seen.append(type(asyncio.get_running_loop()).__name__)
    await asyncio.sleep(3600)

def test_it_ran_in_the_explorers_loop():
    assert len(seen) >= 5
    assert set(seen) == {"ScheduleLoop"}
"""
OF_ASYNCIO = """
@pytest.mark.asyncio
async def test_of_asyncio():
    assert type(asyncio.get_running_loop()).__name__ != "ScheduleLoop"

@pytest.mark.asyncio
@pytest.mark.interleavings(schedules=5)
async def test_marked_twice():
    seen.append(type(asyncio.get_running_loop()).__name__)
"""
OF_ANYIO = """
@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_of_anyio(anyio_backend):
    assert anyio_backend == "asyncio"
    assert type(asyncio.get_running_loop()).__name__ != "ScheduleLoop"

@pytest.mark.anyio
@pytest.mark.interleavings(schedules=5)
async def test_marked_for_anyio_too():
    seen.append(type(asyncio.get_running_loop()).__name__)

@pytest.mark.parametrize("anyio_backend", ["trio", ("asyncio", {})])
@pytest.mark.interleavings(schedules=5)
async def test_of_backends(anyio_backend):
    assert anyio_backend == ("asyncio", {})
"""


def company() -> list[tuple[tuple[str, ...], str]]:
    """Every order of the plugins, with each absent, in each mode of pytest-asyncio."""
    return [
        (order, mode)
        for others in ((), (ASYNCIO,), (ANYIO,), (ASYNCIO, ANYIO))
        for order in itertools.permutations((OURS, *others))
        for mode in (("auto", "strict") if ASYNCIO in others else ("",))
    ]


@pytest.mark.parametrize(("plugins", "mode"), company())
def test_it_works_beside_other_plugins_in_every_order(
    run: Run, plugins: tuple[str, ...], mode: str
) -> None:
    source, ini, passed = MIXED, [], 2
    if mode:
        source += OF_ASYNCIO
        ini += [*BARE, f"asyncio_mode = {mode}"]
        passed += 2
    if ANYIO in plugins:
        source += OF_ANYIO
        passed += 3
    run(source, plugins=plugins, ini=ini).assert_outcomes(passed=passed)


def test_marks_of_a_whole_module_for_other_plugins_do_no_harm(run: Run) -> None:
    """pytest-asyncio warns of an asyncio mark on what is no coroutine function; this is one."""
    source = "pytestmark = [pytest.mark.asyncio, pytest.mark.anyio]\n" + MIXED.replace(
        "def test_it_ran", "async def test_it_ran"
    )
    for mode in ("auto", "strict"):
        result = run(source, plugins=(ASYNCIO, OURS, ANYIO), ini=(*BARE, f"asyncio_mode = {mode}"))
        assert result.parseoutcomes()["passed"] >= 2
        assert set(result.parseoutcomes()) == {"passed"}


def test_without_the_plugin_the_mark_is_unknown(run: Run) -> None:
    run(FINE, plugins=()).assert_outcomes(errors=1)


# -- at no cost


def test_the_plugin_imports_nothing_of_the_package() -> None:
    """pytest imports it in each run of every project of the environment."""
    script = f"""
import asyncio, importlib.util, pytest, sys
spec = importlib.util.spec_from_file_location("the_plugin", {str(Path(plugin.__file__))!r})
module = importlib.util.module_from_spec(spec)
before = set(sys.modules)
spec.loader.exec_module(module)
print(sorted(set(sys.modules) - before))
"""
    result = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
