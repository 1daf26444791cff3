"""race_safe_cached: a function whose concurrent equal calls share one load.

The wrapper is a real `async def` (or `def`) with the signature, name and docs of
the original, typed F -> F, the only form that type checkers accept for
functions, methods, static and class methods alike.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any, Final, Literal, TypeVar, cast, overload

from ._cache import AsyncSafeCache
from ._function import ATTRIBUTE, CachedFunction
from ._keys import Key
from ._registry import default_cache
from ._store import SEEN
from ._wrapper import Compiled, compile_wrapper, parameters
from .options import UNSET, Dependencies, NegativeTtl, Tags, Ttl, Unset
from .outcomes import RemovalCause

__all__ = ["race_safe_cached"]

F = TypeVar("F", bound=Callable[..., Any])

_WITHOUT_A_TASK: Final[dict[str, Any]] = {
    "stale_while_revalidate": None,
    "refresh_ahead": None,
    "soft_timeout": None,
    "load_timeout": None,
}
"""What the cache's options are for a plain `def`, which has no task to do this."""

_NEED_A_TASK: Final = (*_WITHOUT_A_TASK, "on_abandon", "cancel_grace")


@overload
def race_safe_cached(fn: F, /) -> F: ...
@overload
def race_safe_cached(
    cache: AsyncSafeCache | None = None,
    prefix: str | None = None,
    /,
    *,
    ttl: Ttl | Unset = ...,
    jitter: float | Unset = ...,
    on_abandon: Literal["cancel", "finish"] | Unset = ...,
    cancel_grace: float | timedelta | Unset = ...,
    negative: Mapping[type[Exception], NegativeTtl] | None | Unset = ...,
    key: Callable[..., object] | None = ...,
    method: bool | None = ...,
    after_close: Literal["error", "call"] | Unset = ...,
    tags: Tags | Callable[..., Tags] | Unset = ...,
    depends_on: Dependencies | Unset = ...,
    version: str | int | None | Unset = ...,
    stale_while_revalidate: float | timedelta | None | Unset = ...,
    stale_if_error: float | timedelta | None | Unset = ...,
    refresh_ahead: float | Literal["auto"] | None | Unset = ...,
    soft_timeout: float | timedelta | None | Unset = ...,
    hard_timeout: float | timedelta | None | Unset = ...,
    load_timeout: float | timedelta | None | Unset = ...,
    error_backoff: float | timedelta | None | Unset = ...,
    copy: Literal["none", "shallow", "deep"] | Unset = ...,
    skip: Callable[[Any], bool] | None | Unset = ...,
    vary_on: "ContextVar[Any] | Sequence[ContextVar[Any]] | Unset" = ...,
    context: Literal["caller", "isolated"] | Unset = ...,
    propagate: "ContextVar[Any] | Sequence[ContextVar[Any]] | Unset" = ...,
) -> Callable[[F], F]: ...
def race_safe_cached(
    target: Callable[..., Any] | AsyncSafeCache | None = None,
    prefix: str | None = None,
    /,
    *,
    ttl: Ttl | Unset = UNSET,
    jitter: float | Unset = UNSET,
    on_abandon: Literal["cancel", "finish"] | Unset = UNSET,
    cancel_grace: float | timedelta | Unset = UNSET,
    negative: Mapping[type[Exception], NegativeTtl] | None | Unset = UNSET,
    key: Callable[..., object] | None = None,
    method: bool | None = None,
    after_close: Literal["error", "call"] | Unset = UNSET,
    tags: Tags | Callable[..., Tags] | Unset = UNSET,
    depends_on: Dependencies | Unset = UNSET,
    version: str | int | None | Unset = UNSET,
    stale_while_revalidate: float | timedelta | None | Unset = UNSET,
    stale_if_error: float | timedelta | None | Unset = UNSET,
    refresh_ahead: float | Literal["auto"] | None | Unset = UNSET,
    soft_timeout: float | timedelta | None | Unset = UNSET,
    hard_timeout: float | timedelta | None | Unset = UNSET,
    load_timeout: float | timedelta | None | Unset = UNSET,
    error_backoff: float | timedelta | None | Unset = UNSET,
    copy: Literal["none", "shallow", "deep"] | Unset = UNSET,
    skip: Callable[[Any], bool] | None | Unset = UNSET,
    vary_on: "ContextVar[Any] | Sequence[ContextVar[Any]] | Unset" = UNSET,
    context: Literal["caller", "isolated"] | Unset = UNSET,
    propagate: "ContextVar[Any] | Sequence[ContextVar[Any]] | Unset" = UNSET,
) -> Any:
    """Cache the results of a function; equal calls at one time share one load.

    Works on `async def` (the load runs in a task of the cache's own) and on
    `def` (the first thread loads, the others wait), on functions, methods,
    class and static methods. Bare, it uses the process's default cache.

    Args:
        target: The function itself, or the cache to use.
        prefix: Name of the function's entries; default: module and qualified name.
        ttl: Seconds (or timedelta) a value stays fresh; None: for ever.
        jitter: Shortens ttl by up to this fraction, at random.
        on_abandon: "cancel" or "finish" a load that nobody waits for. `async def` only.
        cancel_grace: Seconds to wait for a cancelled load's clean-up. `async def` only.
        negative: Exception class -> ttl: failures to remember.
        key: Callable of the call's arguments that returns an accepted raw key,
            used instead of all arguments (of a method: the instance included).
        method: Whether the first parameter is an instance; default: defined in
            a class body with self or cls as its first parameter.
        after_close: "error" or "call" the original once the cache is closed.
        tags: Names to invalidate values by, together with others: str, a sequence of
            them, or a callable of the call's arguments that returns these.
        depends_on: Keys and calls whose change invalidates a value: a key, a call as
            (function, *arguments), a list of these, or a callable of the call's
            arguments that returns these.
        version: A value stored under another version is a miss.
        stale_while_revalidate: Seconds past its ttl in which a value is returned at once,
            while one load behind it brings the next. `async def` only.
        stale_if_error: Seconds past its ttl in which a value is returned if its load fails,
            or takes longer than a timeout.
        refresh_ahead: Fraction of ttl after which a call begins the next load behind it; or
            "auto", by chance, the sooner the longer a load takes. `async def` only.
        soft_timeout: Seconds after which a call returns a stale value, if there is one;
            the load goes on. `async def` only.
        hard_timeout: Seconds after which a call waits no longer. (A `def` that loads in its
            own thread cannot stop: only those who wait for it can.)
        load_timeout: Seconds after which a load is cancelled. `async def` only.
        error_backoff: Seconds after a failed load in which a value at hand is returned
            without another try; doubles with each failure in a row, up to 32 times. None:
            1 s for loads behind a value, and none for callers who wait.
        copy: "none": everybody is handed the stored object; "shallow" or "deep": a copy.
        skip: Callable of a value; true for one that is returned and not stored.
        vary_on: Context variables whose values are part of the key.
        context: "caller": a load sees a copy of its first caller's context; "isolated":
            only what *vary_on* and *propagate* list.
        propagate: Context variables that an isolated load still sees.

    Returns:
        The function with the attributes of functools and async-lru: cache_info,
        cache_clear, cache_parameters, cache_invalidate, cache_contains,
        cache_close, cache_key, and cache_source, the wrapper's own source. For
        a method they take the instance first.

    Raises:
        TypeError: It is a class or a generator function, or an option does not
            fit it.
        ValueError: An option is out of range, or the prefix is taken by
            another function of the cache.
    """
    given: dict[str, Any] = {
        "ttl": ttl,
        "jitter": jitter,
        "on_abandon": on_abandon,
        "cancel_grace": cancel_grace,
        "negative": negative,
        "after_close": after_close,
        "tags": tags,
        "depends_on": depends_on,
        "version": version,
        "stale_while_revalidate": stale_while_revalidate,
        "stale_if_error": stale_if_error,
        "refresh_ahead": refresh_ahead,
        "soft_timeout": soft_timeout,
        "hard_timeout": hard_timeout,
        "load_timeout": load_timeout,
        "error_backoff": error_backoff,
        "copy": copy,
        "skip": skip,
        "vary_on": vary_on,
        "context": context,
        "propagate": propagate,
    }
    if target is None or isinstance(target, AsyncSafeCache):
        cache = default_cache() if target is None else target
        _check(cache, prefix, key, method, given)
        return partial(_decorate, cache, prefix, given, key, method)
    if prefix is not None:
        raise TypeError(
            f"the first argument must be an AsyncSafeCache, not {type(target).__name__}: "
            "write race_safe_cached(cache, prefix)"
        )
    return _decorate(default_cache(), None, given, key, method, target)


def _check(
    cache: AsyncSafeCache,
    prefix: object,
    key: object,
    method: object,
    given: dict[str, Any],
) -> None:
    """Refuse wrong options where they are given, not at the first call."""
    if prefix is not None and not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not {type(prefix).__name__}")
    if prefix == "":
        raise ValueError("prefix='' must not be empty: it names the function's entries")
    if key is not None and not callable(key):
        raise TypeError(f"key must be a callable of the call's arguments, not {type(key).__name__}")
    if method not in (None, True, False):
        raise TypeError(f"method must be True, False or None, not {type(method).__name__}")
    cache._options.but(**given)


def _decorate(
    cache: AsyncSafeCache,
    prefix: str | None,
    given: dict[str, Any],
    key: Callable[..., object] | None,
    method: bool | None,
    fn: Any,
) -> Any:
    if isinstance(fn, (classmethod, staticmethod)):
        # Written above @classmethod instead of below: the same is meant.
        inner = _decorate(cache, prefix, given, key, method, cast("Any", fn).__func__)
        return classmethod(inner) if isinstance(fn, classmethod) else staticmethod(inner)
    what = getattr(fn, "__qualname__", type(fn).__name__)
    if inspect.isclass(fn):
        raise TypeError(f"{what} is a class: decorate its methods, or a function that makes one")
    if not callable(fn):
        raise TypeError(f"race_safe_cached decorates functions, not {type(fn).__name__}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(
            f"{what} is a generator function: a generator can be used only once; "
            "return a list instead"
        )
    is_async = inspect.iscoroutinefunction(fn)
    if not is_async:
        for option in _NEED_A_TASK:
            if given[option] is not UNSET:
                raise TypeError(
                    f"{option} needs a task that can be cancelled, and {what} is a plain `def`: "
                    "make it async, or leave the option out"
                )
    options = cache._options.but(**given)
    if not is_async:
        options = options.but(**_WITHOUT_A_TASK)
    form = parameters(inspect.signature(fn))
    is_method = _is_method(fn, form.names) if method is None else method
    if is_method and not form.names:
        raise TypeError(f"method=True, but {what} has no parameter for the instance")
    module = getattr(fn, "__module__", "") or ""
    function = CachedFunction(
        name=f"{module}.{what}" if prefix is None else prefix,
        explicit=prefix is not None,
        identity=(module, what, getattr(fn, "__code__", fn)),
        store=cache._engine.store,
        later=cache._engine.later,
        drop=cache._engine.drop,
        parameters=form.names,
        is_async=is_async,
        is_method=is_method,
        has_key=key is not None,
        options=options,
        counted=cache._engine.store.popularity is not None,
    )
    compiled = compile_wrapper(
        fn,
        form,
        is_async=is_async,
        method=function.is_method,
        fast=key is None,
        timed=function.timed,
        linked=function.space.linked,
        ahead=function.space.ahead is not None,
        counted=function.space.counted,
        seen=SEEN in cache._engine.store.names,
        copied=options.copier is not None,
        vary=options.vary_on,
        policy=cache._engine.store.policy,
        builtins=cache._engine.store.names,
        names={
            "clock": cache._engine.clock,
            "space": function.space,
            "instances": function.instances,
            "copy": options.copier,
            "miss": _miss_async(cache, function) if is_async else _miss_here(cache, function),
        },
    )
    function.counting = compiled.counting
    function.bind = compiled.bind
    function.counters.fast_hits = compiled.hits
    function.invoke = partial(compiled.invoke, fn)
    function.compute = compiled.invoke
    if key is not None:
        function.key_function = partial(compiled.invoke, key)
    wrapper = functools.wraps(fn)(compiled.wrapper)
    setattr(wrapper, ATTRIBUTE, function)
    _add_attributes(wrapper, compiled, cache, function)
    cache._functions.register(function, wrapper)
    return wrapper


def _is_method(fn: Any, names: tuple[str, ...]) -> bool:
    """Tell whether *fn* stands in a class body and begins with self or cls."""
    outer = getattr(fn, "__qualname__", "").rpartition(".")[0]
    in_class = bool(outer) and not outer.endswith("<locals>")
    return in_class and names[:1] in (("self",), ("cls",))


def _miss_async(cache: AsyncSafeCache, function: CachedFunction) -> Callable[..., Any]:
    load, sweeper, address = cache._loads.load, cache._sweeper, function.address
    store = cache._engine.store
    space_of_all, options = function.space, function.options
    marked = bool(options.tags or options.depends_on or function.space.described)
    simple = function.simple and len(function.parameters) == 1 and not marked

    def miss(values: tuple[Any, ...]) -> Any:
        if sweeper.wanted:
            sweeper.revive()
        if (
            simple and store.popularity is None
        ):  # a whole burst comes along here: one call less for what most calls are
            key = values[0]
            kind: object = type(key)  # pyright: ignore[reportUnknownVariableType]
            if kind is str or kind is int:
                return load(space_of_all, key, kind, function.invoke, (values,), options)
        if marked or store.popularity is not None:
            space, data, known = address(values)
            function.note(space, data, values)
            marks = cache._marks_of(function, values, (space, data))
            return load(space, data, known, function.invoke, (values,), options, marks)
        return load(*address(values), function.invoke, (values,), options)

    return miss if options.after_close == "error" else _unless_closed(cache, function, miss)


def _miss_here(cache: AsyncSafeCache, function: CachedFunction) -> Callable[..., Any]:
    load_here, address = cache._loads.load_here, function.address
    options = function.options

    def miss(values: tuple[Any, ...]) -> Any:
        space, key, kind = address(values)
        function.note(space, key, values)
        marks = cache._marks_of(function, values, (space, key))
        return load_here(space, key, kind, function.invoke, (values,), options, marks)

    return miss if options.after_close == "error" else _unless_closed(cache, function, miss)


def _unless_closed(
    cache: AsyncSafeCache, function: CachedFunction, miss: Callable[..., Any]
) -> Callable[..., Any]:
    """Let a function call the original once it, or its cache, is closed."""

    def call(values: tuple[Any, ...]) -> Any:
        if function.closed or not cache._engine.admits:
            return function.invoke(values)
        return miss(values)

    return call


def _add_attributes(
    wrapper: Any, compiled: Compiled, cache: AsyncSafeCache, function: CachedFunction
) -> None:
    """Give *wrapper* what users of functools and async-lru know."""
    engine = cache._engine

    def place(*args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        return function.address(function.bind(*args, **kwargs))

    def cache_info() -> "functools._CacheInfo":
        """Return hits (joins included), misses, maxsize and currsize."""
        hits, misses = function.info()
        size = sum(len(space.data) for space in function.spaces())
        bound = engine.store.max_entries
        maxsize = None if bound == float("inf") else int(bound)
        return functools._CacheInfo(hits, misses, maxsize, size)

    def cache_clear() -> None:
        """Remove every entry of this function, and count its info from 0 again."""
        cache._sections.refuse()
        engine.remove_spaces(function.spaces, RemovalCause.CLEARED)
        function.forget_info()

    def cache_parameters() -> dict[str, Any]:
        """Return how the function is cached."""
        return {
            "maxsize": cache_info().maxsize,
            "typed": True,
            "ttl": function.options.ttl,
            "tasks": len(cache._functions.flights_of(function)()),
            "closed": function.closed or cache.closed,
        }

    def cache_invalidate(*args: Any, **kwargs: Any) -> bool:
        """Remove the value of one call and fence its load; tell whether there was one."""
        cache._sections.refuse()
        space, data, _ = place(*args, **kwargs)
        return engine.remove([(space, data)], RemovalCause.DELETED) > 0

    def cache_contains(*args: Any, **kwargs: Any) -> bool:
        """Tell whether one call has a fresh value."""
        space, data, _ = place(*args, **kwargs)
        return engine.look(space, data, engine.clock()) is not None

    def cache_key(*args: Any, **kwargs: Any) -> Key:
        """Return the key of one call."""
        return Key(*place(*args, **kwargs), function.name)

    async def close(*, wait: bool = False) -> None:
        """End this function's loads (let them end with *wait*) and remove its entries."""
        await cache._functions.close(function, wait=wait)

    def close_here(*, wait: bool = False) -> None:
        """Remove this function's entries; with *wait* block until its loads have ended."""
        cache._functions.close_here(function, wait=wait)

    for attribute in (
        cache_info,
        cache_clear,
        cache_parameters,
        cache_invalidate,
        cache_contains,
        cache_key,
    ):
        setattr(wrapper, attribute.__name__, attribute)
    wrapper.cache_close = close if function.is_async else close_here
    wrapper.cache_source = compiled.source
