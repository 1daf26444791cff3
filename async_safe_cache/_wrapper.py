"""One wrapper per function, compiled from its signature, as dataclasses do.

The interpreter itself binds the arguments and fills in the defaults, so equal
calls meet in one key and nothing is packed on a hit. The source is built from
the names of parameters alone (identifiers already); everything else reaches it
as an object in its globals. Equal signatures share one code object.

    bind(a, b=..)       -> (a, b)    the values of a call, normalised
    invoke(f, values)   -> f(a, b)   the call itself
    wrapper(a, b=..)    the fast lookup, then `miss(values)`

The fast lookup tests nothing but the arguments' types and, where there is a ttl,
the deadline: everything exceptional is done by making it miss. An option that a
function does not use is not in its template. It takes no lock; that a dict read,
`touch` and `hits += 1` are single steps rests on the GIL.

Hits are counted in a closure's cell: a third less than in a slot (3.11).
"""

import inspect
import linecache
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache, partial
from keyword import iskeyword
from types import CellType, CodeType, FunctionType
from typing import Any, Final, NamedTuple, final

from ._entries import Entry
from ._eviction import PolicyName
from ._store import SEEN, TOUCH
from .outcomes import MISSING

__all__ = ["Compiled", "Parameters", "compile_wrapper"]

PREFIX: Final = "_asc_"

# Every name but the parameters has the prefix: nothing shadows a parameter. A failure in
# here goes the long way, which meets it again where it is told apart: another thread removed
# the entry in between (KeyError of touch), an argument's own __hash__ or __eq__ raised, the
# clock did; on 3.11 that the call is no hit (KeyError of the dict).
_FAST: Final = """\
        nonlocal _asc_hits
        try:
{find}            if {same}{fresh}:
{first}                {use}
                _asc_hits += 1
                return {value}
        except _asc_Exception:
            pass
"""

_FUNCTION: Final = """\
            _asc_entry = _asc_space.data{lookup}
"""

_METHOD: Final = """\
            _asc_space = _asc_instances[_asc_id({first})]
            _asc_entry = _asc_space.data{lookup}
"""

_FRESH: Final = " and _asc_clock() < _asc_entry.deadline"

_SOON: Final = " and _asc_clock() < _asc_entry.since"

# What may fail comes before the hit is counted: the long way counts it, too.
_COUNT: Final = "                _asc_entry.used += 1\n"

_SEE: Final = f"                {SEEN}(_asc_entry)\n"

_COPY: Final = "                _asc_value = _asc_copy(_asc_entry.value)\n"

_VARY: Final = "        _asc_vary_{place} = _asc_get_{place}(_asc_missing)\n"

_CURRENT: Final = " and _asc_entry.facts.current()"  # a few function calls: for dependents alone


# What the dict gives for a key that it does not hold: of no kind that an argument has.
_ABSENT: Final = Entry()
_ABSENT.kind = (None,) * 256

# To ask with a default costs a hit 12 ns on 3.11, where to raise costs a miss 290, and 8 on
# 3.13, where it costs 170: too much where a hit is to stay at its floor.
_LOOKUP: Final = ".get({key}, _asc_absent)" if sys.version_info >= (3, 12) else "[{key}]"

_USE: Final = {"lru": f"{TOUCH}(_asc_entry)", "s3fifo": "_asc_entry.used = True"}

_SOURCE: Final = """\
def bind({head}):
{bound}    return ({values})

def invoke(f, v):
    return f({call})

def make():
    _asc_hits = 0

    {async_}def wrapper({head}):
{vary}{fast}        return {await_}_asc_miss(({values}))

    return wrapper
"""


class Parameters(NamedTuple):
    """The parameters of a function as the templates need them.

    Attributes:
        names: All of them, in order.
        head: For `def`: with markers for defaults, `/` and `*`.
        call: For the original, from a tuple `v` of values.
        plain: No *args and no **kwargs: the fast lookup applies.
        defaults: Default values by parameter.
    """

    names: tuple[str, ...]
    head: str
    call: str
    plain: bool
    defaults: tuple[tuple[str, object], ...]


@final
class Compiled(NamedTuple):
    """What was compiled for one function.

    Attributes:
        hits: The cell in which the wrapper counts.
        counting: Returns the source of a wrapper that counts the hits of each entry, too,
            and shows them, or not.
    """

    wrapper: Callable[..., Any]
    hits: CellType
    bind: Callable[..., tuple[Any, ...]]
    invoke: Callable[[Callable[..., Any], tuple[Any, ...]], Any]
    source: str
    counting: Callable[[bool], str]


def parameters(signature: inspect.Signature) -> Parameters:
    """Return *signature* as the templates need it."""
    kinds = inspect.Parameter
    head: list[str] = []
    call: list[str] = []
    defaults: list[tuple[str, object]] = []
    plain = True
    before: inspect.Parameter | None = None
    for place, each in enumerate(signature.parameters.values()):
        if not each.name.isidentifier() or iskeyword(each.name):
            raise TypeError(f"the parameter {each.name!r} is no identifier")
        if before is not None and before.kind is kinds.POSITIONAL_ONLY != each.kind:
            head.append("/")
        starless = before is None or before.kind not in (kinds.VAR_POSITIONAL, kinds.KEYWORD_ONLY)
        if each.kind is kinds.KEYWORD_ONLY and starless:
            head.append("*")
        stars = {kinds.VAR_POSITIONAL.name: "*", kinds.VAR_KEYWORD.name: "**"}.get(
            each.kind.name, ""
        )
        plain = plain and not stars
        default = "" if each.default is each.empty else f"={PREFIX}default_{place}"
        if default:
            defaults.append((default[1:], each.default))
        head.append(f"{stars}{each.name}{default}")
        named = f"{each.name}=" if each.kind is kinds.KEYWORD_ONLY else ""
        call.append(f"{stars}{named}v[{place}]")
        before = each
    if before is not None and before.kind is kinds.POSITIONAL_ONLY:
        head.append("/")
    names = tuple(signature.parameters)
    return Parameters(names, ", ".join(head), ", ".join(call), plain, tuple(defaults))


def _source(
    form: Parameters,
    *,
    is_async: bool,
    method: bool,
    fast: bool,
    timed: bool,
    linked: bool,
    ahead: bool,
    counted: bool,
    seen: bool,
    copied: bool,
    vary: int,
    policy: PolicyName,
) -> str:
    """Return the source of the functions."""
    varying = tuple(f"_asc_vary_{place}" for place in range(vary))
    own = (*(form.names[1:] if method else form.names), *varying)
    if len(own) == 1:
        key, same = own[0], f"_asc_type({own[0]}) is _asc_entry.kind"
    else:
        key = f"({''.join(f'{name}, ' for name in own)})"
        # What is no plain call has the kind None, which has no first item either.
        same = " and ".join(
            f"_asc_type({name}) is _asc_entry.kind[{place}]" for place, name in enumerate(own)
        )
        same = same or "_asc_entry.kind == ()"
    first = form.names[0] if method else ""
    if method:
        same = f"_asc_space.owner() is {first} and {same}"
    lookup = _LOOKUP.format(key=key)
    find = (_METHOD if method else _FUNCTION).format(lookup=lookup, first=first)
    return _SOURCE.format(
        head=form.head,
        call=form.call,
        values="".join(f"{name}, " for name in (*form.names, *varying)),
        bound="".join(_VARY.format(place=place)[4:] for place in range(vary)),
        vary="".join(_VARY.format(place=place) for place in range(vary)),
        async_="async " if is_async else "",
        await_="await " if is_async else "",
        fast=_FAST.format(
            find=find,
            same=same,
            fresh=(_SOON if ahead else _FRESH if timed else "") + (_CURRENT if linked else ""),
            first=(_COPY if copied else "")
            + (_COUNT if counted and policy == "lru" else "")
            + (_SEE if seen else ""),
            use=_COUNT.strip() if counted and policy == "s3fifo" else _USE[policy],
            value="_asc_value" if copied else "_asc_entry.value",
        )
        if fast
        else "",
    )


@lru_cache(maxsize=512)
def _code(source: str) -> CodeType:
    """Compile *source* once; tracebacks and debuggers can show it."""
    filename = f"<async_safe_cache wrapper {abs(hash(source)):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return compile(source, filename, "exec")


def compile_wrapper(
    original: Callable[..., Any],
    form: Parameters,
    *,
    is_async: bool,
    method: bool,
    fast: bool,
    timed: bool,
    linked: bool,
    ahead: bool,
    counted: bool,
    seen: bool,
    copied: bool,
    vary: tuple["ContextVar[Any]", ...],
    policy: PolicyName,
    builtins: dict[str, Any],
    names: dict[str, object],
) -> Compiled:
    """Return the compiled functions for *original*.

    Args:
        original: The decorated function.
        form: Its parameters.
        is_async: Whether the wrapper is an `async def`.
        method: Whether the first parameter chooses the namespace.
        fast: Whether hits are looked up by the raw arguments.
        timed: Whether a hit must look at the deadline: entries without one only else.
        linked: Whether a hit must ask if what it depends on has changed.
        ahead: Whether a hit must look when the next load is to begin.
        counted: Whether each hit is counted at its entry.
        seen: Whether each hit is shown to the name `SEEN`.
        copied: Whether a hit hands out a copy, which `copy` among the names makes.
        vary: Context variables whose values are arguments, too: the last ones.
        policy: What a hit does to the order of eviction.
        builtins: The store's names, in which `touch` is always that of its order.
        names: What else the source uses: clock, miss, space and instances.
    """
    if any(name.startswith(PREFIX) for name in form.names):
        raise TypeError(f"parameters of a cached function must not begin with {PREFIX!r}")
    source_of = partial(
        _source,
        form,
        is_async=is_async,
        method=method,
        fast=fast and form.plain,
        timed=timed,
        linked=linked,
        ahead=ahead,
        copied=copied,
        vary=len(vary),
        policy=policy,
    )
    source = source_of(counted=counted, seen=seen)
    code = _code(source)
    scope: dict[str, Any] = {
        "__builtins__": builtins,
        "__name__": getattr(original, "__module__", __name__),
        f"{PREFIX}type": type,
        f"{PREFIX}id": id,
        f"{PREFIX}absent": _ABSENT,
        f"{PREFIX}missing": MISSING,
        **{f"{PREFIX}get_{place}": each.get for place, each in enumerate(vary)},
        f"{PREFIX}Exception": Exception,
        **{f"{PREFIX}{name}": value for name, value in names.items()},
        **dict(form.defaults),
    }
    exec(code, scope)  # from names of parameters alone, as dataclasses do
    # Taken out again: a function in its own globals is a cycle that only the collector ends.
    wrapper = scope.pop("make")()
    cells = dict(zip(wrapper.__code__.co_freevars, wrapper.__closure__ or (), strict=True))
    hits = cells.get(f"{PREFIX}hits") or CellType(0)

    def counting(seen: bool) -> str:
        return source_of(counted=True, seen=seen)

    return Compiled(wrapper, hits, scope.pop("bind"), scope.pop("invoke"), source, counting)


def count_reads(wrapper: FunctionType, source: str) -> None:
    """Let a compiled *wrapper* count the hits of each entry from now on, as *source* does.

    Its code alone is exchanged: callers hold the function, and calls that run go on.
    """
    scope = dict(wrapper.__globals__)
    exec(_code(source), scope)  # as above
    wrapper.__code__ = scope["make"]().__code__
