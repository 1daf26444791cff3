"""An asyncio-native cache with request coalescing: one load for all who ask at once."""

from ._cache import AsyncSafeCache
from ._decorator import race_safe_cached
from ._keys import Key, register_key_type
from ._loader import LoadContext
from ._registry import get_async_safe_cache
from ._transaction import Transaction
from ._view import View
from .errors import (
    CacheClosedError,
    CacheError,
    HotSetError,
    LoadCancelledError,
    LoadTimeoutError,
    LockDeadlockError,
    ReadOnlySectionError,
    RecursiveLoadError,
    ScopeError,
    TransactionConflictError,
    UnsupportedKeyError,
)
from .options import AlertThresholds, CacheOptions
from .outcomes import (
    MISSING,
    CacheStats,
    Explanation,
    FunctionInfo,
    Invalidated,
    Loaded,
    LoadFailed,
    LockGrant,
    Lookup,
    MissReason,
    Refreshed,
    RemovalCause,
    Removed,
    WarmingReport,
)
from .warming import CacheWarmingStrategy

__all__ = [
    "MISSING",
    "AlertThresholds",
    "AsyncSafeCache",
    "CacheClosedError",
    "CacheError",
    "CacheOptions",
    "CacheStats",
    "CacheWarmingStrategy",
    "Explanation",
    "FunctionInfo",
    "HotSetError",
    "Invalidated",
    "Key",
    "LoadCancelledError",
    "LoadContext",
    "LoadFailed",
    "LoadTimeoutError",
    "Loaded",
    "LockDeadlockError",
    "LockGrant",
    "Lookup",
    "MissReason",
    "ReadOnlySectionError",
    "RecursiveLoadError",
    "Refreshed",
    "RemovalCause",
    "Removed",
    "ScopeError",
    "Transaction",
    "TransactionConflictError",
    "UnsupportedKeyError",
    "View",
    "WarmingReport",
    "get_async_safe_cache",
    "race_safe_cached",
    "register_key_type",
]
