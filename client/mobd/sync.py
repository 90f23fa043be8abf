"""The client without asyncio: the same methods, which wait."""

import functools
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from mobd.client import Client
from mobd.loops import LoopThread

P = ParamSpec("P")
T = TypeVar("T")


def _waits(method: Callable[Concatenate[Client, P], Awaitable[T]]) -> "Callable[Concatenate[SyncClient, P], T]":
    def call(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        async def work() -> T:
            return await method(self._client, *args, **kwargs)

        return self._wait(work)

    functools.update_wrapper(call, method)
    return call


def _iterates(
    method: Callable[Concatenate[Client, P], AsyncIterator[T]],
) -> "Callable[Concatenate[SyncClient, P], Iterator[T]]":
    def call(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items: Any = method(self._client, *args, **kwargs)

        async def following() -> list[T]:
            try:
                return [await anext(items)]
            except StopAsyncIteration:
                return []

        try:
            while found := self._wait(following):
                yield found[0]
        finally:
            if self._stop.alive:
                self._wait(items.aclose)

    functools.update_wrapper(call, method)
    return call


class SyncClient:
    """`mobd.Client` for programs without asyncio: the same methods, parameters and errors; lists are iterators.

    Calls run on a loop in a thread of their own; any number of threads may share one client. Close it when done.
    """

    def __init__(self, target: str | None = None, *, token: str | None = None, timeout: float = 30.0) -> None:
        self._client = Client(target, token=token, timeout=timeout)
        self._thread = LoopThread("mobd-client")
        self._stop = weakref.finalize(self, self._thread.stop)

    @property
    def target(self) -> str:
        """The server's address."""
        return self._client.target

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread; the client can't be used any more."""
        if self._stop.alive:
            self._wait(self._client.close)
            self._stop()

    def _wait(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if not self._stop.alive:
            raise ValueError("the client is closed")
        future = self._thread.submit(work())
        try:
            return future.result()
        finally:
            # Ctrl-C ends the wait: the call ends with it.
            future.cancel()

    create_mob = _waits(Client.create_mob)
    ensure_mob = _waits(Client.ensure_mob)
    start_mob = _waits(Client.start_mob)
    stop_mob = _waits(Client.stop_mob)
    resume_mob = _waits(Client.resume_mob)
    complete_mob = _waits(Client.complete_mob)
    reset_mob = _waits(Client.reset_mob)
    destroy_mob = _waits(Client.destroy_mob)
    delete_mob = _waits(Client.delete_mob)
    get_mob = _waits(Client.get_mob)
    list_mobs = _iterates(Client.list_mobs)
    validate_definition = _waits(Client.validate_definition)
    spawn = _waits(Client.spawn)
    spawn_members = _waits(Client.spawn_members)
    ensure_member = _waits(Client.ensure_member)
    retire_member = _waits(Client.retire_member)
    respawn_member = _waits(Client.respawn_member)
    retire_all_members = _waits(Client.retire_all_members)
    wait_members = _waits(Client.wait_members)
    get_member = _waits(Client.get_member)
    list_members = _iterates(Client.list_members)
    deliver = _waits(Client.deliver)
    deliver_batch = _waits(Client.deliver_batch)
    ask = _waits(Client.ask)
    observe = _waits(Client.observe)
    interrupt = _waits(Client.interrupt)
    hard_cancel = _waits(Client.hard_cancel)
    retire_runtime = _waits(Client.retire_runtime)
    destroy_runtime = _waits(Client.destroy_runtime)
    check_fence = _waits(Client.check_fence)
    list_inputs = _iterates(Client.list_inputs)
    get_input = _waits(Client.get_input)
    watch_input = _iterates(Client.watch_input)
    get_operation = _waits(Client.get_operation)
    list_operations = _iterates(Client.list_operations)
    list_completions = _waits(Client.list_completions)
    wait_operations = _waits(Client.wait_operations)
    register_operation = _waits(Client.register_operation)
    start_operation = _waits(Client.start_operation)
    report_progress = _waits(Client.report_progress)
    mark_peer_ready = _waits(Client.mark_peer_ready)
    complete_operation = _waits(Client.complete_operation)
    fail_operation = _waits(Client.fail_operation)
    cancel_operation = _waits(Client.cancel_operation)
    get_run = _waits(Client.get_run)
    list_runs = _iterates(Client.list_runs)
    list_agents = _iterates(Client.list_agents)
    poll_events = _waits(Client.poll_events)
    watch_events = _iterates(Client.watch_events)
    watch_agent_events = _iterates(Client.watch_agent_events)
    get_state = _waits(Client.get_state)
    server_info = _waits(Client.server_info)
