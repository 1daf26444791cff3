"""The error tree: what happened, what it means, what to do.

Every error of this library derives from `CacheError`, carries its facts as
attributes and prints them in a sentence that ends with the remedy. No message
holds a key, a value or a secret: names of functions, parameters and types only.
"""

__all__ = [
    "CacheClosedError",
    "CacheError",
    "HotSetError",
    "LoadCancelledError",
    "LoadTimeoutError",
    "LockDeadlockError",
    "ReadOnlySectionError",
    "RecursiveLoadError",
    "ScopeError",
    "TransactionConflictError",
    "UnsupportedKeyError",
]


class CacheError(Exception):
    """Base of every error that this library raises by itself."""


class CacheClosedError(CacheError):
    """The cache, or this function's part of it, is closed.

    Attributes:
        name: Name of the cache or of the function.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"{name!r} is closed: nothing is read, loaded or stored any more; "
            "call start() to open the cache again, empty, "
            'or decorate with after_close="call" to run functions uncached'
        )


class HotSetError(CacheError, ValueError):
    """A file cannot be read as the hot set of this application; nothing of it was used.

    Attributes:
        path: The file.
        problem: "truncated", "altered", "version", "application", "too large" or
            "not a hot set".
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        anew = "start without it, and save it anew"
        what, remedy = {
            "truncated": ("ends too early, as after a copy that was interrupted", anew),
            "altered": ("is not as it was written", anew),
            "version": ("has a version of the format that this library does not read", anew),
            "application": (
                "was saved by another application",
                "give each application a file of its own, or the name under which it was saved",
            ),
            "too large": (
                "is larger than any hot set that is saved (64 MiB or 1,000,000 calls)",
                anew,
            ),
            "not a hot set": ("is not a hot set", "give the path under which one was saved"),
        }[problem]
        super().__init__(f"{path!r} {what}: nothing of it was used; {remedy}")


class LoadCancelledError(CacheError):
    """The load was cancelled from inside or by a stranger, not by its callers.

    Waiters get this in place of a bare `CancelledError`, which would end their
    own task group although nobody cancelled them.

    Attributes:
        name: Name of the function or cache whose load ended.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"the load of {name!r} was cancelled from inside, not by its callers: "
            "nothing was stored and the next call loads again; "
            "look for a cancelled inner task or an expired timeout in the loader"
        )


class LoadTimeoutError(CacheError, TimeoutError):
    """A load took longer than a caller waits, or than it may.

    Attributes:
        name: Name of the function or cache.
        seconds: The timeout that has passed.
        option: "hard_timeout": this caller waits no longer, the load may go on for others;
            "load_timeout": the load itself was cancelled.
    """

    def __init__(self, name: str, seconds: float, option: str) -> None:
        self.name = name
        self.seconds = seconds
        self.option = option
        if option == "load_timeout":
            text = (
                f"the load of {name!r} took longer than load_timeout={seconds:g} s and was "
                "cancelled: nothing was stored and the next call loads again; "
            )
        else:
            text = (
                f"a call of {name!r} waited hard_timeout={seconds:g} s and waits no longer: "
                "the load goes on if others wait for it; "
            )
        super().__init__(
            text + "look at the origin, or let stale_if_error= answer with the older value"
        )


class LockDeadlockError(CacheError):
    """A task would wait, directly or not, for a lock that it holds itself.

    Attributes:
        held: Whether it asked for a key that it holds already, or that the caller
            of this load holds; else others and it would wait for each other.
    """

    def __init__(self, *, held: bool) -> None:
        self.held = held
        if held:
            text = (
                "this task holds a lock of that key already, or the caller that waits for "
                "this load does, so the wait could never end; "
                "ask for each key once, in the mode of the whole section, and not inside a load"
            )
        else:
            text = (
                "tasks that hold locks would wait for each other's and never end; "
                "ask for all keys in one call, lock(a, b), in place of nested blocks, "
                "or nest them in one order everywhere"
            )
        super().__init__(text)


class ReadOnlySectionError(CacheError):
    """A task writes inside a read section that it holds itself."""

    def __init__(self) -> None:
        super().__init__(
            "this task writes inside its own reading() section, which would be waiting for "
            "itself: nothing was written; write after the section has ended"
        )


class RecursiveLoadError(CacheError):
    """A load waits, directly or not, for itself: it could never end.

    Attributes:
        chain: Names of the functions whose loads wait for each other, the
            first one repeated at the end; no parts of keys.
        blocking_loop: True when a plain `def` would have blocked the thread
            or the event loop that has to finish the load.
    """

    def __init__(self, chain: tuple[str, ...], *, blocking_loop: bool = False) -> None:
        self.chain = chain
        self.blocking_loop = blocking_loop
        path = " -> ".join(chain)
        if blocking_loop:
            text = (
                f"{path}: this call would block the thread that runs the load it waits for, "
                "so neither could end; await an async function instead, "
                "or call it in another thread"
            )
        else:
            text = (
                f"{path}: a load waits for itself and could never end; "
                "call the undecorated function (__wrapped__) inside the load, "
                "or break the cycle"
            )
        super().__init__(text)


class UnsupportedKeyError(CacheError, TypeError):
    """A value cannot be part of a key.

    Attributes:
        parameter: Name of the parameter that held it.
        type_name: Type of the value; the value itself is never shown.
        reason: Why it is refused.
    """

    def __init__(self, parameter: str, type_name: str, reason: str) -> None:
        self.parameter = parameter
        self.type_name = type_name
        self.reason = reason
        super().__init__(
            f"{parameter} of type {type_name} cannot be part of a key: {reason}; "
            "pass a plain value, give the class a __cache_key__ method, "
            "register it with register_key_type(), or choose the key with key="
        )


class ScopeError(CacheError, RuntimeError):
    """A transaction or a view was used outside of its own `async with` block.

    Attributes:
        what: "transaction" or "view".
        problem: "not entered", "entered twice", "over" or "another task".
    """

    def __init__(self, what: str, problem: str) -> None:
        self.what = what
        self.problem = problem
        meanings = {
            "not entered": "is not open yet: nothing was read or written",
            "entered twice": "was entered before, and serves one block only",
            "over": "has ended: what it held is committed, or gone",
            "another task": "belongs to the task that entered it: nothing was done",
        }
        article = f"this {what} {meanings[problem]}"
        super().__init__(
            f"{article}; open one with `async with`, and use it inside that block and task only"
        )


class TransactionConflictError(CacheError):
    """Something that a transaction had read was changed by somebody else before it committed.

    Nothing of the transaction, or of the update, was applied.

    Attributes:
        name: Name of the cache.
        what: "a transaction", or "an update" whose own function writes the key.
    """

    def __init__(self, name: str, *, what: str = "a transaction") -> None:
        self.name = name
        self.what = what
        super().__init__(
            f"{what} on {name!r} read something that was changed before it committed: "
            "nothing of it was applied; read again and retry, or let the last commit win with "
            'on_conflict="last"'
        )
