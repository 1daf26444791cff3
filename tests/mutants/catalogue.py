"""The planted bugs, each a patch of one place, and the promises that they break."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["MUTANTS", "PROMISES", "Mutant", "StalePatchError", "patched"]

ROOT = Path(__file__).parent.parent.parent

PROMISES = {
    "§3.1": "one joinable load per key, whoever asks",
    "§3.2": "a load belongs to the cache and sees its first caller's context",
    "§3.3": "cancelling a caller cancels that caller only; the last one takes the load along",
    "§3.4": "nobody joins a load that is being cancelled, and none runs beside it for its grace",
    "§3.5": "a failure costs one load, reaches all as it was, and is not kept",
    "§3.6": "a load cancelled from inside does not cancel those who wait",
    "§3.7": "no cycle of loads hangs, and nothing else is called one",
    "§3.8": "running loads are no entries",
    "§3.9": "a plain `def` loads in one thread, and no thread or loop blocks itself",
    "§3.10": "a load whose loop died holds nobody up",
    "§4": "after a write returned, no read sees a value whose load began before it",
    "§5": "an expired value is never served, and a fresh one never lost to time",
    "§6": "bounds hold after every operation, and all that is kept is bounded",
    "§7": "a miss tells its true reason",
    "§8": "user code never runs under a lock",
    "§9": "equal calls share a key, different ones never do",
    "§10": "what a caller is handed, what is kept and what a load sees is as its options say",
    "§11": "a slow, failing or hung origin keeps nobody waiting beyond what it allowed, and what "
    "is loaded ahead undoes nothing and runs within its budget",
    "§12": "every call is a hit, a miss or a join, and nothing else is",
    "§13": "threads and event loops share one cache, and a forked child keeps its entries",
    "§14": "closing answers everybody, and nothing comes after it",
}
"""What is promised and built, by the numbers of docs/reliability.md."""


class StalePatchError(Exception):
    """A patch does not fit the file that it was written for."""


@dataclass(frozen=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: In kebab-case.
        line: The promise that it breaks, a key of `PROMISES`.
        what: The guard that is taken out, and what a user would see.
        file: In the package.
        old: Occurs in the file exactly once.
        new: Stands in its place.
        found_by: Scenarios of the explorer by name, tests of the suite by node id.
        since: The first Python in which it changes anything.
    """

    name: str
    line: str
    what: str
    file: str
    old: str
    new: str
    found_by: tuple[str, ...]
    since: tuple[int, int] = (3, 11)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The scenarios that notice it."""
        return tuple(each for each in self.found_by if "::" not in each)

    @property
    def tests(self) -> tuple[str, ...]:
        """The tests that notice it, as node ids."""
        return tuple(each for each in self.found_by if "::" in each)


def patched(mutant: Mutant, root: Path = ROOT) -> str:
    """Return the text of the mutant's file with the bug in it.

    Raises:
        StalePatchError: The text to replace is not there, or there twice, or the
            new text is no Python.
    """
    text = (root / "async_safe_cache" / mutant.file).read_text(encoding="utf-8")
    times = text.count(mutant.old)
    if times != 1:
        raise StalePatchError(
            f"{mutant.name}: the text to replace occurs {times} times in {mutant.file}, not once: "
            "the code has changed; write the patch anew, for the guard as it is now"
        )
    new = text.replace(mutant.old, mutant.new)
    try:
        compile(new, mutant.file, "exec")
    except SyntaxError as error:
        raise StalePatchError(f"{mutant.name}: the patched {mutant.file} is no Python") from error
    return new


MUTANTS = (
    # -- §3.1 one load
    Mutant(
        name="join-starts-another-load",
        line="§3.1",
        what="The registry is not asked: every caller of a burst loads for itself.",
        file="_loads.py",
        old="flight = flights.get(place, loop)",
        new="flight = None",
        found_by=(
            "callers_of_one_key_share_one_load",
            "tests/test_flights.py::test_a_thousand_callers_of_one_key_share_one_load",
        ),
    ),
    Mutant(
        name="end-without-identity-check",
        line="§3.1",
        what="A fenced load that ends takes its successor out of the registry: two loads at once.",
        file="_flights.py",
        old="""\
        if registry.get(key) is flight:
            del registry[key]
        if flight.marks""",
        new="""\
        registry.pop(key, None)
        if flight.marks""",
        found_by=(
            "a_fenced_load_leaves_its_successor_alone",
            "tests/test_flights.py::test_an_old_load_that_ends_leaves_the_newer_one_joinable",
        ),
    ),
    Mutant(
        name="late-hit-not-seen",
        line="§3.1",
        what="Who came late for a load does not look for its value again, and loads once more.",
        file="_loads.py",
        old="entry = store.find(space, key, now)",
        new="entry = None",
        found_by=(
            "a_set_beats_an_older_load",
            "tests/test_cache.py::test_empty_values_are_values",
        ),
    ),
    Mutant(
        name="first-step-tells-at-once",
        line="§3.1",
        what="A load over in its first step that stores nothing ends at once: a burst shares none.",
        file="_flights.py",
        old="return flight.task is None and flight.loop is not None",
        new="return False",
        found_by=(
            "tests/test_flights.py::test_a_burst_of_one_turn_shares_a_load_that_needs_no_await",
        ),
        since=(3, 12),
    ),
    Mutant(
        name="first-step-tells-nobody",
        line="§3.1",
        what="What a load that was over in its first step ended with is lost: its callers fail.",
        file="_loads.py",
        old="self.landing.answer(flight, flight.outcome)",
        new="self.landing.conclude(flight, None, asyncio.CancelledError())",
        found_by=(
            "tests/test_flights.py::test_a_burst_of_one_turn_shares_a_load_that_needs_no_await",
        ),
        since=(3, 12),
    ),
    Mutant(
        name="fenced-load-of-nobody-goes-on",
        line="§3.1",
        what="A load that nobody waits for when it is fenced is not cancelled.",
        file="_flights.py",
        old="""\
        flight.cancelling = True
        return True, flight""",
        new="        return True, None",
        found_by=(
            "a_finishing_load_that_was_fenced_and_left_is_cancelled",
            "tests/test_cancellation.py::test_a_fenced_load_that_nobody_waits_for_is_cancelled_even_with_finish",
        ),
    ),
    Mutant(
        name="bulk-omitted-key-answered",
        line="§3.1",
        what="A key that a load of many omits is None for the single caller that had joined it.",
        file="_bulk_load.py",
        old="told.append((flights.end(flight), None))",
        new="told.append((flights.end(flight), Outcome(None, None, now)))",
        found_by=(
            "an_omitted_key_is_loaded_by_who_has_it",
            "tests/test_bulk.py::test_a_single_caller_of_an_omitted_key_runs_its_own_loader",
        ),
    ),
    # -- §3.2 whose load it is
    Mutant(
        name="load-in-an-empty-context",
        line="§3.2",
        what="The load does not get a copy of the first caller's context: tracing loses its span.",
        file="_loads.py",
        old="context = isolated(options) if alone else copy_context()",
        new="context = isolated(options) if alone else Context()",
        found_by=(
            "tests/test_survivors.py::test_a_load_sees_the_first_callers_context_and_changes_nobodys",
        ),
    ),
    Mutant(
        name="thread-in-an-empty-context",
        line="§3.2",
        what="A `def` that is refreshed in a worker thread does not see its caller's context.",
        file="_loads.py",
        old="context = isolated(flight.load[3]) if alone else copy_context()\n        thread",
        new="context = Context()\n        thread",
        found_by=(
            "tests/test_survivors.py::test_a_refresh_of_a_def_in_a_thread_sees_its_callers_context",
        ),
    ),
    Mutant(
        name="load-in-the-callers-own-context",
        line="§3.2",
        what="The load is noted in its caller's own context: who gave up is told of a recursion.",
        file="_loads.py",
        old=(
            "        context = isolated(options) if alone else copy_context()\n"
            "        context.run(current_flight.set, flight)\n"
            "        running"
        ),
        new="        context = None\n        current_flight.set(flight)\n        running",
        found_by=("tests/test_flights.py::test_who_gave_up_on_a_load_may_ask_again",),
    ),
    # -- §3.3 leaving
    Mutant(
        name="other-waiters-not-counted",
        line="§3.3",
        what="One caller that leaves cancels the load for all who still wait.",
        file="_flights.py",
        old=" is flight or flight.waiters or flight.done:",
        new=" is flight or flight.done:",
        found_by=(
            "a_cancelled_caller_leaves_alone",
            "tests/test_flights.py::test_the_leader_may_be_cancelled_at_any_step_and_the_others_have_the_value",
        ),
    ),
    Mutant(
        name="abandoned-load-runs-on",
        line="§3.3",
        what="The last caller leaves and the load is not cancelled: nobody waits, and it works on.",
        file="_flights.py",
        old="""\
        flight.cancelling = flight.task is not None
        return flight""",
        new="        return None",
        found_by=(
            "when_all_leave_the_load_is_cancelled",
            "tests/test_flights.py::test_when_all_callers_are_cancelled_the_load_is_too",
        ),
    ),
    Mutant(
        name="cancelled-waiter-still-counted",
        line="§3.3",
        what="A cancelled caller is not taken out of its flight: the load is never abandoned.",
        file="_loads.py",
        old="""\
                self._forget(current, flight, waiter)
                raise
            finally:""",
        new="""\
                raise
            finally:""",
        found_by=(
            "when_all_leave_the_load_is_cancelled",
            "tests/test_flights.py::test_when_all_callers_are_cancelled_the_load_is_too",
        ),
    ),
    Mutant(
        name="finish-is-cancelled-too",
        line="§3.3",
        what='on_abandon="finish" is not looked at: the abandoned load is cancelled all the same.',
        file="_flights.py",
        old="if flight.cancelling or (flight.keep and not flight.fenced):",
        new="if flight.cancelling:",
        found_by=(
            "an_abandoned_load_that_may_finish_is_stored",
            "tests/test_flights.py::test_finish_lets_an_abandoned_load_end_and_store",
        ),
    ),
    Mutant(
        name="finish-outlives-a-fence",
        line="§3.3",
        what='A fenced load with on_abandon="finish" runs on for nobody: it may not store.',
        file="_flights.py",
        old="(flight.keep and not flight.fenced)",
        new="flight.keep",
        found_by=(
            "a_finishing_load_that_was_fenced_and_left_is_cancelled",
            "tests/test_flights.py::test_a_fenced_load_is_cancelled_when_nobody_waits_even_if_it_may_finish",
        ),
    ),
    Mutant(
        name="closed-coroutine-never-leaves",
        line="§3.3",
        what="A caller whose coroutine the collector closed stays counted for ever.",
        file="_loads.py",
        old="self.engine.later.append(lambda _: self._forget(current, flight, waiter))",
        new="pass",
        found_by=(
            "tests/test_cancellation.py::test_a_caller_whose_coroutine_is_closed_leaves_at_the_next_write",
        ),
    ),
    Mutant(
        name="task-cancelled-before-its-first-step",
        line="§3.3",
        what="A load cancelled before it began tells nobody: its key hangs for ever.",
        file="_loads.py",
        old="self.landing.conclude(flight, None, asyncio.CancelledError())",
        new="pass",
        found_by=(
            "a_load_that_has_not_begun_ends_with_its_last_caller",
            "tests/test_cancellation.py::test_closing_answers_a_load_that_has_not_begun",
        ),
    ),
    Mutant(
        name="bulk-needed-for-one-key",
        line="§3.3",
        what="A load of many keys is cancelled when nobody waits for one of them, as others do.",
        file="_flights.py",
        old="for _ in range(len(members)):",
        new="for _ in range(1):",
        found_by=(
            "callers_of_many_and_of_one_share_each_key",
            "an_abandoned_load_of_many_is_waited_out",
            "tests/test_bulk.py::test_single_callers_keep_their_values_when_the_caller_of_many_leaves",
        ),
    ),
    Mutant(
        name="bulk-caller-never-leaves",
        line="§3.3",
        what="A caller of many that was cancelled still counts as waiting for its keys.",
        file="_bulk.py",
        old="""\
        except BaseException:
            self._leave(current, shares)
""",
        new="""\
        except BaseException:
""",
        found_by=("tests/test_bulk.py::test_the_last_waiter_of_all_keys_takes_the_load_along",),
    ),
    # -- §3.4 being cancelled
    Mutant(
        name="join-while-cancelling",
        line="§3.4",
        what="A newcomer joins a load that is being cancelled and gets its LoadCancelledError.",
        file="_loads.py",
        old="""\
                if flight.cancelling:
                    if not counted:""",
        new="""\
                if False:
                    if not counted:""",
        found_by=(
            "nobody_joins_a_load_that_is_being_cancelled",
            "tests/test_cancellation.py::test_a_newcomer_is_never_joined_to_a_load_that_is_being_cancelled",
        ),
    ),
    Mutant(
        name="land-while-cancelling",
        line="§3.4",
        what="A cancelled load that swallows its cancellation still stores its value.",
        file="_flights.py",
        old="return registered and not flight.cancelling",
        new="return registered",
        found_by=(
            "a_value_that_came_in_spite_of_a_cancellation_goes_nowhere",
            "tests/test_cancellation.py::test_a_load_that_swallows_its_cancellation_stores_nothing",
        ),
    ),
    Mutant(
        name="grace-skipped",
        line="§3.4",
        what="A newcomer does not wait for the clean-up: a second load runs beside it.",
        file="_loads.py",
        old="loop.call_later(options.cancel_grace, release, waiter)",
        new="loop.call_later(0, release, waiter)",
        found_by=(
            "newcomers_wait_for_a_slow_clean_up",
            "tests/test_cancellation.py::test_a_newcomer_waits_for_the_clean_up_and_then_loads_afresh",
        ),
    ),
    Mutant(
        name="grace-never-over",
        line="§3.4",
        what="Nobody overtakes a clean-up that takes too long: its key is blocked as long.",
        file="_loads.py",
        old="watchers = self.flights.give_up(flight)",
        new="watchers = {}",
        found_by=(
            "a_load_too_slow_to_clean_up_is_overtaken_once",
            "tests/test_cancellation.py::test_after_the_grace_one_newcomer_loads_beside_the_clean_up",
        ),
    ),
    Mutant(
        name="overlap-not-counted",
        line="§3.4",
        what="A load beside a clean-up is not counted as overlapping: nobody learns of it.",
        file="_flights.py",
        old="self.overlapping += 1",
        new="self.overlapping += 0",
        found_by=(
            "a_load_too_slow_to_clean_up_is_overtaken_once",
            "tests/test_cancellation.py::test_after_the_grace_one_newcomer_loads_beside_the_clean_up",
        ),
    ),
    Mutant(
        name="overtake-without-identity-check",
        line="§3.4",
        what="Who was overtaken throws the overtaker's load out, too, and starts a third.",
        file="_flights.py",
        old="if self._registry.get(flight.key) is not flight:",
        new="if self._registry.get(flight.key) is None:",
        found_by=(
            "a_load_too_slow_to_clean_up_is_overtaken_once",
            "tests/test_flights.py::test_who_would_wait_longer_joins_the_load_of_who_overtook",
        ),
    ),
    Mutant(
        name="clean-up-wakes-nobody",
        line="§3.4",
        what="The end of a clean-up does not wake who waits for it: they sit out the whole grace.",
        file="_flights.py",
        old="waiting |= flight.watchers",
        new="pass",
        found_by=(
            "one_function_ends_when_its_callers_are_answered",
            "tests/test_recursion.py::test_two_clean_ups_that_await_each_others_key_never_hang",
        ),
    ),
    Mutant(
        name="fence-frees-a-clean-up",
        line="§3.4",
        what="A delete takes a load that cleans up out of the registry: the next runs beside it.",
        file="_flights.py",
        old="if flight is None or flight.cancelling:",
        new="if flight is None:",
        found_by=(
            "tests/test_cancellation.py::test_a_delete_during_a_clean_up_lets_no_newcomer_in_earlier",
        ),
    ),
    Mutant(
        name="bulk-tells-clean-up-as-an-answer",
        line="§3.4",
        what="What a cancelled load ends with is told to a caller of many that waits for its end.",
        file="_bulk.py",
        old="if self.step is not Step.CLEAN_UP:",
        new="if True:",
        found_by=(
            "an_abandoned_load_of_many_is_waited_out",
            "tests/test_bulk.py::test_newcomers_wait_for_the_clean_up_of_an_abandoned_load",
        ),
    ),
    # -- §3.5 failing
    Mutant(
        name="failure-is-kept",
        line="§3.5",
        what="Every failure is remembered for ever, though negative= names none.",
        file="_landing.py",
        old="remember: float | None | Unset = UNSET",
        new="remember: float | None | Unset = None",
        found_by=(
            "a_failing_load_fails_its_burst_and_nobody_else",
            "tests/test_load_errors.py::test_a_failing_load_costs_one_load_for_the_whole_burst",
        ),
    ),
    Mutant(
        name="traceback-grows",
        line="§3.5",
        what="A raise does not restore the traceback: it grows by every waiter's frames.",
        file="_flights.py",
        old="        _set_traceback(error, self._traceback)\n",
        new="",
        found_by=(
            "a_failing_load_fails_its_burst_and_nobody_else",
            "tests/test_load_errors.py::test_nothing_grows_when_a_load_fails_again_and_again",
        ),
    ),
    Mutant(
        name="callers-context-leaks",
        line="§3.5",
        what="What one caller was handling shows as the context of another caller's error.",
        file="_flights.py",
        old="        _context.__set__(error, self._context)\n",
        new="",
        found_by=(
            "tests/test_failures.py::test_what_one_caller_was_handling_does_not_show_in_anothers_failure",
        ),
    ),
    Mutant(
        name="cause-not-restored",
        line="§3.5",
        what="`raise error from mine` of one waiter shows to all the others.",
        file="_flights.py",
        old="_cause.__set__(error, self._cause)",
        new="pass",
        found_by=(
            "tests/test_failures.py::test_what_one_caller_was_handling_does_not_show_in_anothers_failure",
        ),
    ),
    Mutant(
        name="each-waiter-gets-a-copy",
        line="§3.5",
        what="The waiters get equal exceptions, not the object that the loader raised.",
        file="_flights.py",
        old="twin(self.error) if self._remembered else self.error",
        new="twin(self.error)",
        found_by=(
            "a_failing_load_fails_its_burst_and_nobody_else",
            "tests/test_load_errors.py::test_every_waiter_gets_the_very_exception",
        ),
    ),
    Mutant(
        name="load-that-cannot-begin-tells-nobody",
        line="§3.5",
        what="Where no task can be made for a load its callers wait for ever.",
        file="_loads.py",
        old="""\
                self.landing.conclude(flight, None, error)
            if isinstance(error""",
        new="""\
                pass
            if isinstance(error""",
        found_by=("tests/test_flights.py::test_a_load_that_cannot_begin_fails_for_all_who_wait",),
    ),
    Mutant(
        name="raising-frame-holds-the-error",
        line="§3.5",
        what="The frame that raises keeps the error that keeps it: frames outlive the handlers.",
        file="_flights.py",
        old="del self, error",
        new="del self",
        found_by=("tests/test_load_errors.py::test_no_frame_outlives_the_handlers",),
    ),
    Mutant(
        name="loading-frame-holds-the-error",
        line="§3.5",
        what="The frame of the load keeps its error: the loader's locals live until a collection.",
        file="_loads.py",
        old="""\
            # The loader's frames, which the error holds, lead back to this one.
            del error, value""",
        new="            pass",
        found_by=("tests/test_load_errors.py::test_no_frame_outlives_the_handlers",),
    ),
    Mutant(
        name="stop-iteration-as-it-is",
        line="§3.5",
        what="A loader's StopIteration is not turned into RuntimeError, and ends a caller's loop.",
        file="_landing.py",
        old="elif isinstance(error, StopIteration):",
        new="elif False:",
        found_by=(
            "a_stop_iteration_reaches_every_waiter_as_a_runtime_error",
            "tests/test_load_errors.py::test_stop_iteration_becomes_a_runtime_error",
        ),
    ),
    Mutant(
        name="interrupt-swallowed",
        line="§3.5",
        what="Ctrl-C in a load does not end the program.",
        file="_loads.py",
        old="""\
            if stopped:
                task = asyncio.current_task()""",
        new="""\
            if False:
                task = asyncio.current_task()""",
        found_by=(
            "tests/test_load_errors.py::test_an_interrupt_in_a_load_ends_the_program_as_usual",
        ),
    ),
    Mutant(
        name="remembered-failure-replaces-a-value",
        line="§3.5",
        what="A refresh that fails with a failure to remember takes the older value away.",
        file="_landing.py",
        old="remember is UNSET or self.store.holds(space, key, now):",
        new="remember is UNSET:",
        found_by=(
            "a_failing_refresh_leaves_the_older_value",
            "tests/test_decorator.py::test_a_refresh_that_fails_with_a_failure_to_remember_keeps_the_older_value",
        ),
    ),
    Mutant(
        name="remembered-failure-keeps-frames",
        line="§3.5",
        what="A remembered failure keeps the frames of the load that raised it alive.",
        file="_landing.py",
        old="memory = failure.remembered()",
        new="memory = failure",
        found_by=("tests/test_failures.py::test_a_remembered_failure_keeps_no_frame_alive",),
    ),
    Mutant(
        name="remembered-failure-is-a-value",
        line="§3.5",
        what="A get of a remembered failure hands out the library's own record of it.",
        file="_engine.py",
        old="if entry is None or entry.deadline <= now or type(entry.value) is Failure:",
        new="if entry is None or entry.deadline <= now:",
        found_by=(
            "a_remembered_failure_costs_one_load_while_it_lasts",
            "tests/test_failures.py::test_a_remembered_failure_is_no_value",
        ),
    ),
    Mutant(
        name="one-shot-value-stored",
        line="§3.5",
        what="A generator is stored as a value: the second caller finds it used up.",
        file="_engine.py",
        old="    if not one_shot(value):\n        return",
        new="    if not iscoroutine(value):\n        return",
        found_by=(
            "a_value_for_one_use_is_refused_to_all",
            "tests/test_load_errors.py::test_a_result_that_can_be_used_once_is_refused",
        ),
    ),
    # -- §3.6 cancelled from inside
    Mutant(
        name="inner-cancellation-passed-on",
        line="§3.6",
        what="A loader that was cancelled from inside cancels every caller's task.",
        file="_landing.py",
        old="stopped_by, error = error, LoadCancelledError(flight.name)",
        new="stopped_by = None",
        found_by=(
            "a_load_that_cancels_itself_cancels_nobody",
            "tests/test_load_errors.py::test_a_load_cancelled_from_inside_is_no_cancellation_of_its_callers",
        ),
    ),
    # -- §3.7 cycles
    Mutant(
        name="own-key-not-noticed",
        line="§3.7",
        what="A load that awaits its own key waits for itself for ever.",
        file="_flights.py",
        old="if (target.group or target) is me:",
        new="if False:",
        found_by=(
            "a_load_of_its_own_key_is_told_so",
            "tests/test_recursion.py::test_a_load_that_awaits_its_own_key_fails_at_once_for_all_who_wait",
        ),
    ),
    Mutant(
        name="cycle-of-two-not-noticed",
        line="§3.7",
        what="Two loads that await each other hang.",
        file="_flights.py",
        old="if run is me:",
        new="if False:",
        found_by=(
            "two_loads_that_wait_for_each_other_are_told_so",
            "tests/test_recursion.py::test_two_loads_that_wait_for_each_other_never_hang",
        ),
    ),
    Mutant(
        name="longer-cycle-not-followed",
        line="§3.7",
        what="A cycle of three loads is not followed to its end, and hangs.",
        file="_flights.py",
        old="paths.append((waited, (*names, waited.name)))",
        new="pass",
        found_by=(
            "three_loads_in_a_circle_are_told_so",
            "tests/test_recursion.py::test_a_longer_cycle_names_its_whole_chain",
        ),
    ),
    Mutant(
        name="what-a-load-waits-for-not-noted",
        line="§3.7",
        what="It is not noted which flight a load waits for: cycles hang.",
        file="_loads.py",
        old="current.wait_for(flight, waiter)",
        new="pass",
        found_by=(
            "two_loads_that_wait_for_each_other_are_told_so",
            "tests/test_recursion.py::test_two_loads_that_wait_for_each_other_never_hang",
        ),
    ),
    Mutant(
        name="what-a-load-waited-for-never-forgotten",
        line="§3.7",
        what="A load counts as waiting for what it got long ago: a cycle where there is none.",
        file="_loads.py",
        old="""\
                current.waits_on.pop(waiter, None)
            if step""",
        new="""\
                pass
            if step""",
        found_by=(
            "tests/test_recursion.py::test_a_load_is_known_to_wait_only_for_what_it_waits_for_now",
        ),
    ),
    Mutant(
        name="load-does-not-know-itself",
        line="§3.7",
        what="The load's context does not name its flight: what it awaits is nobody's.",
        file="_loads.py",
        old="""\
        context.run(current_flight.set, flight)
        running""",
        new="        running",
        found_by=(
            "a_load_of_its_own_key_is_told_so",
            "tests/test_recursion.py::test_a_load_that_awaits_its_own_key_fails_at_once_for_all_who_wait",
        ),
    ),
    Mutant(
        name="ended-load-still-in-a-cycle",
        line="§3.7",
        what="A task that outlived its load is refused as if the load still waited.",
        file="_flights.py",
        old="if current is None or current.done:",
        new="if current is None:",
        found_by=(
            "tests/test_survivors.py::test_what_a_load_that_has_ended_started_may_load_what_waited_for_it",
        ),
    ),
    Mutant(
        name="first-step-sees-what-its-caller-handles",
        line="§3.5",
        what="A load that begins at once sees, and tells, the exception its caller handles.",
        file="_tasks.py",
        old="sys.exception() is None and loop",
        new="loop",
        found_by=(
            "tests/test_flights.py::test_a_failure_without_an_await_shows_nothing_of_the_callers",
        ),
        since=(3, 12),
    ),
    Mutant(
        name="first-step-failure-leads-to-its-caller",
        line="§3.5",
        what="A failure of a first step keeps the frames of its first caller for all who wait.",
        file="_loads.py",
        old="if error is not None and flight.task is None and not stopped:",
        new="if False:",
        found_by=(
            "tests/test_flights.py::test_a_failure_without_an_await_shows_nothing_of_the_callers",
        ),
        since=(3, 12),
    ),
    Mutant(
        name="nested-without-end",
        line="§3.7",
        what="Loads begin inside each other without end: a long chain is taken for a recursion.",
        file="_loads.py",
        old="eager = not behind and flight.depth % NESTED != NESTED - 1",
        new="eager = not behind",
        found_by=("tests/test_recursion.py::test_a_chain_of_five_hundred_loads_works",),
        since=(3, 12),
    ),
    Mutant(
        name="bulk-of-its-own-key-waits",
        line="§3.7",
        what="A load of many that awaits one of its keys but the first hangs.",
        file="_flights.py",
        old="""\
        me = current.group or current
""",
        new="""\
        me: Flight | Group = current
""",
        found_by=(
            "loads_of_many_that_wait_for_each_other_are_told_so",
            "tests/test_bulk.py::test_a_load_that_awaits_any_of_its_own_keys_is_told_so",
        ),
    ),
    # -- §3.8 no entries
    Mutant(
        name="flights-bounded-like-entries",
        line="§3.8",
        what="The registry forgets its oldest running load when there are many: it runs again.",
        file="_flights.py",
        old="self._registry[key] = flight = Flight(key, name, loop)",
        new="""\
self._registry[key] = flight = Flight(key, name, loop)
        if len(self._registry) > 32:
            del self._registry[next(iter(self._registry))]""",
        found_by=(
            "tests/test_flights.py::test_a_hundred_keys_are_loaded_once_each_and_never_mixed_up",
        ),
    ),
    Mutant(
        name="flights-counted-as-entries",
        line="§3.8",
        what="len(cache) counts running loads, which nobody can read yet.",
        file="_cache.py",
        old="return store.live(now)\n",
        new="return store.live(now) + len(self._engine.flights.running)\n",
        found_by=(
            "the_bound_on_entries_holds_while_loads_land",
            "tests/test_flights.py::test_clearing_during_a_hundred_loads_answers_all_and_stores_none",
        ),
    ),
    # -- §3.9 def
    Mutant(
        name="def-blocks-its-own-loop",
        line="§3.9",
        what="A `def` called in a loop waits for a load that only this loop can end: it hangs.",
        file="_loads.py",
        old="if flight.thread == threading.get_ident() or (here and flight.loop is here):",
        new="if flight.thread == threading.get_ident():",
        found_by=(
            "tests/test_recursion.py::test_a_def_that_would_block_the_loop_that_loads_its_value_is_told_so",
        ),
    ),
    Mutant(
        name="def-waits-for-its-own-thread",
        line="§3.9",
        what="A `def` waits for a load of its own thread: it hangs.",
        file="_loads.py",
        old="if flight.thread == threading.get_ident() or (here and flight.loop is here):",
        new="if here and flight.loop is here:",
        found_by=(
            "tests/test_recursion.py::test_a_def_that_would_block_its_own_thread_is_told_so",
        ),
    ),
    Mutant(
        name="def-takes-task-options",
        line="§3.9",
        what="on_abandon= on a plain `def` is accepted, and ignored.",
        file="_decorator.py",
        old="if given[option] is not UNSET:",
        new="if False:",
        found_by=(
            "tests/test_options.py::test_an_option_that_needs_a_task_is_refused_on_a_plain_def",
        ),
    ),
    Mutant(
        name="def-refreshed-in-the-loop",
        line="§3.9",
        what="The refresh of a plain `def` blocks the event loop instead of using a thread.",
        file="_cache.py",
        old="in_thread=not function.is_async",
        new="in_thread=False",
        found_by=("tests/test_threads.py::test_refreshing_a_def_runs_in_a_thread_and_leaves_none",),
    ),
    # -- §3.10 dead loops
    Mutant(
        name="closed-loop-not-noticed",
        line="§3.10",
        what="A load whose loop was closed over it stays joinable: its key hangs for ever.",
        file="_flights.py",
        old="and flight.loop.is_closed():",
        new="and False:",
        found_by=(
            "tests/test_dead_loops.py::test_a_joiner_sees_at_once_that_the_loop_is_closed",
            "tests/test_dead_loops.py::test_nobody_waits_out_the_clean_up_of_a_dead_loop",
        ),
    ),
    Mutant(
        name="stopped-loop-not-noticed",
        line="§3.10",
        what="A loop that does not run any more holds up who waits elsewhere for its loads.",
        file="_dead_loops.py",
        old="""\
        elif self._still:
            return True""",
        new="""\
        elif self._still:
            return False""",
        found_by=(
            "tests/test_dead_loops.py::test_who_waits_elsewhere_takes_over_from_a_dead_loop",
        ),
    ),
    Mutant(
        name="living-loop-taken-for-dead",
        line="§3.10",
        what="A loop that runs now and then is taken for dead: its loads run twice.",
        file="_dead_loops.py",
        old="""\
    def _beat(self) -> None:
        self._still = False""",
        new="""\
    def _beat(self) -> None:
        pass""",
        found_by=("tests/test_dead_loops.py::test_a_loop_that_runs_now_and_then_is_not_dead",),
    ),
    Mutant(
        name="burial-wakes-nobody",
        line="§3.10",
        what="The loads of a dead loop are ended, and who waits for them is not told.",
        file="_flights.py",
        old="waiting |= self.end(flight)",
        new="self.end(flight)",
        found_by=(
            "tests/test_dead_loops.py::test_who_waits_elsewhere_takes_over_from_a_dead_loop",
        ),
    ),
    Mutant(
        name="end-of-a-loop-answers-elsewhere",
        line="§3.10",
        what="The end of asyncio.run counts as their load's cancellation to those in other loops.",
        file="_landing.py",
        old="""\
        if stopped_from_outside:
""",
        new="""\
        if False:
""",
        found_by=(
            "tests/test_dead_loops.py::test_the_end_of_asyncio_run_is_not_the_cancellation_of_who_waits_elsewhere",
        ),
    ),
    # -- §4 fences
    Mutant(
        name="delete-without-fence",
        line="§4",
        what="A delete leaves the load under way alone: it stores the old value after the delete.",
        file="_engine.py",
        old="""\
                fenced = self._fence(space, key, doomed)
                entry = space""",
        new="""\
                fenced = False
                entry = space""",
        found_by=(
            "a_delete_keeps_an_older_load_out",
            "tests/test_cache.py::test_after_a_write_no_read_sees_what_was_loaded_before_it",
        ),
    ),
    Mutant(
        name="set-without-fence",
        line="§4",
        what="A load that began before a set overwrites the value that was set.",
        file="_engine.py",
        old="""\
            self._fence(space, key, doomed)
            self._change(((space, key),), now, dropped, doomed)
            self._publish""",
        new="""\
            self._change(((space, key),), now, dropped, doomed)
            self._publish""",
        found_by=(
            "a_set_beats_an_older_load",
            "tests/test_cache.py::test_after_a_write_no_read_sees_what_was_loaded_before_it",
        ),
    ),
    Mutant(
        name="clear-without-fence",
        line="§4",
        what="Loads that began before a clear fill the cache again with old values.",
        file="_engine.py",
        old="""\
                if self._fence(space, key, doomed):
                    self.store.remove(space, key, RemovalCause.CLEARED""",
        new="""\
                if False:
                    self.store.remove(space, key, RemovalCause.CLEARED""",
        found_by=(
            "a_clear_keeps_an_older_load_out",
            "tests/test_cache.py::test_after_a_write_no_read_sees_what_was_loaded_before_it",
        ),
    ),
    Mutant(
        name="cache-clear-without-fence",
        line="§4",
        what="Loads of a function that began before its cache_clear() store after it.",
        file="_engine.py",
        old="if space in gone and self._fence(space, key, doomed):",
        new="if False:",
        found_by=(
            "a_cache_clear_is_seen_by_get_or_load",
            "tests/test_survivors.py::test_a_cache_clear_during_a_load_keeps_its_value_out",
        ),
    ),
    Mutant(
        name="cleared-value-still-found",
        line="§4",
        what="What is cleared and waits to be freed is still found by reads.",
        file="_store.py",
        old="""\
        space.data = {}
""",
        new="""\
        space.data = grave.data
""",
        found_by=(
            "tests/test_graves.py::test_clearing_a_large_function_frees_nothing_by_itself",
            "tests/test_graves.py::test_reasons_after_a_clear_are_those_of_the_dead_until_something_newer",
        ),
    ),
    Mutant(
        name="land-without-identity-check",
        line="§4",
        what="A load stores without being the registered one: what was fenced comes back.",
        file="_flights.py",
        old="return registered and not flight.cancelling",
        new="return not flight.cancelling",
        found_by=(
            "a_delete_keeps_an_older_load_out",
            "tests/test_cache.py::test_after_a_write_no_read_sees_what_was_loaded_before_it",
        ),
    ),
    Mutant(
        name="fenced-load-stays-joinable",
        line="§4",
        what="The fence marks the load and leaves it registered: newcomers join it, and it stores.",
        file="_flights.py",
        old="""\
        del self._registry[key]
        flight.fenced = True""",
        new="        flight.fenced = True",
        found_by=(
            "a_delete_keeps_an_older_load_out",
            "tests/test_cache.py::test_after_a_write_no_read_sees_what_was_loaded_before_it",
        ),
    ),
    Mutant(
        name="fence-cancels-those-who-waited",
        line="§4",
        what="An invalidation cancels the load under way: its callers get an error.",
        file="_flights.py",
        old="if flight.waiters or flight.task is None:",
        new="if flight.task is None:",
        found_by=(
            "a_delete_keeps_an_older_load_out",
            "tests/test_cache.py::test_after_a_write_no_read_sees_what_was_loaded_before_it",
        ),
    ),
    Mutant(
        name="set-fences-every-load",
        line="§4",
        what="A set shuts out the loads of all other keys, too: they are never stored.",
        file="_engine.py",
        old="""\
            self._fence(space, key, doomed)
            self._change(((space, key),), now, dropped, doomed)
            self._publish""",
        new="""\
            for each in self.flights.registered():
                self._fence(*each, doomed)
            self._publish""",
        found_by=(
            "the_bound_on_bytes_holds_while_values_land",
            "tests/test_survivors.py::test_a_write_of_one_key_leaves_the_loads_of_others_alone",
        ),
    ),
    Mutant(
        name="bulk-stores-what-was-fenced",
        line="§4",
        what="A load of many stores the old value of a key that was deleted meanwhile.",
        file="_bulk_load.py",
        old="landing.store_value(flight, value, weight, now, dropped, doomed)",
        new="""\
put, kind = landing.store.put, flight.load[0]
                    put(*flight.key, kind, value, weight, None, now or 0, dropped)""",
        found_by=(
            "a_delete_keeps_an_older_load_of_many_out",
            "tests/test_bulk.py::test_an_invalidated_key_answers_and_is_not_stored_and_the_others_are",
        ),
    ),
    Mutant(
        name="bulk-extras-without-journal",
        line="§4",
        what="A value that nobody asked for is stored though its key was deleted meanwhile.",
        file="_bulk_load.py",
        old=" or journal.changed(place)",
        new="",
        found_by=(
            "a_delete_keeps_an_older_load_of_many_out",
            "tests/test_bulk.py::test_an_extra_is_not_stored_where_something_happened_meanwhile",
        ),
    ),
    # -- §5 time
    Mutant(
        name="expired-at-ttl-still-served",
        line="§5",
        what="At ttl exactly a read still gets the value.",
        file="_engine.py",
        old="if entry is None or entry.deadline <= now or",
        new="if entry is None or entry.deadline < now or",
        found_by=(
            "a_ttl_counts_from_the_end_of_its_load",
            "tests/test_cache.py::test_at_ttl_exactly_a_value_is_expired_for_every_read",
        ),
    ),
    Mutant(
        name="expired-at-ttl-still-found-by-loads",
        line="§5",
        what="At ttl exactly get_or_load and get_many still get the value.",
        file="_store.py",
        old="""\
        if entry is None or entry.deadline <= now:
            return None
        self.order.touch""",
        new="""\
        if entry is None or entry.deadline < now:
            return None
        self.order.touch""",
        found_by=(
            "a_remembered_failure_costs_one_load_while_it_lasts",
            "tests/test_cache.py::test_at_ttl_exactly_a_value_is_expired_for_every_read",
        ),
    ),
    Mutant(
        name="expired-at-ttl-still-hit",
        line="§5",
        what="At ttl exactly a decorated function still gives the value.",
        file="_wrapper.py",
        old="_asc_clock() < _asc_entry.deadline",
        new="_asc_clock() <= _asc_entry.deadline",
        found_by=(
            "nothing_expired_is_revived",
            "tests/test_decorator.py::test_a_hit_of_a_decorated_function_ends_with_its_ttl",
        ),
    ),
    Mutant(
        name="given-deadline-not-looked-at",
        line="§5",
        what="A value that somebody else gave a ttl is served for ever by a function without one.",
        file="_store.py",
        old="if not space.timed:",
        new="if False:",
        found_by=(
            "tests/test_decorator.py::test_a_deadline_that_somebody_else_gave_ends_a_hit_too",
        ),
    ),
    Mutant(
        name="touched-deadline-not-looked-at",
        line="§5",
        what="What a function without a ttl returned outlives the ttl that a touch gave it.",
        file="_store.py",
        old="if not entry.space.timed:",
        new="if False:",
        found_by=(
            "tests/test_decorator.py::test_a_deadline_that_somebody_else_gave_ends_a_hit_too",
        ),
    ),
    Mutant(
        name="ttl-counted-from-the-start",
        line="§5",
        what="The ttl counts from the beginning of the load: slow loads are born nearly expired.",
        file="_loads.py",
        old="""\
                value = await value
""",
        new="""\
                began = self.engine.clock()
                value = await value
                if flight.load and flight.load[-1].ttl is not None:
                    left = flight.load[-1].ttl - (self.engine.clock() - began)
                    flight.load = *flight.load[:-1], flight.load[-1].but(ttl=max(1e-9, left))
""",
        found_by=(
            "a_ttl_counts_from_the_end_of_its_load",
            "tests/test_cache.py::test_ttl_counts_from_the_end_of_the_load",
        ),
    ),
    Mutant(
        name="jitter-lengthens",
        line="§5",
        what="jitter= adds to the ttl: values are served past it.",
        file="_engine.py",
        old="return ttl * (1 - jitter * random.random())",
        new="return ttl * (1 + jitter * random.random())",
        found_by=("tests/test_cache.py::test_jitter_spreads_expiry_and_never_lengthens_it",),
    ),
    Mutant(
        name="ttl-of-zero-accepted",
        line="§5",
        what="ttl=0 is accepted where it is given, and nothing is ever found again.",
        file="options.py",
        old="""\
    if seconds <= 0:
        raise ValueError(f"{name}={value!r} must be {meaning}")
    return None""",
        new="""\
    if seconds < 0:
        raise ValueError(f"{name}={value!r} must be {meaning}")
    return None""",
        found_by=("tests/test_options.py::test_a_wrong_ttl_is_refused_everywhere",),
    ),
    Mutant(
        name="touched-entry-still-swept",
        line="§5",
        what="touch() leaves the entry under its old deadline: the sweeper takes a fresh value.",
        file="_store.py",
        old="""\
        self._expiry.discard(entry)
        if not entry.space.timed:""",
        new="        if not entry.space.timed:",
        found_by=(
            "a_touch_changes_the_time_and_nothing_else",
            "tests/test_cache.py::test_touch_renews_what_is_fresh_and_nothing_else",
        ),
    ),
    Mutant(
        name="whole-second-swept",
        line="§5",
        what="A sweep takes all that expires within the second, also what is still fresh.",
        file="_expiry.py",
        old="""\
        if second > now:
            return self._due""",
        new="""\
        if second - 1 > now:
            return self._due""",
        found_by=(
            "a_miss_tells_the_truth_whoever_freed_the_memory",
            "tests/test_store.py::test_the_store_answers_as_a_plain_model_does_over_many_operations",
        ),
    ),
    Mutant(
        name="write-frees-nothing",
        line="§5",
        what="Without the sweeper nobody frees expired entries: they pile up.",
        file="_store.py",
        old="""\
        if self._graves or now >= self._expiry.soonest or now >= self._kept.soonest:
            self.free(now, PER_WRITE, dropped)
        if self._graves or""",
        new="        if self._graves or",
        found_by=("tests/test_store.py::test_each_write_frees_up_to_four_due_entries",),
    ),
    Mutant(
        name="sweep-stops-after-a-slice",
        line="§5",
        what="A sweep frees one slice of what is due and leaves the rest for later.",
        file="_engine.py",
        old="more = self.store.free(now, limit, dropped) == limit",
        new="more = self.store.free(now, limit, dropped) > limit",
        found_by=("tests/test_sweeper.py::test_the_sweeper_frees_what_is_due",),
    ),
    Mutant(
        name="sweep-without-a-pause",
        line="§5",
        what="A sweep frees all slices in one turn of the loop: everybody waits for it.",
        file="_cache.py",
        old="""\
# noqa: ASYNC110 - not waiting: working
            await asyncio.sleep(0)""",
        new="""\
# noqa: ASYNC110 - not waiting: working
            pass""",
        found_by=("tests/test_sweeper.py::test_a_sweep_lets_others_run_between_its_slices",),
    ),
    Mutant(
        name="sweeper-dies-of-an-error",
        line="§5",
        what="A sweep that fails ends the sweeper, silently and for good.",
        file="_background.py",
        old="                self.errors += 1\n",
        new="                raise\n",
        found_by=("tests/test_sweeper.py::test_a_failing_sweep_is_counted_shown_and_tried_again",),
    ),
    Mutant(
        name="sweeper-not-started-again",
        line="§5",
        what="The sweeper ends with the loop that started it, and no later loop starts it again.",
        file="_background.py",
        old="if not self.wanted:",
        new="if True:",
        found_by=(
            "tests/test_sweeper.py::test_a_sweeper_whose_loop_ended_starts_again_in_the_next",
        ),
    ),
    Mutant(
        name="wall-clock-by-default",
        line="§5",
        what="Expiry follows the wall clock: setting it keeps values alive or kills them.",
        file="_cache.py",
        old="clock: Clock = time.monotonic",
        new="clock: Clock = lambda: time.time()",
        found_by=("tests/test_cache.py::test_the_wall_clock_changes_nothing",),
    ),
    # -- §6 memory
    Mutant(
        name="decrement-forgotten",
        line="§6",
        what="A removal does not give its bytes back: the cache ends up full of nothing.",
        file="_store.py",
        old="""\
        self.bytes -= weight
        if not data:
            del self._occupied[space]
        if ordered""",
        new="""\
        if not data:
            del self._occupied[space]
        if ordered""",
        found_by=(
            "the_bound_on_bytes_holds_while_values_land",
            "tests/test_store.py::test_accounted_bytes_stay_exact_over_many_overwrites",
        ),
    ),
    Mutant(
        name="decrement-moved-before-the-check",
        line="§6",
        what="The bytes are given back for a replaced entry, too: twice.",
        file="_store.py",
        old="""\
        if data.get(key) is not entry:
            return
        del data""",
        new="""\
        if data.get(key) is not entry:
            self.bytes -= entry.weight
            return
        del data""",
        found_by=(
            "tests/test_store.py::test_removing_an_entry_that_was_replaced_leaves_its_successor",
        ),
    ),
    Mutant(
        name="unlink-without-identity-check",
        line="§6",
        what="Removing an entry that was replaced takes its successor.",
        file="_store.py",
        old="""\
        if data.get(key) is not entry:
            return
        del data""",
        new="        del data",
        found_by=(
            "tests/test_store.py::test_removing_an_entry_that_was_replaced_leaves_its_successor",
        ),
    ),
    Mutant(
        name="retire-skipped",
        line="§6",
        what="A write does not take the older entry out: its bytes and its place stay for ever.",
        file="_store.py",
        old="""\
            self._unlink(old, _EXPIRED if expired else _REPLACED, dropped)
""",
        new="""\
            pass
""",
        found_by=(
            "a_set_beats_an_older_load",
            "tests/test_store.py::test_accounted_bytes_stay_exact_over_many_overwrites",
        ),
    ),
    Mutant(
        name="memory-bound-checked-afterwards",
        line="§6",
        what="The bytes to come are not counted: the bound is passed by one value.",
        file="_store.py",
        old="over_bytes = self.bytes + self._dead_bytes + weight > self.max_bytes",
        new="over_bytes = self.bytes + self._dead_bytes > self.max_bytes",
        found_by=(
            "the_bound_on_bytes_holds_while_values_land",
            "tests/test_store.py::test_the_memory_bound_holds_after_every_operation",
        ),
    ),
    Mutant(
        name="one-entry-too-many",
        line="§6",
        what="max_entries is passed by one.",
        file="_store.py",
        old="if not over_bytes and self.count + self._dead < self.max_entries:",
        new="if not over_bytes and self.count + self._dead <= self.max_entries:",
        found_by=(
            "the_bound_on_entries_holds_while_loads_land",
            "tests/test_store.py::test_the_store_answers_as_a_plain_model_does_over_many_operations",
        ),
    ),
    Mutant(
        name="too-large-empties-the-cache",
        line="§6",
        what="A value larger than the bound evicts all others, and is stored above the bound.",
        file="_store.py",
        old="""\
        if weight > self.max_bytes or self.max_entries < 1:
            if old""",
        new="""\
        if self.max_entries < 1:
            if old""",
        found_by=(
            "a_value_too_large_removes_the_older_one_and_nothing_else",
            "tests/test_store.py::test_a_value_larger_than_the_bound_is_not_stored_and_evicts_nothing",
        ),
    ),
    Mutant(
        name="too-large-keeps-the-previous-value",
        line="§6",
        what="A value that does not fit leaves the older one, which is not true any more.",
        file="_store.py",
        old="self._unlink(old, RemovalCause.REJECTED, dropped)",
        new="pass",
        found_by=(
            "a_value_too_large_removes_the_older_one_and_nothing_else",
            "tests/test_store.py::test_a_value_larger_than_the_bound_is_not_stored_and_evicts_nothing",
        ),
    ),
    Mutant(
        name="live-evicted-before-expired",
        line="§6",
        what="An eviction takes live entries while expired ones lie about.",
        file="_store.py",
        old="""\
            if due and self.free(now, 1, dropped):
                continue
            victim = take""",
        new="            victim = take",
        found_by=(
            "expired_entries_leave_before_live_ones",
            "tests/test_store.py::test_one_large_value_takes_the_place_of_many_expired_ones",
        ),
    ),
    Mutant(
        name="newest-evicted",
        line="§6",
        what="The most recently used entry leaves first.",
        file="_eviction.py",
        old="popitem(last=False)",
        new="popitem(last=True)",
        found_by=(
            "a_hit_saves_an_entry_from_the_evictor",
            "tests/test_store.py::test_the_least_recently_used_entry_of_the_whole_cache_leaves_first",
        ),
    ),
    Mutant(
        name="ghost-ignored",
        line="§6",
        what="Under S3-FIFO what comes back soon after it left begins anew, as what nobody wants.",
        file="_eviction.py",
        old="if back and back != PRIME:",
        new="if True:",
        found_by=(
            "tests/test_eviction.py::test_what_comes_back_soon_after_it_left_is_kept_longer",
            "tests/test_eviction.py::test_s3fifo_is_what_its_page_tells_in_long_runs",
        ),
    ),
    Mutant(
        name="mark-not-taken-back",
        line="§6",
        what="Under S3-FIFO one hit keeps an entry for ever: what is in use leaves in its stead.",
        file="_eviction.py",
        old="""\
            entry.used = False
            main.push""",
        new="            main.push",
        found_by=("tests/test_eviction.py::test_s3fifo_is_what_its_page_tells_in_long_runs",),
    ),
    Mutant(
        name="rewritten-entry-begins-unmarked",
        line="§6",
        what="Under S3-FIFO a write makes the entry that it replaces the next to leave.",
        file="_store.py",
        old="entry.used = old is not None",
        new="entry.used = False",
        found_by=("tests/test_eviction.py::test_a_write_to_what_is_there_counts_as_its_use",),
    ),
    Mutant(
        name="weight-of-a-queue-only-grows",
        line="§6",
        what="Under S3-FIFO what has left a queue still weighs there: the wrong one is shortened.",
        file="_eviction.py",
        old="self.weight -= entry.weight",
        new="pass",
        found_by=(
            "tests/test_eviction.py::test_s3fifo_is_what_its_page_tells_in_long_runs",
            "tests/test_eviction.py::test_the_bound_on_memory_holds_after_every_operation",
        ),
    ),
    Mutant(
        name="ghosts-outlive-the-crowd",
        line="§6",
        what="The table of ghosts keeps its size when entries have become few.",
        file="_eviction.py",
        old="while len(ghosts) > max(LEAST_GHOSTS, 4 * count):",
        new="while False:",
        found_by=("tests/test_eviction.py::test_ghosts_are_bounded_by_the_entries_held",),
    ),
    Mutant(
        name="waits-kept-one-by-one",
        line="§6",
        what="What each caller waited is kept until a slice of ten seconds is over.",
        file="_landing.py",
        old="MANY: Final = 256",
        new="MANY: Final = 1 << 60",
        found_by=("tests/test_health.py::test_what_callers_waited_is_not_kept_one_by_one",),
    ),
    Mutant(
        name="dead-entries-counted",
        line="§6",
        what="What is cleared and waits to be freed still counts as entries.",
        file="_store.py",
        old="""\
        self.count -= held
""",
        new="",
        found_by=("tests/test_graves.py::test_clearing_a_large_function_frees_nothing_by_itself",),
    ),
    Mutant(
        name="dead-outside-the-bound",
        line="§6",
        what="What is cleared and waits to be freed takes memory beyond the bound.",
        file="_store.py",
        old="self.bytes + self._dead_bytes + weight > self.max_bytes",
        new="self.bytes + weight > self.max_bytes",
        found_by=("tests/test_graves.py::test_one_large_value_takes_the_room_of_the_dead_at_once",),
    ),
    Mutant(
        name="get-is-no-use",
        line="§6",
        what="A get does not renew recency: what is read most leaves first.",
        file="_engine.py",
        old="self.store.order.touch(entry)",
        new="pass",
        found_by=(
            "a_hit_saves_an_entry_from_the_evictor",
            "tests/test_store.py::test_the_least_recently_used_entry_of_the_whole_cache_leaves_first",
        ),
    ),
    Mutant(
        name="hit-is-no-use",
        line="§6",
        what="A hit of a decorated function does not renew recency.",
        file="_wrapper.py",
        old='f"{TOUCH}(_asc_entry)"',
        new='"pass"',
        found_by=(
            "tests/test_survivors.py::test_a_hit_of_a_decorated_function_saves_its_entry_from_the_evictor",
        ),
    ),
    Mutant(
        name="peek-is-a-use",
        line="§6",
        what="Asking whether something is there renews its recency.",
        file="_cache.py",
        old="        return default if entry is None else entry.handed",
        new="""\
        if entry is not None:
            self._engine.store.order.touch(entry)
        return default if entry is None else entry.handed""",
        found_by=("tests/test_store.py::test_peek_changes_neither_recency_nor_statistics",),
    ),
    Mutant(
        name="overhead-not-counted",
        line="§6",
        what="Keys and the library's own bytes are free: small values pass the bound many times.",
        file="_engine.py",
        old="return size + weigh_key(load_key) + ENTRY_OVERHEAD",
        new="return size",
        found_by=(
            "expired_entries_leave_before_live_ones",
            "tests/test_survivors.py::test_key_and_overhead_are_inside_the_memory_bound",
        ),
    ),
    Mutant(
        name="shell-weighed-alone",
        line="§6",
        what="A container is weighed without what it holds.",
        file="_weight.py",
        old="size = _all_of(value)",
        new="size: int | None = getsizeof(value)",
        found_by=("tests/test_weight.py::test_containers_weigh_what_the_allocator_says",),
    ),
    Mutant(
        name="negative-weight-accepted",
        line="§6",
        what="A weigher that returns a negative number makes room that is not there.",
        file="_engine.py",
        old="if not weight >= 0:",
        new="if False:",
        found_by=("tests/test_options.py::test_a_weigher_that_answers_nonsense_changes_nothing",),
    ),
    Mutant(
        name="removal-record-grows",
        line="§6",
        what="The removal record is never shortened: a million keys leave a million records.",
        file="_removals.py",
        old="while len(segments) > 1 and len(self) - segments[0].size >= keep:",
        new="while False:",
        found_by=("tests/test_store.py::test_a_million_distinct_keys_leave_nothing_behind",),
    ),
    Mutant(
        name="expiry-heap-grows",
        line="§6",
        what="Seconds that came and went stay in the expiry index for ever.",
        file="_expiry.py",
        old="if len(self._seconds) > 2 * len(self._buckets) + 64:",
        new="if False:",
        found_by=(
            "tests/test_survivors.py::test_seconds_beyond_the_first_leave_nothing_in_the_expiry_index",
        ),
    ),
    Mutant(
        name="collected-instance-leaves-entries",
        line="§6",
        what="The entries of an instance that is gone stay, and nobody can ever read them.",
        file="_function.py",
        old="    later.append(clean_up)",
        new="    pass",
        found_by=(
            "an_instance_takes_its_entries_along",
            "tests/test_decorator.py::test_an_instance_is_held_weakly_and_takes_its_entries_along",
        ),
    ),
    Mutant(
        name="events-without-bound",
        line="§6",
        what="Events that wait for a slow listener are kept without end.",
        file="_events.py",
        old="if len(pending) < MOST:",
        new="if pending is not None:",
        found_by=("tests/test_events.py::test_what_waits_is_bounded_and_what_is_dropped_counted",),
    ),
    # -- §7 reasons
    Mutant(
        name="expired-victim-says-evicted",
        line="§7",
        what="An expired entry that the evictor meets first is reported as EVICTED.",
        file="_store.py",
        old="if victim.deadline <= now:",
        new="if False:",
        found_by=(
            "tests/test_store.py::test_an_expired_entry_that_is_evicted_tells_that_it_expired",
        ),
    ),
    Mutant(
        name="sweep-records-nothing",
        line="§7",
        what="What the sweeper frees is ABSENT afterwards, not EXPIRED.",
        file="_store.py",
        old="""\
                self._unlink(entry, RemovalCause.EXPIRED, dropped)
            return
""",
        new="""\
                self._unlink(entry, RemovalCause.REPLACED, dropped)
            return
""",
        found_by=(
            "a_miss_tells_the_truth_whoever_freed_the_memory",
            "tests/test_store.py::test_every_miss_tells_the_true_reason",
        ),
    ),
    Mutant(
        name="unswept-says-absent",
        line="§7",
        what="An expired entry that nobody has swept yet is reported as ABSENT.",
        file="_store.py",
        old="        if key in space.data:\n            return MissReason.EXPIRED\n",
        new="",
        found_by=(
            "every_read_keeps_to_the_clock",
            "tests/test_survivors.py::test_an_expired_entry_that_nobody_freed_is_a_miss_by_expiry",
        ),
    ),
    Mutant(
        name="fence-of-an-absent-key-records-nothing",
        line="§7",
        what="A delete that fenced the load of an absent key leaves ABSENT instead of DELETED.",
        file="_store.py",
        old="        if fenced:\n",
        new="        if False:\n",
        found_by=(
            "a_delete_of_what_is_absent_fences_too",
            "tests/test_cache.py::test_fencing_the_load_of_an_absent_key_leaves_its_reason",
        ),
    ),
    Mutant(
        name="deleting-the-expired-says-deleted",
        line="§7",
        what="A delete of what had expired already is reported as DELETED.",
        file="_store.py",
        old="self._unlink(entry, cause if held else _EXPIRED, dropped)",
        new="self._unlink(entry, cause, dropped)",
        found_by=(
            "a_miss_tells_the_truth_whoever_freed_the_memory",
            "tests/test_store.py::test_the_store_answers_as_a_plain_model_does_over_many_operations",
        ),
    ),
    Mutant(
        name="clear-records-nothing",
        line="§7",
        what="After a clear every miss is ABSENT.",
        file="_store.py",
        old="records = self._record.foresee(self.count, self.count) if self.count else None",
        new="records = None",
        found_by=(
            "a_miss_tells_the_truth_whoever_freed_the_memory",
            "tests/test_store.py::test_every_miss_tells_the_true_reason",
        ),
    ),
    Mutant(
        name="dead-tell-nothing",
        line="§7",
        what="Of what is cleared and waits to be freed a miss says ABSENT.",
        file="_store.py",
        old="for grave in reversed(self._graves.get(space, ())):",
        new="for grave in ():",
        found_by=(
            "tests/test_graves.py::test_reasons_after_a_clear_are_those_of_the_dead_until_something_newer",
        ),
    ),
    Mutant(
        name="freed-dead-record-nothing",
        line="§7",
        what="Once what is cleared is freed a miss of it says ABSENT.",
        file="_store.py",
        old="records.add_many(space, keys, _REASON_OF[cause])",
        new="pass",
        found_by=(
            "tests/test_graves.py::test_reasons_after_a_clear_are_those_of_the_dead_until_something_newer",
        ),
    ),
    Mutant(
        name="dead-outlive-a-newer-reason",
        line="§7",
        what="A key that was cleared says so although it was deleted since.",
        file="_store.py",
        old="entry = grave.data.pop(key, None)",
        new="entry = None",
        found_by=(
            "tests/test_graves.py::test_reasons_after_a_clear_are_those_of_the_dead_until_something_newer",
        ),
    ),
    Mutant(
        name="rejection-not-recorded",
        line="§7",
        what="A value that was too large leaves ABSENT instead of REJECTED.",
        file="_store.py",
        old="self._remember(space, key, MissReason.REJECTED, dropped)",
        new="pass",
        found_by=(
            "without_room_callers_still_share_a_load",
            "tests/test_survivors.py::test_a_value_too_large_for_an_absent_key_leaves_its_reason",
        ),
    ),
    Mutant(
        name="second-removal-is-not-the-latest",
        line="§7",
        what="Of a key that was removed again, the older reason is told.",
        file="_removals.py",
        old="for segment in reversed(self._segments):",
        new="for segment in self._segments:",
        found_by=("tests/test_store.py::test_what_happened_last_to_a_key_is_told",),
    ),
    Mutant(
        name="record-forgets-too-early",
        line="§7",
        what="Fewer than the last 256 removals are remembered.",
        file="_removals.py",
        old="keep = min(max(LEAST, live), MOST)",
        new="keep = min(max(LEAST // 2, live), MOST)",
        found_by=(
            "tests/test_store.py::test_the_last_256_removals_are_remembered_and_not_many_more",
        ),
    ),
    Mutant(
        name="large-keys-share-a-record",
        line="§7",
        what="All large keys share one removal record: each tells another's reason.",
        file="_removals.py",
        old="""\
from ._keys import DataKey, digest
""",
        new="""\
from ._keys import DataKey

digest = lambda _: b''
""",
        found_by=("tests/test_survivors.py::test_each_large_key_has_a_record_of_its_own",),
    ),
    # -- §8 locks
    Mutant(
        name="value-dies-under-the-lock",
        line="§8",
        what="A removed value dies under the lock, and its finaliser with it.",
        file="_store.py",
        old="        dropped.append(entry)\n",
        new="",
        found_by=("tests/test_threads.py::test_a_value_is_dropped_after_the_lock_is_released",),
    ),
    Mutant(
        name="weigher-under-the-lock",
        line="§8",
        what="The user's weigher runs under the lock: a slow one stops every thread.",
        file="_engine.py",
        old="""\
        weight = self.measure(key, value)
        if marks""",
        new="""\
        with self._lock:
            weight = self.measure(key, value)
        if marks""",
        found_by=(
            "tests/test_survivors.py::test_while_the_users_code_runs_another_thread_gets_into_the_cache",
        ),
    ),
    Mutant(
        name="loaded-value-weighed-under-the-lock",
        line="§8",
        what="What a load returned is weighed under the lock.",
        file="_landing.py",
        old="weight = self.engine.measure(flight.key[1], value)",
        new="""\
with self._lock:
                    weight = self.engine.measure(flight.key[1], value)""",
        found_by=(
            "tests/test_survivors.py::test_while_the_users_code_runs_another_thread_gets_into_the_cache",
        ),
    ),
    Mutant(
        name="def-loads-under-the-lock",
        line="§8",
        what="A plain `def` runs under the lock: nobody reads while it does.",
        file="_loads.py",
        old="""\
            else:
                value = call(*arguments)
        except""",
        new="""\
            else:
                with self._lock:
                    value = call(*arguments)
        except""",
        found_by=(
            "tests/test_survivors.py::test_while_the_users_code_runs_another_thread_gets_into_the_cache",
        ),
    ),
    Mutant(
        name="clock-under-the-lock",
        line="§8",
        what="The user's clock runs under the lock.",
        file="_loads.py",
        old="        now = engine.clock()",
        new="""\
        with self._lock:
            now = engine.clock()""",
        found_by=(
            "tests/test_survivors.py::test_while_the_users_code_runs_another_thread_gets_into_the_cache",
        ),
    ),
    Mutant(
        name="finaliser-writes-in-the-middle",
        line="§8",
        what="A write from a finaliser runs in the middle of the write that it interrupted.",
        file="_engine.py",
        old="        if self.reentered:\n\n            def postponed",
        new="        if False:\n\n            def postponed",
        found_by=(
            "tests/test_threads.py::test_a_write_of_a_finaliser_at_any_step_of_a_write_breaks_nothing",
        ),
    ),
    Mutant(
        name="listener-inside-a-write",
        line="§8",
        what="A listener is called in the middle of the write that a finaliser interrupted.",
        file="_events.py",
        old=" and not self._is_mine()",
        new="",
        found_by=(
            "tests/test_events.py::test_a_callback_does_not_run_inside_a_write_of_its_thread",
        ),
    ),
    # -- §9 keys
    Mutant(
        name="one-and-true-share-a-key",
        line="§9",
        what="True has the key of 1.",
        file="_keys.py",
        old="bool: lambda value, _: (bool, value),",
        new="bool: lambda value, _: int(value),",
        found_by=(
            "tests/test_keys.py::test_values_that_differ_in_value_or_type_have_different_keys",
        ),
    ),
    Mutant(
        name="type-not-confirmed-by-a-hit",
        line="§9",
        what="f(True) gets the value of f(1): Python's dict holds them equal.",
        file="_wrapper.py",
        old='f"_asc_type({own[0]}) is _asc_entry.kind"',
        new='"_asc_entry.kind is not None"',
        found_by=("tests/test_decorator.py::test_values_of_other_types_are_other_calls",),
    ),
    Mutant(
        name="types-of-several-not-confirmed",
        line="§9",
        what="f(True, 1) gets the value of f(1, 1).",
        file="_wrapper.py",
        old='f"_asc_type({name}) is _asc_entry.kind[{place}]" for place, name',
        new='"_asc_entry.kind" for _, _name',
        found_by=(
            "equal_calls_are_one_and_different_ones_are_not",
            "tests/test_decorator.py::test_values_of_other_types_are_other_calls",
        ),
    ),
    Mutant(
        name="order-of-a-dict-matters",
        line="§9",
        what="Equal dicts written in another order are other calls.",
        file="_keys.py",
        old="return (dict, _bag(zip(forms[::2], forms[1::2], strict=True)))",
        new="return (dict, *zip(forms[::2], forms[1::2], strict=True))",
        found_by=("tests/test_keys.py::test_equal_values_of_one_type_share_a_key",),
    ),
    Mutant(
        name="repeated-members-count-once",
        line="§9",
        what="Members of a set that share a key count once: sets of other sizes share a key.",
        file="_keys.py",
        old="return bag if len(bag) == len(members) else frozenset(Counter(members).items())",
        new="return bag",
        found_by=("tests/test_keys.py::test_members_that_share_a_key_still_count",),
    ),
    Mutant(
        name="two-arguments-are-one-tuple",
        line="§9",
        what="A call with two arguments has the key of a call with one tuple of them.",
        file="_keys.py",
        old="return (Call, *(canonical(",
        new="return (tuple, *(canonical(",
        found_by=(
            "tests/test_keys.py::test_a_call_of_several_arguments_is_not_a_call_of_one_tuple",
        ),
    ),
    Mutant(
        name="nan-accepted",
        line="§9",
        what="NaN is a key that is never found again.",
        file="_keys.py",
        old="if value.is_nan() if isinstance(value, Decimal) else cmath.isnan(value):",
        new="if False:",
        found_by=("tests/test_keys.py::test_refused_values_name_the_parameter_and_the_type_alone",),
    ),
    Mutant(
        name="raw-lists-accepted",
        line="§9",
        what="A list is accepted as a raw key.",
        file="_keys.py",
        old="        if self.raw:\n",
        new="        if False:\n",
        found_by=("tests/test_keys.py::test_raw_keys_are_hashable_at_every_depth",),
    ),
    Mutant(
        name="foreign-metaclass-asked",
        line="§9",
        what="A metaclass's own equality decides which class a value has: classes share keys.",
        file="_keys.py",
        old="if meta is not type and not _compares_by_identity(meta):",
        new="if False:",
        found_by=(
            "tests/test_keys.py::test_neither_hashing_nor_comparing_a_key_runs_user_code",
            "tests/test_keys.py::test_refused_values_name_the_parameter_and_the_type_alone",
        ),
    ),
    Mutant(
        name="instants-in-two-zones-differ",
        line="§9",
        what="One instant, written in two zones, is two keys.",
        file="_keys.py",
        old="reading - timedelta.__floordiv__(offset, _MICROSECOND))",
        new="reading)",
        found_by=("tests/test_keys.py::test_equal_values_of_one_type_share_a_key",),
    ),
    Mutant(
        name="refusal-keeps-a-plan",
        line="§9",
        what="A class that gains a __cache_key__ after it was refused is refused for ever.",
        file="_keys.py",
        old="        if plan is not None:\n            plans[cls] = plan",
        new="        plan = plan or (lambda _value, _walk: (cls,))\n        plans[cls] = plan",
        found_by=("tests/test_keys.py::test_a_class_that_gains_a_hook_is_accepted_from_then_on",),
    ),
    Mutant(
        name="registration-does-not-plan-anew",
        line="§9",
        what="register_key_type() after the first use of a class changes nothing.",
        file="_keys.py",
        old="        _plans = WeakKeyDictionary()",
        new="        pass",
        found_by=(
            "tests/test_keys.py::TestRegistration::test_the_nearest_rule_counts_and_the_last_registration",
        ),
    ),
    Mutant(
        name="encoding-without-lengths",
        line="§9",
        what="Encoded keys run into each other: ('a', 'bc') and ('ab', 'c') are one.",
        file="_keys.py",
        old='return b"%b%d:%b" % (tag, len(body), body)',
        new='return b"%b:%b" % (tag, body)',
        found_by=("tests/test_keys.py::test_encodings_are_pinned",),
    ),
    Mutant(
        name="instance-known-by-its-address",
        line="§9",
        what="A new instance at the address of an old one gets the old one's values.",
        file="_wrapper.py",
        old='same = f"_asc_space.owner() is {first} and {same}"',
        new="pass",
        found_by=(
            "tests/test_decorator.py::test_a_new_instance_at_the_address_of_an_old_one_finds_nothing",
        ),
    ),
    Mutant(
        name="namespace-known-by-its-address",
        line="§9",
        what="A new instance takes over the namespace of a dead one at its address.",
        file="_function.py",
        old="if space is not None and space.owner is not None and space.owner() is instance:",
        new="if space is not None:",
        found_by=(
            "tests/test_decorator.py::test_a_new_instance_at_the_address_of_an_old_one_finds_nothing",
            "tests/test_decorator.py::test_short_lived_instances_at_one_address_leave_no_entries",
        ),
    ),
    Mutant(
        name="method-holds-its-instance",
        line="§9",
        what="The cache keeps every instance alive whose method was called.",
        file="_function.py",
        old="space = Namespace(self.store, self.name, self.counters, owner)",
        new="space = Namespace(self.store, self.name, self.counters, lambda: instance)",
        found_by=(
            "an_instance_takes_its_entries_along",
            "tests/test_decorator.py::test_an_instance_is_held_weakly_and_takes_its_entries_along",
        ),
    ),
    Mutant(
        name="two-functions-with-one-prefix",
        line="§9",
        what="Two functions may have one prefix, and nobody is told.",
        file="_functions.py",
        old="if function.explicit and others:",
        new="if False:",
        found_by=("tests/test_decorator.py::test_two_live_functions_cannot_have_one_prefix",),
    ),
    Mutant(
        name="reload-keeps-the-older-values",
        line="§9",
        what="A reloaded function leaves the entries of the older one where they are.",
        file="_functions.py",
        old="        return older",
        new="        return []",
        found_by=(
            "a_newer_function_never_sees_what_the_older_one_loaded",
            "tests/test_decorator.py::test_a_reloaded_function_replaces_the_older_one_and_clears_it",
        ),
    ),
    # -- §12 counting
    Mutant(
        name="join-not-counted",
        line="§12",
        what="Who joins a load is no call.",
        file="_loads.py",
        old="space.counters.coalesced += 1",
        new="pass",
        found_by=(
            "callers_of_one_key_share_one_load",
            "tests/test_cache.py::test_hits_misses_and_joins_are_all_calls",
        ),
    ),
    Mutant(
        name="caller-counted-twice",
        line="§12",
        what="Who waits out a clean-up and then loads counts as two misses.",
        file="_loads.py",
        old="""\
            counted = True
            timer = alarm = None""",
        new="            timer = alarm = None",
        found_by=(
            "nobody_joins_a_load_that_is_being_cancelled",
            "tests/test_survivors.py::test_who_waits_out_a_clean_up_and_then_loads_is_one_call",
        ),
    ),
    Mutant(
        name="refresh-counted-as-a-call",
        line="§12",
        what="A refresh counts as a call of somebody.",
        file="_loads.py",
        old="counted = refresh",
        new="counted = False",
        found_by=(
            "a_refresh_is_seen_by_every_read_after_it",
            "tests/test_decorator.py::test_a_refresh_that_joins_a_load_is_no_call",
        ),
    ),
    Mutant(
        name="hit-of-many-not-counted",
        line="§12",
        what="Hits of get_many are not counted.",
        file="_engine.py",
        old="        space.counters.other_hits += 1\n        return entry",
        new="        return entry",
        found_by=(
            "a_bulk_read_sees_hits_only_and_disturbs_no_load",
            "tests/test_cache.py::test_get_many_answers_hits_in_first_seen_order_and_counts_each_key_once",
        ),
    ),
    Mutant(
        name="abandoned-load-counted-as-an-error",
        line="§12",
        what="A load that was cancelled because everybody left counts as a failed one.",
        file="_landing.py",
        old="""\
            counters = space.counters
""",
        new="""\
            counters = space.counters
            counters.load_errors += cancelled and flight.cancelling
""",
        found_by=(
            "when_all_leave_the_load_is_cancelled",
            "tests/test_survivors.py::test_a_load_that_everybody_left_is_neither_a_load_nor_an_error",
        ),
    ),
    # -- §13 threads
    Mutant(
        name="answered-from-a-foreign-thread",
        line="§13",
        what="A waiter in another loop is answered without waking that loop: it sleeps on.",
        file="_flights.py",
        old="elif loop is here or loop is None:",
        new="elif True:",
        found_by=("tests/test_threads.py::test_two_loops_share_one_load",),
    ),
    Mutant(
        name="cancelled-from-a-foreign-thread",
        line="§13",
        what="The last waiter, in another loop, cancels the load without waking its loop.",
        file="_flights.py",
        old="if loop is running_loop():",
        new="if True:",
        found_by=("tests/test_threads.py::test_the_last_waiter_may_leave_from_another_loop",),
    ),
    Mutant(
        name="task-factory-passed-by",
        line="§13",
        what="The loop's task factory does not make the tasks of loads: they are none of its kind.",
        file="_tasks.py",
        old="sys.exception() is None and loop.get_task_factory() is None:",
        new="sys.exception() is None:",
        found_by=("tests/test_flights.py::test_a_task_factory_makes_the_tasks_of_loads",),
        since=(3, 12),
    ),
    Mutant(
        name="own-tasks-of-a-loop-passed-by",
        line="§13",
        what="A loop that makes tasks of a kind of its own does not make those of loads.",
        file="_tasks.py",
        old="return _Way.ITSELF if itself else _Way.NOT",
        new="return _Way.PLAIN",
        found_by=(
            "tests/test_flights.py::test_a_loop_that_makes_its_own_tasks_makes_those_of_loads",
        ),
        since=(3, 12),
    ),
    Mutant(
        name="older-loop-asked-for-too-much",
        line="§13",
        what="No load can begin in a loop that does not know how to begin a task at once.",
        file="_tasks.py",
        old='itself = "eager_start" in',
        new='itself = True or "eager_start" in',
        found_by=(
            "tests/test_flights.py::test_a_loop_that_makes_its_own_tasks_makes_those_of_loads",
        ),
        since=(3, 12),
    ),
    Mutant(
        name="evicted-through-an-iterator",
        line="§13",
        what="The evictor takes two steps where a hit of another thread may come between.",
        file="_eviction.py",
        old="return self._order.popitem(last=False)[0]",
        new="""\
oldest = next(iter(self._order), None)
            if oldest is not None:
                del self._order[oldest]
            return oldest""",
        found_by=(
            "tests/test_threads.py::test_a_hit_of_another_thread_at_any_step_of_a_write_breaks_nothing",
        ),
    ),
    Mutant(
        name="absent-while-it-is-replaced",
        line="§13",
        what="A peek between the two steps of another thread's write finds nothing.",
        file="_engine.py",
        old="""\
        if entry is None:
            with self._lock:
                entry = self.peek(space, key, now)
        return entry""",
        new="        return entry",
        found_by=("tests/test_threads.py::test_a_value_that_is_being_replaced_is_never_missing",),
    ),
    Mutant(
        name="child-joins-its-parents-loads",
        line="§13",
        what="A forked child waits for loads that run in its parent.",
        file="_flights.py",
        old="""\
        self._registry, self._apart, self.running = {}, {}, {}
        self.overlapping = self.hung = 0
        return flights""",
        new="        return flights",
        found_by=("tests/test_fork.py::test_a_child_joins_no_load_of_its_parent",),
    ),
    Mutant(
        name="child-counts-on",
        line="§13",
        what="A forked child reports the counts of its parent as its own.",
        file="_engine.py",
        old="            counters.forget()",
        new="            pass",
        found_by=("tests/test_fork.py::test_a_child_keeps_the_entries_and_counts_from_zero",),
    ),
    Mutant(
        name="fork-waits-for-no-lock",
        line="§13",
        what="A fork in the middle of another thread's write leaves the child an empty cache.",
        file="_fork.py",
        old="lock if lock.acquire(timeout=PATIENCE) else None",
        new="lock if lock.acquire(blocking=False) else None",
        found_by=("tests/test_fork.py::test_a_fork_waits_for_a_write_of_another_thread",),
    ),
    Mutant(
        name="torn-cache-kept",
        line="§13",
        what="A child whose fork could not wait goes on with a half-done write.",
        file="_engine.py",
        old="if torn or self.state is",
        new="if self.state is",
        found_by=(
            "tests/test_fork.py::test_a_cache_whose_lock_cannot_be_had_starts_the_child_empty",
        ),
    ),
    Mutant(
        name="child-tells-of-its-parent",
        line="§13",
        what="A forked child tells its listeners what happened in its parent.",
        file="_events.py",
        old="self._here.pending.clear()",
        new="pass",
        found_by=(
            "tests/test_events.py::test_a_child_is_told_nothing_of_the_parent_and_keeps_the_subscriptions",
        ),
    ),
    # -- §14 the end
    Mutant(
        name="close-answers-nobody",
        line="§14",
        what="aclose() cancels the loads and forgets those who wait for them.",
        file="_closing.py",
        old="                wake(each, outcome)",
        new="                pass",
        found_by=(
            "closing_answers_everybody_and_ends_every_load",
            "tests/test_lifecycle.py::test_closing_with_a_hundred_loads_answers_everybody_in_time",
        ),
    ),
    Mutant(
        name="load-admitted-after-the-end",
        line="§14",
        what="A call that comes in while the cache closes starts a load that nobody will end.",
        file="_loads.py",
        old="engine.admit()",
        new="pass",
        found_by=(
            "every_use_is_before_the_close_or_refused",
            "tests/test_lifecycle.py::test_use_after_the_end_is_an_error_at_once",
        ),
    ),
    Mutant(
        name="set-admitted-after-the-end",
        line="§14",
        what="A set after aclose() stores into the closed cache.",
        file="_engine.py",
        old="            self.admit()\n            self._fence(space, key, doomed)",
        new="            self._fence(space, key, doomed)",
        found_by=(
            "every_use_is_before_the_close_or_refused",
            "tests/test_lifecycle.py::test_use_after_the_end_is_an_error_at_once",
        ),
    ),
    Mutant(
        name="load-lands-after-the-end",
        line="§14",
        what="aclose() leaves the running loads registered: they store into the closed cache.",
        file="_closing.py",
        old="            waiting = [self.flights.dismiss(flight) for flight in flights]",
        new="            waiting = [dict(flight.waiters) for flight in flights]",
        found_by=(
            "a_cache_opened_again_is_empty_and_sees_no_load_of_before",
            "tests/test_survivors.py::test_a_load_that_swallows_its_cancellation_stores_nothing_in_a_closed_cache",
        ),
    ),
    Mutant(
        name="closed-in-its-first-step",
        line="§14",
        what="A load in whose first step its cache is closed is not cancelled: it runs on.",
        file="_loads.py",
        old="""\
            flight.cancel()
""",
        new="""\
            pass
""",
        found_by=(
            "tests/test_lifecycle.py::test_a_load_in_whose_first_step_its_cache_is_closed_is_cancelled",
        ),
        since=(3, 12),
    ),
    Mutant(
        name="drain-refuses-its-own-loads",
        line="§14",
        what="While the cache drains, the loads that it waits for may not use it, and fail.",
        file="_engine.py",
        old="return self.state is State.DRAINING and flight is not None and not flight.done",
        new="return False",
        found_by=(
            "draining_gives_everybody_inside_the_value",
            "tests/test_cancellation.py::test_draining_lets_loads_use_the_cache_to_their_end",
        ),
    ),
    Mutant(
        name="close-shuts-what-was-opened-again",
        line="§14",
        what="An aclose() that was draining closes a cache that somebody opened meanwhile.",
        file="_closing.py",
        old="""\
            if self.engine.state is State.OPEN:
                return []
""",
        new="",
        found_by=(
            "start_during_a_drain_keeps_the_cache_open",
            "tests/test_survivors.py::test_a_cache_opened_while_it_drains_stays_open",
        ),
    ),
    Mutant(
        name="close-waits-for-its-own-load",
        line="§14",
        what="aclose() from inside a load waits for that load until its timeout.",
        file="_closing.py",
        old="if flight is not current",
        new="if True",
        found_by=(
            "a_load_may_drain_its_cache",
            "tests/test_lifecycle.py::test_closing_from_inside_a_load_does_not_wait_for_that_load",
        ),
    ),
    Mutant(
        name="closed-function-still-loads",
        line="§14",
        what="After cache_close() a function goes on loading.",
        file="_functions.py",
        old="""\
        self._shut(function)
        if wait:
            await""",
        new="""\
        if wait:
            await""",
        found_by=(
            "one_function_ends_and_its_callers_are_told",
            "tests/test_decorator.py::test_the_attributes_of_functools_and_async_lru",
        ),
    ),
    Mutant(
        name="closed-function-loads-after-a-clean-up",
        line="§14",
        what="Who waited for a clean-up loads for a function that was closed meanwhile.",
        file="_functions.py",
        old="                space.closed = True\n",
        new="                pass\n",
        found_by=("a_call_held_up_by_a_clean_up_does_not_outlive_its_function",),
    ),
    Mutant(
        name="second-close-does-not-wait",
        line="§14",
        what="A second aclose() does not wait for the sweeper that a cancelled first one stopped.",
        file="_background.py",
        old="                self._ending.append(task)\n",
        new="                pass\n",
        found_by=("a_second_close_ends_the_first_one_s_patience",),
    ),
    # -- §4, §8 many keys as one
    Mutant(
        name="tags-fence-no-loads",
        line="§4",
        what="An invalidated tag leaves the loads of such keys alone: they store the old value.",
        file="_engine.py",
        old="if not set(tags).isdisjoint(flight.marks.all_tags()):",
        new="if False:",
        found_by=(
            "an_invalidated_tag_keeps_an_older_load_out",
            "tests/test_tags.py::test_a_load_under_way_is_fenced_by_its_tag",
        ),
    ),
    Mutant(
        name="tag-index-updated-late",
        line="§6",
        what="An entry that left stays in the index of its tags, with its value.",
        file="_store.py",
        old="            self.tags.discard(entry, facts.tags)\n",
        new="            pass\n",
        found_by=("tests/test_tags.py::test_nothing_is_left_of_a_tag_when_its_entries_are_gone",),
    ),
    Mutant(
        name="late-tags-not-held-back",
        line="§4",
        what="A tag that a loader adds in its last step was invalidated while it ran: stored.",
        file="_landing.py",
        old="if not self.engine.held_back(flight, flight.marks.all_tags()):",
        new="if True:",
        found_by=(
            "a_tag_that_the_loader_adds_last_keeps_it_out",
            "tests/test_tags.py::test_a_fenced_load_leaves_the_reason",
        ),
    ),
    Mutant(
        name="late-tags-stay-joinable",
        line="§4",
        what="A newcomer joins a load that may yet turn out to have an invalidated tag.",
        file="_engine.py",
        old="                flights.set_apart(flight.key)\n",
        new="",
        found_by=(
            "a_tag_that_the_loader_adds_last_is_fenced_too",
            "tests/test_tags.py::test_a_load_under_way_is_fenced_by_its_tag",
        ),
    ),
    Mutant(
        name="set-apart-is-fenced",
        line="§4",
        what="Each invalidation of tags loses every load that can still add some.",
        file="_engine.py",
        old="flights.set_apart(flight.key)",
        new="self._fence(*flight.key, doomed)",
        found_by=(
            "a_load_without_the_invalidated_tag_is_stored",
            "tests/test_tags.py::test_a_load_set_apart_is_stored_unless_its_key_was_written",
        ),
    ),
    Mutant(
        name="commit-in-two-steps",
        line="§8",
        what="A commit applies its writes one by one, with an await in between.",
        file="_transaction.py",
        old="                    self._commit()\n",
        new="""\
                    for place, write in self._writes.items():
                        self._engine.commit({place: write}, (), None)
                        await asyncio.sleep(0)
""",
        found_by=("a_commit_is_seen_whole_or_not_at_all",),
    ),
    Mutant(
        name="publish-before-retire",
        line="§8",
        what="A commit publishes the new a while the old b can still be seen by other threads.",
        file="_engine.py",
        old="                    self.store.retire(space, key, now, dropped)\n",
        new="                    pass\n",
        found_by=(
            "tests/test_transactions.py::test_every_old_value_is_retired_before_a_new_one_is_published",
        ),
    ),
    Mutant(
        name="commit-does-not-fence",
        line="§4",
        what="A load that began before a commit overwrites what was committed.",
        file="_engine.py",
        old="""\
                fenced = self._fence(space, key, doomed)
                if write is not None:""",
        new="""\
                fenced = False
                if write is not None:""",
        found_by=(
            "a_commit_beats_an_older_load",
            "tests/test_transactions.py::test_a_load_under_way_does_not_undo_a_commit",
        ),
    ),
    Mutant(
        name="conflict-not-noticed",
        line="§8",
        what='on_conflict="raise" commits although what it read was changed.',
        file="_engine.py",
        old="if watch is not None and watch.changed:",
        new="if False:",
        found_by=(
            "a_conflict_is_raised_and_nothing_applied",
            "tests/test_transactions.py::test_a_change_of_what_was_read_is_a_conflict",
        ),
    ),
    Mutant(
        name="swap-without-compare",
        line="§8",
        what="update() writes what it computed from a value that was changed meanwhile.",
        file="_engine.py",
        old="if self.peek(space, key, now) is not before:",
        new="if False:",
        found_by=(
            "no_update_is_lost",
            "tests/test_update.py::test_a_set_in_between_is_not_lost",
        ),
    ),
    Mutant(
        name="view-without-generation",
        line="§8",
        what="A view shows what was written after it opened: a mix.",
        file="_engine.py",
        old="if entry is not None and entry.generation > generation and entry.deadline > now:",
        new="if False:",
        found_by=(
            "a_view_sees_a_miss_and_never_a_mix",
            "tests/test_transactions.py::test_a_view_sees_what_was_there_and_nothing_newer",
        ),
    ),
    Mutant(
        name="section-not-refused",
        line="§8",
        what="A task writes inside its own section, and waits for itself.",
        file="_rwlock.py",
        old="        gate.refuse(task)\n        if not sections.wait",
        new="        if not sections.wait",
        found_by=("tests/test_transactions.py::test_nobody_writes_in_a_section_of_his_own",),
    ),
    Mutant(
        name="lock-released-early",
        line="§8",
        what="lock() is given back while its block still runs.",
        file="_locks.py",
        old="        return LockGrant(request.token)",
        new="        locks._leave(request)\n        return LockGrant(request.token)",
        found_by=(
            "a_lock_keeps_others_out_until_its_end",
            "tests/test_update.py::test_a_lock_is_exclusive_per_key_and_shared_by_readers",
        ),
    ),
    Mutant(
        name="dependency-edge-dropped",
        line="§4",
        what="A change reaches the first value that depends on it, and nothing behind that.",
        file="_links.py",
        old="                waiting.append(dependent)\n    return seen",
        new="                pass\n    return seen",
        found_by=(
            "a_change_reaches_everything_that_depends_on_it",
            "tests/test_dependencies.py::test_a_change_reaches_everything_behind_it",
        ),
    ),
    Mutant(
        name="cascade-does-not-fence",
        line="§4",
        what="A load is stored although what it depends on was changed while it ran.",
        file="_engine.py",
        old="""\
                    fenced = self._fence(space, key, doomed)
                store.remove""",
        new="""\
                    fenced = False
                store.remove""",
        found_by=(
            "a_change_reaches_everything_that_depends_on_it",
            "tests/test_dependencies.py::test_a_change_fences_the_load_of_what_depends_on_it",
        ),
    ),
    Mutant(
        name="kept-edges-dropped",
        line="§4",
        what="a -> b -> c, b is evicted: a change of a does not reach c.",
        file="_links.py",
        old="if node.dependents and source not in node.kept:",
        new="if False:",
        found_by=(
            "a_change_passes_through_what_was_evicted",
            "tests/test_dependencies.py::test_a_change_passes_through_what_was_evicted",
        ),
    ),
    Mutant(
        name="refresh-fences-who-waits-for-it",
        line="§4",
        what="A load that refreshes its own source is never stored.",
        file="_engine.py",
        old="if flight is not None and self.flights.cycle(landed, flight):",
        new="if False:",
        found_by=(
            "a_refresh_of_a_source_by_its_dependent_spares_it",
            "tests/test_dependencies.py::test_a_load_that_refreshes_its_own_source_is_stored",
        ),
    ),
    # -- §11 freshness
    Mutant(
        name="refresh-overwrites-newer",
        line="§11",
        what="A refresh stores what it has loaded though something newer was written meanwhile.",
        file="_landing.py",
        old="""\
        stored: bool | None = None
        allowed = self.flights.land(flight)""",
        new="""\
        stored: bool | None = None
        allowed = self.flights.land(flight) or flight.refresh""",
        found_by=(
            "warming_does_not_undo_a_delete",
            "warming_accounts_for_every_key_and_overwrites_nothing",
            "a_refresh_behind_does_not_undo_a_set",
        ),
    ),
    Mutant(
        name="refresh-not-fenced",
        line="§11",
        what="A write does not shut out the refresh that runs behind: it is joined, and stored.",
        file="_flights.py",
        old="""\
        if flight is None or flight.cancelling:
            return apart""",
        new="""\
        if flight is None or flight.cancelling or flight.refresh:
            return apart""",
        found_by=(
            "warming_does_not_undo_a_delete",
            "warming_accounts_for_every_key_and_overwrites_nothing",
            "a_refresh_behind_does_not_undo_a_delete",
        ),
    ),
    Mutant(
        name="stacked-refreshes",
        line="§11",
        what="Each reader of a stale value begins a refresh of his own.",
        file="_loads.py",
        old="if not revalidating or flight is not None or now < facts.retry:",
        new="if not revalidating or now < facts.retry:",
        found_by=(
            "several_stale_readers_begin_one_refresh",
            "two_stale_readers_begin_one_refresh",
            "a_bulk_caller_waits_for_the_refresh_behind",
        ),
    ),
    Mutant(
        name="stacked-refreshes-ahead",
        line="§11",
        what="Each reader of what is about to expire begins a load of his own.",
        file="_loads.py",
        old="        if self._running(entry, loop, now) is not None:\n            return entry\n",
        new="",
        found_by=("two_readers_of_a_raw_key_begin_one_refresh_ahead",),
    ),
    Mutant(
        name="backoff-lost",
        line="§11",
        what="A refresh that failed is tried again by the very next reader.",
        file="_landing.py",
        old="facts.retry = now + delay(first, max(1, facts.failures))",
        new="facts.retry = now",
        found_by=(
            "a_failing_refresh_is_not_tried_again_at_once",
            "a_stale_value_stands_in_for_a_failing_load",
            "a_refresh_that_hangs_holds_up_nobody",
        ),
    ),
    Mutant(
        name="backoff-does-not-grow",
        line="§11",
        what="An origin that is down is asked as often after its tenth failure as after its first.",
        file="_landing.py",
        old="facts.failures = facts.failures + 1 if failed else 0",
        new="facts.failures = 1 if failed else 0",
        found_by=("a_failing_refresh_is_not_tried_again_at_once",),
    ),
    Mutant(
        name="hung-load-keeps-the-key",
        line="§11",
        what="Newcomers join a load that was told to end because it hangs, and hang with it.",
        file="_flights.py",
        old="flight.cancelling = flight.timed_out = True",
        new="flight.timed_out = True",
        found_by=(
            "what_a_hung_load_brings_in_the_end_goes_nowhere",
            "a_load_that_hangs_holds_up_neither_its_callers_nor_its_key",
        ),
    ),
    Mutant(
        name="hung-load-not-cancelled",
        line="§11",
        what="At load_timeout the callers are told, and the load is left to hang.",
        file="_landing.py",
        old="        flight.cancel()\n        wake(waiting, outcome)\n        del dropped",
        new="        wake(waiting, outcome)\n        del dropped",
        found_by=(
            "a_load_that_hangs_holds_up_neither_its_callers_nor_its_key",
            "what_a_hung_load_brings_in_the_end_goes_nowhere",
            "a_refresh_that_hangs_holds_up_nobody",
        ),
    ),
    Mutant(
        name="hung-load-tells-nobody",
        line="§11",
        what="Who waits for a load that hangs waits for its clean-up, too, before it is told.",
        file="_flights.py",
        old="waiting, flight.waiters = flight.waiters, {}\n        return waiting",
        new="return {}",
        found_by=(
            "a_load_that_hangs_holds_up_neither_its_callers_nor_its_key",
            "what_a_hung_load_brings_in_the_end_goes_nowhere",
        ),
    ),
    Mutant(
        name="hung-load-stores-in-the-end",
        line="§11",
        what="What a hung load gives after its time is stored, and newcomers have it.",
        file="_flights.py",
        old="return registered and not flight.cancelling",
        new="return registered and (flight.timed_out or not flight.cancelling)",
        found_by=("what_a_hung_load_brings_in_the_end_goes_nowhere",),
    ),
    Mutant(
        name="hung-load-not-counted",
        line="§11",
        what="load_timeout is no figure: nobody learns that loads hang.",
        file="_landing.py",
        old="engine.load_timeouts += 1",
        new="engine.load_timeouts += 0",
        found_by=(
            "a_load_that_hangs_holds_up_neither_its_callers_nor_its_key",
            "what_a_hung_load_brings_in_the_end_goes_nowhere",
            "a_refresh_that_hangs_holds_up_nobody",
        ),
    ),
    Mutant(
        name="hung-load-counted-twice",
        line="§11",
        what="A hung load that gives a value in the end is two loads: one at its time, one then.",
        file="_landing.py",
        old="            if not flight.timed_out:\n                space.counters.loads += 1",
        new="            space.counters.loads += 1",
        found_by=("what_a_hung_load_brings_in_the_end_goes_nowhere",),
    ),
    Mutant(
        name="hung-load-hangs-for-ever-in-health",
        line="§11",
        what="A load that was told to end and has ended still counts as one that hangs.",
        file="_flights.py",
        old="            self.hung -= 1",
        new="            pass",
        found_by=(
            "a_load_that_hangs_holds_up_neither_its_callers_nor_its_key",
            "what_a_hung_load_brings_in_the_end_goes_nowhere",
            "a_refresh_that_hangs_holds_up_nobody",
        ),
    ),
    Mutant(
        name="clean-up-after-a-timeout-not-waited-for",
        line="§11",
        what="The next load begins beside one that hangs, without a grace for its clean-up.",
        file="_flights.py",
        old="flight.cancelling = flight.timed_out = True\n        self.hung += 1",
        new=(
            "flight.cancelling = flight.timed_out = True\n"
            "        self._registry.pop(flight.key)\n"
            "        self.hung += 1"
        ),
        found_by=("a_load_that_hangs_holds_up_neither_its_callers_nor_its_key",),
    ),
    Mutant(
        name="alarm-rings-who-has-left",
        line="§11",
        what="An alarm that rings in the moment its caller is cancelled raises in the loop.",
        file="_loads.py",
        old="    if not waiter.done():\n        waiter.set_result(_RANG)",
        new="    waiter.set_result(_RANG)",
        found_by=("a_cancellation_at_the_moment_the_time_is_up_is_not_lost",),
    ),
    Mutant(
        name="hard-timeout-not-set",
        line="§11",
        what="A caller with a hard_timeout, and nothing stale, waits as long as the load takes.",
        file="_loads.py",
        old="at = hard if stale is None else min(soft, hard)",
        new="at = math.inf if stale is None else min(soft, hard)",
        found_by=("nobody_waits_beyond_his_hard_timeout",),
    ),
    Mutant(
        name="hard-timeout-leaves-the-waiter-in",
        line="§11",
        what=(
            "Who left at his hard_timeout is still counted: the load that hangs is never cancelled."
        ),
        file="_loads.py",
        old=(
            "        self._forget(current, flight, waiter)\n"
            "        now = self.engine.moment_or_none()\n"
            "        if now is not None:"
        ),
        new="        now = self.engine.moment_or_none()\n        if now is not None:",
        found_by=("a_cancellation_at_the_moment_the_time_is_up_is_not_lost",),
    ),
    Mutant(
        name="soft-timeout-not-set",
        line="§11",
        what="A caller with something stale to take waits until its hard_timeout.",
        file="_loads.py",
        old="at = hard if stale is None else min(soft, hard)",
        new="at = hard",
        found_by=(
            "nobody_sees_an_error_while_something_stale_is_allowed",
            "a_stale_value_is_taken_when_the_load_is_slow",
        ),
    ),
    Mutant(
        name="soft-timeout-cancels-the-load",
        line="§11",
        what="Who takes the stale value cancels the load, and the next one waits from the start.",
        file="_loads.py",
        old=(
            "            flight.keep = True  # what is taken now is stale: the next one is "
            "on its way"
        ),
        new="            pass",
        found_by=("a_stale_value_is_taken_when_the_load_is_slow",),
    ),
    Mutant(
        name="time-begins-anew",
        line="§11",
        what="Who waits out a clean-up begins its hard_timeout from the start.",
        file="_loads.py",
        old=(
            "            step, flight, begun, waiter, stale = turn\n"
            "            counted = True\n"
            "            timer = alarm"
        ),
        new=(
            "            step, flight, begun, waiter, stale = turn\n"
            "            counted = True\n"
            "            soft, hard = _limits(options, loop)\n"
            "            timer = alarm"
        ),
        found_by=(
            "tests/test_freshness_mutants.py::test_who_waits_for_a_clean_up_first_waits_no_longer_for_that",
        ),
    ),
    Mutant(
        name="stale-beyond-its-window",
        line="§11",
        what="A call with a short window is served what another one has kept for longer.",
        file="_loads.py",
        old="return entry if entry is not None and now < entry.deadline + options.window else None",
        new="return entry",
        found_by=(
            "tests/test_patience.py::test_a_stale_value_that_grows_too_old_while_its_caller_waits_is_not_taken",
        ),
    ),
    Mutant(
        name="kept-for-ever",
        line="§11",
        what="A stale value is served as long as nobody has swept it, past its window.",
        file="_entries.py",
        old="return kept if kept is not None and kept.deadline > now else None",
        new="return kept",
        found_by=("tests/test_freshness.py::test_what_a_caller_gets",),
    ),
    Mutant(
        name="stale-if-error-served-at-once",
        line="§11",
        what="With stale_if_error alone the stale value is served without a load before it.",
        file="_loads.py",
        old="revalidating = now < entry.deadline + options.stale_while_revalidate",
        new="revalidating = now < entry.deadline + options.window",
        found_by=(
            "a_stale_value_stands_in_for_a_failing_load",
            "a_value_that_is_skipped_leaves_what_is_held",
        ),
    ),
    Mutant(
        name="stale-if-error-ignores-its-window",
        line="§11",
        what="A value stands in for a failed load although its window ended while that load ran.",
        file="_loads.py",
        old=(
            "                now is not None\n"
            "                and now < entry.deadline + options.window\n"
            "                and entry.kept(now) is not None"
        ),
        new="                now is not None",
        found_by=(
            "tests/test_patience.py::test_a_stale_value_that_grows_too_old_while_its_caller_waits_is_not_taken",
        ),
    ),
    Mutant(
        name="stale-if-error-never",
        line="§11",
        what="A load that fails fails for its callers, whatever is held.",
        file="_loads.py",
        old=(
            "        if isinstance(error, CacheClosedError) or options.is_answer(error):\n"
            "            return False\n"
        ),
        new=(
            "        if isinstance(error, Exception) or options.is_answer(error):\n"
            "            return False\n"
        ),
        found_by=(
            "a_stale_value_stands_in_for_a_failing_load",
            "nobody_sees_an_error_while_something_stale_is_allowed",
        ),
    ),
    Mutant(
        name="stale-stands-in-for-a-negative-answer",
        line="§11",
        what="An answer that is named in negative= is replaced by the value from before it.",
        file="_loads.py",
        old="isinstance(error, CacheClosedError) or options.is_answer(error):",
        new="isinstance(error, CacheClosedError):",
        found_by=("tests/test_patience.py::test_a_load_that_timed_out_can_be_an_answer",),
    ),
    Mutant(
        name="stale-stands-in-for-the-end",
        line="§11",
        what="Who waits when the cache closes is given a stale value out of the closed cache.",
        file="_loads.py",
        old="isinstance(error, CacheClosedError) or options.is_answer(error):",
        new="options.is_answer(error):",
        found_by=("tests/test_freshness.py::test_a_closed_cache_serves_nothing_stale",),
    ),
    Mutant(
        name="stale-after-a-delete",
        line="§11",
        what="A delete leaves what is stale where it is: it is served after it.",
        file="_store.py",
        old="            self._unlink(entry, cause if held else _EXPIRED, dropped)",
        new=(
            "            if fresh or not held:\n"
            "                self._unlink(entry, cause if held else _EXPIRED, dropped)"
        ),
        found_by=(
            "a_refresh_behind_does_not_undo_a_delete",
            "a_stale_value_that_was_deleted_stands_in_for_nothing",
            "what_is_not_modified_is_not_written_over_what_is",
        ),
    ),
    Mutant(
        name="stale-served-counts-nothing",
        line="§11",
        what="How often something stale was served is not counted.",
        file="_loads.py",
        old="self.engine.stale_served += 1",
        new="self.engine.stale_served += 0",
        found_by=(
            "several_stale_readers_begin_one_refresh",
            "a_stale_value_stands_in_for_a_failing_load",
        ),
    ),
    Mutant(
        name="stale-counted-in-len",
        line="§11",
        what="len(cache) counts what is stale as if it were fresh.",
        file="_store.py",
        old="return self.count - due - stale",
        new="return self.count - due",
        found_by=("tests/test_stale.py::test_a_value_may_be_kept_for_ever",),
    ),
    Mutant(
        name="expire-removes-what-is-kept",
        line="§11",
        what="expire() removes what could have been served stale: the next callers wait, or fail.",
        file="_store.py",
        old="if kept and cause is _EXPIRED:",
        new="if False:",
        found_by=("an_expired_value_stays_stale_until_a_newer_load",),
    ),
    Mutant(
        name="expired-twice-is-removed",
        line="§11",
        what="A second expire() of a key removes what the first one had left to be served stale.",
        file="_store.py",
        old="if kept and cause is _EXPIRED:",
        new="if kept and fresh and cause is _EXPIRED:",
        found_by=("an_expired_value_stays_stale_until_a_newer_load",),
    ),
    Mutant(
        name="kept-swept-at-its-deadline",
        line="§11",
        what="The next write frees what is past its ttl though it is kept to be served stale.",
        file="_store.py",
        old="due = [entry for entry in due if not self._stays(entry)]",
        new="pass",
        found_by=("an_expired_value_stays_stale_until_a_newer_load",),
    ),
    Mutant(
        name="kept-never-swept",
        line="§11",
        what="What was kept past its ttl is not freed when its window is over.",
        file="_store.py",
        old="        while freed < limit and now >= self._kept.soonest:",
        new="        while False:",
        found_by=("tests/test_stale.py::test_what_is_kept_no_more_leaves_before_what_is_fresh",),
    ),
    Mutant(
        name="retired-entry-stays-in-the-index-of-the-kept",
        line="§11",
        what="What is replaced or removed while it is stale stays in an index, with its key.",
        file="_store.py",
        old="                self._kept.discard(kept)",
        new="                pass",
        found_by=(
            "a_refresh_behind_does_not_undo_a_delete",
            "a_refresh_behind_does_not_undo_an_invalidation",
            "an_expired_value_stays_stale_until_a_newer_load",
        ),
    ),
    Mutant(
        name="touched-entry-keeps-its-older-moment",
        line="§11",
        what="Touched to a shorter ttl, a value with refresh_ahead is served past it by fast hits.",
        file="_store.py",
        old="            self._time(entry, entry.facts, ttl, born)\n        self.order",
        new="            pass\n        self.order",
        found_by=(
            "tests/test_refreshing.py::test_a_touched_value_is_refreshed_after_the_fraction_of_its_new_ttl",
        ),
    ),
    Mutant(
        name="look-ahead-hides-the-deadline",
        line="§11",
        what="While a load ahead runs, hits do not look at the deadline.",
        file="_store.py",
        old="entry.since = min(entry.deadline, max(entry.since, moment))",
        new="entry.since = max(entry.since, moment)",
        found_by=(
            "tests/test_freshness_mutants.py::test_a_hit_during_a_refresh_ahead_keeps_to_the_ttl",
        ),
    ),
    Mutant(
        name="ahead-never",
        line="§11",
        what="refresh_ahead=0.5 never refreshes: each value is missed when it expires.",
        file="_loads.py",
        old="    if entry.space.ahead is not None:\n        return True",
        new="    if entry.space.ahead is not None:\n        return False",
        found_by=("several_readers_begin_one_refresh_ahead",),
    ),
    Mutant(
        name="ahead-from-the-first-read",
        line="§11",
        what="With refresh_ahead each read of a raw key begins a load, however fresh it is.",
        file="_loads.py",
        old="return now >= entry.deadline - entry.since * (1 - (options.refresh_ahead or 0.0))",
        new="return True",
        found_by=("two_readers_of_a_raw_key_begin_one_refresh_ahead",),
    ),
    Mutant(
        name="xfetch-never",
        line="§11",
        what='refresh_ahead="auto" never refreshes.',
        file="_loads.py",
        old="return now - seconds * math.log(1.0 - random.random()) >= entry.deadline",
        new="return now >= entry.deadline",
        found_by=(
            "tests/test_refreshing.py::test_refresh_ahead_auto_begins_the_sooner_the_longer_a_load_takes",
        ),
    ),
    Mutant(
        name="xfetch-whatever-the-load-takes",
        line="§11",
        what='refresh_ahead="auto" does not know how long a load takes: it begins too late.',
        file="_landing.py",
        old="        facts.seconds = max(0.0, now - flight.begun)\n",
        new="",
        found_by=(
            "tests/test_refreshing.py::test_refresh_ahead_auto_begins_the_sooner_the_longer_a_load_takes",
        ),
    ),
    Mutant(
        name="refresh-behind-sees-its-caller",
        line="§11",
        what="A refresh behind runs in its caller's context: it pins and sees one user's request.",
        file="_loads.py",
        old="alone = alone or behind or options",
        new="alone = alone or options",
        found_by=("tests/test_load_context.py::test_a_load_behind_pins_no_request",),
    ),
    Mutant(
        name="isolated-load-sees-its-caller",
        line="§11",
        what='context="isolated" is not looked at: what one user may see is served to all.',
        file="_loads.py",
        old='alone = alone or behind or options.context == "isolated"',
        new="alone = alone or behind",
        found_by=("tests/test_load_context.py::test_an_isolated_load_pins_no_request",),
    ),
    Mutant(
        name="what-is-propagated-is-not",
        line="§11",
        what="An isolated load does not see the variables that propagate= lists.",
        file="_loader.py",
        old="for variable in (*options.vary_on, *options.propagate):",
        new="for variable in options.vary_on:",
        found_by=(
            "tests/test_load_context.py::test_a_load_sees_the_context_of_its_first_caller_or_what_it_is_allowed_to",
        ),
    ),
    Mutant(
        name="what-is-behind-holds-up-its-reader",
        line="§11",
        what="The load behind a stale value runs its first step before the reader has the value.",
        file="_loads.py",
        old="            if behind and flight.task is None:  # some task factories begin at once",
        new="            if False:",
        since=(3, 12),
        found_by=(
            "tests/test_load_context.py::test_a_load_behind_waits_where_all_tasks_begin_at_once",
        ),
    ),
    Mutant(
        name="refresh-behind-ends-with-nobody",
        line="§11",
        what="A refresh behind that somebody joined ends when he leaves: nothing is refreshed.",
        file="_loads.py",
        old="flight.refresh = flight.keep = True",
        new="flight.refresh = True",
        found_by=("a_bulk_caller_waits_for_the_refresh_behind",),
    ),
    Mutant(
        name="ttl-of-the-loader-ignored",
        line="§11",
        what="What a loader says of the ttl of its value, by its LoadContext, is not heard.",
        file="_landing.py",
        old="ttl = options.ttl if told is None or told.ttl is UNSET else told.ttl",
        new="ttl = options.ttl",
        found_by=(
            "tests/test_load_context.py::test_a_loader_chooses_how_long_its_value_stays_fresh",
        ),
    ),
    Mutant(
        name="not-modified-loses-the-tags",
        line="§11",
        what="A value that was confirmed has lost its tags: it cannot be invalidated any more.",
        file="_loader.py",
        old="            self._tags[:] = dict.fromkeys((*self._held, *self._tags))\n",
        new="",
        found_by=(
            "tests/test_load_context.py::test_what_is_not_modified_is_stored_again_with_a_new_ttl_and_its_tags",
        ),
    ),
    Mutant(
        name="skipped-by-the-loader-is-stored",
        line="§11",
        what="What a loader gave by ctx.skip() is stored.",
        file="_loader.py",
        old="return held.value, False",
        new="return held.value, True",
        found_by=("a_value_that_is_skipped_leaves_what_is_held",),
    ),
    # -- §10 values
    Mutant(
        name="skipped-is-stored",
        line="§10",
        what="What skip= names is stored all the same.",
        file="_landing.py",
        old=(
            "                if skip is not None and keep:\n"
            "                    keep = not skip(value)\n"
        ),
        new="",
        found_by=(
            "tests/test_value_options.py::test_what_is_skipped_is_returned_to_all_and_not_stored",
        ),
    ),
    Mutant(
        name="skipped-removes-what-is-held",
        line="§10",
        what="A value that is not to be stored takes the older one along.",
        file="_landing.py",
        old="            self._back_off(flight, options, now, failed=False)\n",
        new="            store.remove(space, key, RemovalCause.REJECTED, -math.inf, dropped)\n",
        found_by=("a_value_that_is_skipped_leaves_what_is_held",),
    ),
    Mutant(
        name="hits-are-not-copied",
        line="§10",
        what='copy="deep" hands out the stored object itself on a hit: one caller changes all.',
        file="_wrapper.py",
        old='value="_asc_value" if copied else "_asc_entry.value",',
        new='value="_asc_entry.value",',
        found_by=("tests/test_value_options.py::test_every_way_to_a_value_hands_out_a_copy",),
    ),
    Mutant(
        name="waiters-share-one-object",
        line="§10",
        what='copy="deep" gives all who waited for a load the one object that is stored.',
        file="_loads.py",
        old="""\
            if not refresh and outcome.ended is not None:
                self.engine.recent.fresh.append(outcome.ended - begun)
            failure = outcome.failure
            if failure is None:
                return outcome.value if options""",
        new="""\
            if not refresh and outcome.ended is not None:
                self.engine.recent.fresh.append(outcome.ended - begun)
            failure = outcome.failure
            if failure is None:
                return outcome.value if True or options""",
        found_by=("tests/test_value_options.py::test_a_hit_that_cannot_be_copied_is_one_hit",),
    ),
    Mutant(
        name="stale-is-not-copied",
        line="§10",
        what='copy="deep" hands out the stored object itself while it is stale.',
        file="_loads.py",
        old=(
            "                self._start_task(flight, loop, behind=True)\n"
            '                return _copied(cast("Entry", stale).value, options)'
        ),
        new=(
            "                self._start_task(flight, loop, behind=True)\n"
            '                return cast("Entry", stale).value'
        ),
        found_by=("tests/test_value_options.py::test_every_way_to_a_value_hands_out_a_copy",),
    ),
    # -- §11 warming
    Mutant(
        name="warming-loads-what-is-fresh",
        line="§11",
        what=(
            "A key that was set while it waited for its turn is loaded, and replaced, all the same."
        ),
        file="warming.py",
        old=(
            "            if target.fresh(cache, clock()) is not None:\n"
            "                turn.skip()\n"
            '                return "fresh"\n'
        ),
        new="",
        found_by=("warming_accounts_for_every_key_and_overwrites_nothing",),
    ),
    Mutant(
        name="warming-evicts-what-is-read-more",
        line="§11",
        what="In a full cache what is warmed takes the place of what is read.",
        file="_store.py",
        old=(
            "            if victim is None or victim is old or not self._reads(victim) < "
            "heat:\n"
            "                return False"
        ),
        new="            if victim is None or victim is old:\n                return False",
        found_by=(
            "tests/test_warming.py::test_what_turns_out_to_be_too_large_for_the_room_is_not_stored",
        ),
    ),
    Mutant(
        name="warming-does-not-look-before-it-loads",
        line="§11",
        what="What would find no room is loaded, and thrown away.",
        file="warming.py",
        old='        if self._crowded(target):\n            return "no room"\n        async',
        new="        async",
        found_by=("warming_takes_the_place_of_nothing_that_is_read_more",),
    ),
    Mutant(
        name="warming-forgets-what-it-did-not-begin",
        line="§11",
        what="A warm() that runs out of time does not report what it has not done.",
        file="warming.py",
        old='            run.skipped.setdefault(target.key, "time")',
        new="            pass",
        found_by=("warming_ends_at_its_time",),
    ),
    Mutant(
        name="warming-ends-at-the-first-failure",
        line="§11",
        what="One key that fails ends the whole warm(), and what was loaded is not reported.",
        file="warming.py",
        old=(
            "            except Exception as caught:  # noqa: BLE001 - reported, with its key\n"
            "                error = caught"
        ),
        new="            except ArithmeticError as caught:\n                error = caught",
        found_by=(
            "warming_accounts_for_every_key_and_overwrites_nothing",
            "warming_ends_with_the_cache",
        ),
    ),
    Mutant(
        name="least-popular-first",
        line="§11",
        what="warm_popular() begins with what is read least and loads fastest.",
        file="warming.py",
        old="found.sort(key=lambda item: -item[1] *",
        new="found.sort(key=lambda item: item[1] *",
        found_by=("tests/test_warming.py::test_the_popular_are_loaded_by_reads_times_load_time",),
    ),
    Mutant(
        name="least-read-kept",
        line="§11",
        what="Of more calls than are asked for the least read ones are warmed, and saved.",
        file="warming.py",
        old="item = popularity.worth(call.place, now), -number, call",
        new="item = -popularity.worth(call.place, now), -number, call",
        found_by=("tests/test_warming.py::test_the_popular_are_loaded_by_reads_times_load_time",),
    ),
    Mutant(
        name="lowest-priority-first",
        line="§11",
        what="warm() begins with the lowest priority.",
        file="warming.py",
        old="sorted(self._targets.values(), key=lambda target: -target.priority)",
        new="sorted(self._targets.values(), key=lambda target: target.priority)",
        found_by=("tests/test_warming.py::test_what_is_registered_again_is_replaced",),
    ),
    Mutant(
        name="ttls-not-staggered",
        line="§11",
        what="What was warmed together expires together.",
        file="_target.py",
        old=(
            "        if jitter > options.jitter:\n"
            "            options = options.but(jitter=jitter)\n"
            "        target"
        ),
        new="        target",
        found_by=("tests/test_warming.py::test_what_is_loaded_together_does_not_expire_together",),
    ),
    Mutant(
        name="reads-lost-at-removal",
        line="§11",
        what="What is evicted or expires counts as never read: the popular is forgotten first.",
        file="_store.py",
        old=(
            "        if self.popularity is not None:\n"
            "            self.hand_over(entry)\n"
            "        self.removals[cause] += 1"
        ),
        new="        self.removals[cause] += 1",
        found_by=("tests/test_warming.py::test_what_is_read_more_makes_room_for_itself",),
    ),
    Mutant(
        name="cancelled-turn-not-given-back",
        line="§11",
        what="Who is cancelled while he waits for his turn keeps his place in the line for ever.",
        file="_pace.py",
        old=(
            "        except BaseException:\n"
            "            self._pace._leave(self)\n"
            "            raise\n"
            "        return self"
        ),
        new="        except BaseException:\n            raise\n        return self",
        found_by=("warming_accounts_for_every_key_and_overwrites_nothing",),
    ),
    Mutant(
        name="ended-turn-not-given-back",
        line="§11",
        what="A load that has ended keeps its share of the budget: soon nothing is warmed.",
        file="_pace.py",
        old="        finally:\n            self._pace._leave(self)\n",
        new="        finally:\n            pass\n",
        found_by=(
            "warming_accounts_for_every_key_and_overwrites_nothing",
            "warming_does_not_undo_a_delete",
            "two_that_warm_the_same_load_each_key_once",
        ),
    ),
    Mutant(
        name="refresher-outlives-the-cache",
        line="§11",
        what="aclose() leaves the background refresh to run on.",
        file="_cache.py",
        old="return [self._sweeper, *self._sweeper.followers]",
        new="return [self._sweeper]",
        found_by=(
            "a_background_refresh_ends_when_it_is_stopped",
            "a_refresh_that_is_started_as_the_cache_closes_leaves_it_closed",
        ),
    ),
    Mutant(
        name="cancelled-close-leaves-the-refresher",
        line="§11",
        what=(
            "An aclose() that is cancelled while it waits leaves the background refresh to run on."
        ),
        file="_cache.py",
        old="                    job.dismiss()",
        new="                    pass",
        found_by=("a_refresh_that_is_started_as_the_cache_closes_leaves_it_closed",),
    ),
    Mutant(
        name="two-refreshers",
        line="§11",
        what="Two that start the background refresh start two, of which stop() ends one.",
        file="warming.py",
        old=(
            "        while self._refresher is not None:  # somebody else may have started "
            "one meanwhile\n"
            "            await self.stop()\n"
        ),
        new="        await self.stop()\n",
        found_by=("a_background_refresh_that_is_started_twice_runs_once",),
    ),
    Mutant(
        name="refresh-opens-a-closed-cache",
        line="§11",
        what="A background refresh that is started while the cache closes opens it again.",
        file="warming.py",
        old="            await self.stop()\n        cache._engine.admit()\n",
        new="            await self.stop()\n",
        found_by=("a_refresh_that_is_started_as_the_cache_closes_leaves_it_closed",),
    ),
    Mutant(
        name="stopped-refresher-not-waited-for",
        line="§11",
        what="aclose() beside a stop() returns before the background refresh has ended.",
        file="warming.py",
        old="""\
        await refresher.job.stop(seconds)
        # Until here it follows: who closes the cache meanwhile waits for its end, too.
        if self._refresher is refresher:
            self._refresher = None
            self.cache._sweeper.followers.remove(refresher.job)
""",
        new="""\
        self._refresher = None
        self.cache._sweeper.followers.remove(refresher.job)
        await refresher.job.stop(seconds)
""",
        found_by=("a_background_refresh_ends_when_it_is_stopped",),
    ),
    Mutant(
        name="refresher-loads-what-nobody-reads",
        line="§11",
        what="The background refresh loads again what was not read since it was loaded.",
        file="_refresher.py",
        old="entry is None or not entry.used or not now < entry.deadline < math.inf:",
        new="entry is None or not now < entry.deadline < math.inf:",
        found_by=(
            "tests/test_refresher.py::test_what_is_read_stays_fresh_and_what_is_not_is_loaded_once_more",
        ),
    ),
    Mutant(
        name="scheduled-loads-stack",
        line="§11",
        what="A scheduled load that takes longer than the interval is queued again and again.",
        file="_refresher.py",
        old="            self._active.add(place)\n            heapq",
        new="            heapq",
        found_by=(
            "tests/test_refresher.py::test_a_refresh_longer_than_its_interval_is_not_stacked",
        ),
    ),
    Mutant(
        name="refresher-forgets-what-it-has-in-hand",
        line="§11",
        what="A key that was refreshed once is never refreshed again.",
        file="_refresher.py",
        old="                self._active.discard(item[3].place)",
        new="                pass",
        found_by=("a_failing_key_is_left_alone_for_longer_each_time",),
    ),
    Mutant(
        name="refresher-does-not-back-off",
        line="§11",
        what="The background refresh asks a key that fails again at each interval.",
        file="_refresher.py",
        old="            again = self._backoffs.failed(place, now)",
        new="            again = now",
        found_by=("a_failing_key_is_left_alone_for_longer_each_time",),
    ),
    Mutant(
        name="refresher-replaces-what-is-newer",
        line="§11",
        what="What was set while it waited in the queue is loaded, and replaced, all the same.",
        file="_refresher.py",
        old=(
            "                    if self._overtaken(item):\n"
            "                        turn.skip()\n"
            "                    elif"
        ),
        new="                    if",
        found_by=(
            "tests/test_refresher.py::test_what_was_renewed_while_it_was_in_the_queue_is_not_loaded_again",
        ),
    ),
    Mutant(
        name="least-valuable-first",
        line="§11",
        what="The background refresh begins with what is read least and loads fastest.",
        file="_refresher.py",
        old="        return late, value, entry.deadline",
        new="        return late, -value, entry.deadline",
        found_by=("tests/test_refresher.py::test_the_most_valuable_is_refreshed_first",),
    ),
    Mutant(
        name="predictor-mixes-its-users",
        line="§11",
        what="One sequence of all users' reads is learned from: it says nothing.",
        file="_prediction.py",
        old="            before = _last.get()\n            _last.set((self, place))\n",
        new=(
            '            before = self.__dict__.get("_before")\n'
            '            self.__dict__["_before"] = self, place\n'
        ),
        found_by=(
            "tests/test_refresher.py::test_what_is_likely_to_be_read_next_is_loaded_before_it_is",
        ),
    ),
    # -- §9 what a value depends on besides its arguments
    Mutant(
        name="vary-on-not-in-the-key",
        line="§9",
        what=(
            "The value of a vary_on variable is no part of a call's key: one tenant sees another's."
        ),
        file="_function.py",
        old="            return self.space, *call_key(values, self.parameters)",
        new="""\
            own = len(values) - len(self.options.vary_on)
            return self.space, *call_key(values[:own], self.parameters[:own])""",
        found_by=(
            "tests/test_value_options.py::test_a_value_is_served_to_those_alone_whose_context_it_varies_on",
        ),
    ),
    Mutant(
        name="vary-on-not-in-raw-keys",
        line="§9",
        what="vary_on of a cache is not looked at for raw keys: one tenant sees another's values.",
        file="_places.py",
        old="        if self.vary_on:",
        new="        if False:",
        found_by=("tests/test_value_options.py::test_raw_keys_vary_where_the_cache_says_so",),
    ),
)
