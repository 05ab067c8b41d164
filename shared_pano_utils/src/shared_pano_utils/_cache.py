"""Process-wide cache of sampling maps: least recently used goes first, bounded by bytes."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol, TypeVar, cast


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Entry = TypeVar("Entry", bound=_Sized)


class CacheInfo(NamedTuple):
    """State of the map cache; sizes in bytes."""

    hits: int
    misses: int
    entries: int
    bytes: int
    limit_bytes: int


class MapCache:
    """Byte-bounded LRU mapping, safe to use from several threads and after a fork."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._forget()
        os.register_at_fork(after_in_child=self._reset_lock)
        self._reset_lock()

    def _reset_lock(self) -> None:
        self._lock = threading.Lock()

    def _forget(self) -> None:
        self._entries: OrderedDict[Hashable, _Sized] = OrderedDict()
        self._bytes = self._hits = self._misses = 0

    def get(self, key: Hashable | None, build: Callable[[], Entry]) -> Entry:
        """Return the entry of `key`, building it when missing; None as key is never stored.

        Entries larger than half of the limit are not stored either. Building happens outside of
        the lock: two threads may build the same entry, and both get an equal one.
        """
        if key is None:
            return build()
        with self._lock:
            if key in self._entries:
                self._hits += 1
                self._entries.move_to_end(key)
                return cast("Entry", self._entries[key])
            self._misses += 1
        entry = build()
        with self._lock:
            if entry.nbytes <= self._limit_bytes // 2 and key not in self._entries:
                self._entries[key] = entry
                self._bytes += entry.nbytes
                self._evict()
        return entry

    def _evict(self) -> None:
        while self._bytes > self._limit_bytes:
            self._bytes -= self._entries.popitem(last=False)[1].nbytes

    def info(self) -> CacheInfo:
        """Counters since the last `clear` and the present size."""
        with self._lock:
            return CacheInfo(
                self._hits, self._misses, len(self._entries), self._bytes, self._limit_bytes
            )

    def clear(self) -> None:
        """Drop all entries and reset the counters."""
        with self._lock:
            self._forget()

    def set_limit(self, limit_bytes: int) -> None:
        """Change the bound, dropping the oldest entries that no longer fit; 0 disables caching."""
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes is {limit_bytes}; pass a size >= 0 (0 disables caching)")
        with self._lock:
            self._limit_bytes = limit_bytes
            self._evict()
