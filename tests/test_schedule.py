"""When something is due: at times of day whatever the clocks do, and every so many seconds."""

import math
import os
import time as system
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_safe_cache._schedule import At, Every

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)


def berlin(*moment: int, fold: int = 0) -> datetime:
    return datetime(*moment, tzinfo=BERLIN, fold=fold)  # type: ignore[arg-type, misc]


def due(at: Any, wall: datetime, times: int = 3) -> list[str]:
    """Return the next moments, as the wall clock shows them, with the offset from UTC."""
    schedule = At(at)
    shown: list[str] = []
    for _ in range(times):
        wall = schedule.next(wall).astimezone(wall.tzinfo)
        shown.append(wall.isoformat(" ")[5:-3])
    return shown


# ---- times of day


def test_a_time_of_day_is_due_once_a_day() -> None:
    assert due("09:30", berlin(2024, 1, 1, 9, 29, 59)) == [
        "01-01 09:30:00+01",
        "01-02 09:30:00+01",
        "01-03 09:30:00+01",
    ]


def test_it_is_due_strictly_after_the_moment_that_is_given() -> None:
    at = At("09:30")
    moment = berlin(2024, 1, 1, 9, 30)
    assert at.next(moment - timedelta(microseconds=1)) == moment
    assert at.next(moment) == moment + timedelta(days=1)
    assert at.next(moment + timedelta(microseconds=1)) == moment + timedelta(days=1)


def test_of_several_times_the_next_one_is_due() -> None:
    expected = ["12-31 23:59:59+01", "01-01 00:00:00+01", "01-01 12:00:00+01"]
    wall = berlin(2023, 12, 31, 20)
    assert due(["12:00", "23:59:59", time(0)], wall) == expected
    assert due(("00:00", time(12), "23:59:59", "12:00:00"), wall) == expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("02:30", ["03-30 02:30:00+01", "03-31 03:00:00+02", "04-01 02:30:00+02"]),
        ("02:00", ["03-30 02:00:00+01", "03-31 03:00:00+02", "04-01 02:00:00+02"]),
        ("02:59:59", ["03-30 02:59:59+01", "03-31 03:00:00+02", "04-01 02:59:59+02"]),
        (
            time(2, 0, 0, 1),
            ["03-30 02:00:00.000001+01", "03-31 03:00:00+02", "04-01 02:00:00.000001+02"],
        ),
        ("01:59:59", ["03-30 01:59:59+01", "03-31 01:59:59+01", "04-01 01:59:59+02"]),
        ("03:00", ["03-30 03:00:00+01", "03-31 03:00:00+02", "04-01 03:00:00+02"]),
    ],
    ids=str,
)
def test_a_time_that_does_not_exist_is_due_right_after_the_gap(
    at: Any, expected: list[str]
) -> None:
    assert due(at, berlin(2024, 3, 30)) == expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("02:30", ["10-26 02:30:00+02", "10-27 02:30:00+02", "10-28 02:30:00+01"]),
        ("02:00", ["10-26 02:00:00+02", "10-27 02:00:00+02", "10-28 02:00:00+01"]),
        ("03:00", ["10-26 03:00:00+02", "10-27 03:00:00+01", "10-28 03:00:00+01"]),
    ],
)
def test_a_time_that_exists_twice_is_due_the_first_time(at: str, expected: list[str]) -> None:
    assert due(at, berlin(2024, 10, 26)) == expected


def test_in_the_hour_that_comes_again_nothing_is_due_again() -> None:
    again = berlin(2024, 10, 27, 2, 10, fold=1)
    assert due("02:30", again, 1) == ["10-28 02:30:00+01"]
    assert due("02:30", again.replace(fold=0), 1) == ["10-27 02:30:00+02"]


def test_a_fold_of_the_time_itself_changes_nothing() -> None:
    assert due(time(2, 30, fold=1), berlin(2024, 10, 27), 1) == ["10-27 02:30:00+02"]


def test_a_day_that_does_not_exist_at_all_is_due_as_the_next_begins() -> None:
    """Samoa went from the 29th to the 31st of December 2011."""
    wall = datetime(2011, 12, 29, 8, tzinfo=ZoneInfo("Pacific/Apia"))
    assert due("09:00", wall) == ["12-29 09:00:00-10", "12-31 00:00:00+14", "12-31 09:00:00+14"]


def test_the_time_to_wait_counts_hours_that_pass() -> None:
    """Berlin's clock shows 24 hours from noon to noon; 23 pass."""
    wall = berlin(2024, 3, 30, 12)
    assert At("12:00").next(wall) - wall == timedelta(hours=23)
    assert At("12:00").next(berlin(2024, 10, 26, 12)).tzinfo is UTC


def test_a_time_with_a_zone_is_meant_there() -> None:
    """Nine in Berlin, on a machine in UTC: 8 in winter and 7 in summer."""
    at = time(9, tzinfo=BERLIN)
    assert due(at, datetime(2024, 3, 30, tzinfo=UTC)) == [
        "03-30 08:00:00+00",
        "03-31 07:00:00+00",
        "04-01 07:00:00+00",
    ]
    assert due(time(23, tzinfo=timezone(timedelta(hours=-5))), berlin(2024, 1, 1, 3), 1) == [
        "01-01 05:00:00+01"
    ]


def test_the_same_time_in_two_zones_is_two_times() -> None:
    """Python holds them equal."""
    times = [time(9, tzinfo=BERLIN), time(9, tzinfo=ZoneInfo("Asia/Tokyo")), "09:00"]
    assert due(times, datetime(2024, 1, 1, tzinfo=UTC), 4) == [
        "01-01 08:00:00+00",
        "01-01 09:00:00+00",
        "01-02 00:00:00+00",
        "01-02 08:00:00+00",
    ]


@pytest.fixture
def _machine_in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.environ.get("TZ")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    system.tzset()
    yield
    if before is None:
        monkeypatch.delenv("TZ")
    else:
        monkeypatch.setenv("TZ", before)
    system.tzset()


@pytest.mark.skipif(not hasattr(system, "tzset"), reason="this system sets no zone per process")
@pytest.mark.usefixtures("_machine_in_berlin")
@pytest.mark.parametrize("at", ["02:30", "09:00", "00:00"])
def test_a_wall_clock_without_a_zone_is_the_machines_own(at: str) -> None:
    for begin in (datetime(2024, 3, 29), datetime(2024, 10, 25), datetime(2024, 7, 1)):
        for hours in range(24 * 4):
            wall = (begin.replace(tzinfo=UTC) + timedelta(hours=hours, minutes=1)).astimezone(
                BERLIN
            )
            assert At(at).next(wall.replace(tzinfo=None)) == At(at).next(wall)


# ---- against a look at the clock every minute


# The first day of seven around a change: 1 h; 30 min; a gap and a fold at midnight; a whole
# day; none.
CHANGES = {
    ("Europe/Berlin", date(2024, 3, 28)),
    ("Europe/Berlin", date(2024, 10, 24)),
    ("Australia/Lord_Howe", date(2024, 4, 4)),
    ("Australia/Lord_Howe", date(2024, 10, 3)),
    ("America/Sao_Paulo", date(2018, 11, 1)),
    ("America/Sao_Paulo", date(2018, 2, 15)),
    ("America/Havana", date(2024, 3, 7)),
    ("Pacific/Apia", date(2011, 12, 27)),
    ("America/Nuuk", date(2024, 3, 28)),
    ("UTC", date(2024, 2, 26)),
}


@cache
def shown_each_minute(zone: str, first: date) -> list[tuple[datetime, datetime]]:
    """Return each minute of seven days in UTC, and what the clock shows then."""
    begin = datetime.combine(first, time(0), UTC)
    minutes = [begin + minute * MINUTE for minute in range(7 * 24 * 60)]
    return [(each, each.astimezone(ZoneInfo(zone)).replace(tzinfo=None)) for each in minutes]


def scanned(at: list[time], zone: str, first: date, now: datetime) -> datetime:
    """Look at the clock every minute: when does it first show, or jump over, one of the times?"""
    seen: set[datetime] = set()
    for (_, before), (moment, shown) in pairwise(shown_each_minute(zone, first)):
        if shown - before == MINUTE:
            passed = {shown} if shown.time() in at else set()
        else:
            days = {before.date() + timedelta(days=each) for each in range(3)}
            passed = {datetime.combine(day, each) for day in days for each in at}
            passed = {each for each in passed if before < each <= shown}
        passed -= seen
        seen |= passed
        if passed and moment > now:
            return moment
    raise AssertionError("it was never due")


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(CHANGES)),
    st.lists(st.integers(0, 24 * 60 - 1), min_size=1, max_size=4),
    st.integers(24 * 60, 5 * 24 * 60),
    st.sampled_from([0, 1, 59]),
)
def test_what_is_due_is_what_a_look_every_minute_finds(
    change: tuple[str, date], minutes: list[int], minute: int, second: int
) -> None:
    zone, first = change
    at = [time(*divmod(each, 60)) for each in minutes]
    now = shown_each_minute(zone, first)[minute][0] + timedelta(seconds=second)
    expected = scanned(at, zone, first, now)
    assert At(at).next(now.astimezone(ZoneInfo(zone))) == expected
    aware = [each.replace(tzinfo=ZoneInfo(zone)) for each in at]
    assert At(aware).next(now) == expected


@pytest.mark.parametrize(("zone", "first"), sorted(CHANGES))
def test_around_a_change_every_half_hour_is_due_as_often_as_there_are_days(
    zone: str, first: date
) -> None:
    """Each of the times, followed through the whole week, has one moment for each day."""
    begin, end = (shown_each_minute(zone, first)[each][1] for each in (24 * 60, 5 * 24 * 60))
    for minutes in range(5, 24 * 60, 30):
        at = time(*divmod(minutes, 60))
        wall = begin.replace(tzinfo=ZoneInfo(zone))
        moments: list[datetime] = []
        while (wall := At(at).next(wall).astimezone(ZoneInfo(zone))).date() <= end.date():
            moments.append(wall)
        days = (end.date() - begin.date()).days + (at > begin.time())
        assert len(moments) == days


# ---- every so many seconds


def test_every_counts_from_the_moment_that_is_given() -> None:
    assert Every(30).next(1000.0) == 1030
    assert Every(timedelta(minutes=5)).next(0.5) == 300.5


def test_jitter_shortens_by_up_to_its_fraction_and_never_lengthens() -> None:
    times = [Every(30, jitter=0.1).next(1000.0) for _ in range(2_000)]
    assert 1027 <= min(times) < 1027.2
    assert 1029.8 < max(times) <= 1030


@given(st.floats(1e-3, 1e9), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_the_next_time_is_later_and_never_too_late(
    seconds: float, jitter: float, chance: float
) -> None:
    later = Every(seconds, jitter, random=lambda: chance).next(0.0)
    assert seconds * (1 - jitter) <= later * (1 + 1e-9)
    assert 0 < later <= seconds


# ---- what is refused


@pytest.mark.parametrize(
    ("every", "error"),
    [
        (0, ValueError),
        (0.0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        (timedelta(0), ValueError),
        (True, TypeError),
        ("30", TypeError),
        (None, TypeError),
    ],
    ids=repr,
)
def test_a_wrong_interval_is_refused(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^every.* must be finite seconds above 0"):
        Every(every)


@pytest.mark.parametrize(
    ("jitter", "error"),
    [
        (-0.1, ValueError),
        (1.1, ValueError),
        (math.nan, ValueError),
        (True, TypeError),
        ("0.1", TypeError),
        (None, TypeError),
    ],
    ids=repr,
)
def test_a_wrong_jitter_is_refused(jitter: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^jitter.* must be between 0 and 1"):
        Every(30, jitter)


@pytest.mark.parametrize(
    "at",
    [
        *("25:00", "24:00", "9", "9:30", "09:60", "09:30:60", "0930", "09:30:00.5", "09:30+02:00"),
        *("T09:30", " 09:30", "09:30\n", "09:30 pm", "", "0٩:30", [], (), ["09:30", "9"]),
    ],
    ids=repr,
)
def test_what_is_no_time_of_day_is_refused(at: Any) -> None:
    with pytest.raises(ValueError, match=r'^at=.* must be times of day .*"HH:MM"') as told:
        At(at)
    shown = at[-1] if isinstance(at, list) and at else at
    assert f"at={shown!r}" in str(told.value)


@pytest.mark.parametrize(
    "at",
    [9, 9.5, None, True, b"09:30", datetime(2024, 1, 1, 9), {"09:30"}, [9], ["09:30", None]],
    ids=repr,
)
def test_what_is_of_another_type_is_refused(at: Any) -> None:
    with pytest.raises(TypeError, match=r'^at must be times of day .*"HH:MM"'):
        At(at)
