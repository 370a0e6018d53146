"""Waiting for an answer: no longer than asked, and for one that comes later (``async def``)."""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def answer(call: Callable[[], Any], timeout: float | None) -> Any:
    """The result of ``call``, awaited where it is to be; TimeoutError after ``timeout`` seconds.

    Python cannot end a thread: one that hangs is left behind, and does not keep the process from
    ending. Without a timeout there is no thread, but the one that awaits.
    """
    if timeout is None:
        return _settled(call(), None)
    outcome: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((_settled(call(), timeout), None))
        except BaseException as error:  # raised again where it was asked for
            outcome.append((None, error))

    worker = threading.Thread(target=run, name="reward", daemon=True)
    worker.start()
    worker.join(timeout)
    if not outcome:
        raise TimeoutError(f"no answer in {timeout:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def in_order(calls: Sequence[Callable[[], Any]], at_once: int) -> list[Any]:
    """What each of ``calls`` returns, up to ``at_once`` of them under way in threads of their own.

    The first error is raised at once: nothing new is begun then, and what is under way is left.
    """
    if at_once == 1 or len(calls) < 2:
        return [call() for call in calls]
    left = iter(enumerate(calls))
    lock, ended = threading.Lock(), threading.Event()
    outcomes: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        while not ended.is_set():
            with lock:
                index, call = next(left, (-1, None))
            if call is None:
                return
            try:
                outcomes.put((index, call(), None))
            except BaseException as error:  # raised again where it was asked for
                outcomes.put((index, None, error))

    for _ in range(min(at_once, len(calls))):
        threading.Thread(target=work, name="rewards", daemon=True).start()
    results: list[Any] = [None] * len(calls)
    try:
        for _ in calls:
            index, results[index], error = outcomes.get()
            if error is not None:
                raise error
    finally:
        ended.set()
    return results


def _settled(result: Any, timeout: float | None) -> Any:
    """``result``, or what comes of it: of an awaitable, a list of them together, an iterator."""
    if inspect.isawaitable(result) or _holds_awaitables(result):
        future = asyncio.run_coroutine_threadsafe(_gathered(result), _loop(os.getpid()))
        try:
            return future.result(timeout)
        except TimeoutError:
            if future.done():  # an error of its own
                raise
            raise TimeoutError(f"no answer in {timeout:g} s") from None
        finally:
            future.cancel()  # what is not done by now is waited for by nobody
    return list(result) if isinstance(result, Iterator) else result  # runs it, errors and all


def _holds_awaitables(result: Any) -> bool:
    return isinstance(result, list | tuple) and any(map(inspect.isawaitable, result))


async def _gathered(result: Any) -> Any:
    if inspect.isawaitable(result):
        result = await result
    if _holds_awaitables(result):
        return await asyncio.gather(*map(_value, result))
    return result


async def _value(item: Any) -> Any:
    return await item if inspect.isawaitable(item) else item


_loops: dict[int, asyncio.AbstractEventLoop] = {}
_making = threading.Lock()


def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The event loop of this process, in a thread of its own.

    One loop for all calls: clients of web services belong to the loop that they were made in. And
    the caller may have a loop of its own, in a notebook say, which cannot be waited in.
    """
    with _making:  # several threads may ask for the first time at once
        if process not in _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="rewards that wait", daemon=True).start()
            _loops[process] = loop
        return _loops[process]
