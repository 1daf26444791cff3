"""Wrong uses: both type checkers refuse every marked line, and complain if one is accepted."""

from async_safe_cache import AsyncSafeCache, race_safe_cached

cache = AsyncSafeCache("typing")


@race_safe_cached(cache, "price")
async def price(symbol: str, *, day: int = 0) -> float:
    return float(len(symbol) + day)


@race_safe_cached
def rules(folder: str) -> list[str]:
    return [folder]


class Service:
    @race_safe_cached(cache)
    async def get(self, number: int) -> str:
        return str(number)

    @classmethod
    @race_safe_cached
    async def of_class(cls, number: int) -> str:
        return cls.__name__ + str(number)

    @staticmethod
    @race_safe_cached(cache)
    def plain(number: int) -> str:
        return str(number)


async def fetch() -> int:
    return 1


def takes_two(first: int, second: int) -> int:
    return first + second


async def main() -> None:
    await price(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await price("a", hour=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await Service().get("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    text: str = await price("a")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await cache.invalidate(price, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await cache.invalidate(price)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await cache.refresh(Service().get, "1")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    cache.key_for(price, "a", hour=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    number: int = await cache.refresh(price, "a")  # type: ignore[call-overload]  # pyright: ignore[reportAssignmentType]
    AsyncSafeCache(policy="random")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    AsyncSafeCache(max_entries="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    race_safe_cached(cache, ttl="30")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    race_safe_cached(cache, on_abandon="keep")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    rules(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    folders: str = rules("a")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await Service.of_class("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Service.plain("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await cache.invalidate(Service.of_class, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await cache.invalidate(rules, "a", "b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await cache.invalidate(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    cache.key_for(Service.plain, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await cache.refresh(rules)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    cache.info("price")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    loaded: str = await cache.get_or_load("key", fetch)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    await cache.get_or_load("key", takes_two)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await cache.get_or_load("key", fetch, ttl="30")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await cache.get_or_load_many(["a"], fetch)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await cache.set("key", 1, tags=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    race_safe_cached(cache, stale_for_ever=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    cache.on("gone", print)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    race_safe_cached("price")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    print(text, number, folders, loaded)
