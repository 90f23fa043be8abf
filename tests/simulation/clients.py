"""Clients of a world: the real SDK, which repeats its calls, told to repeat them once more and to use ids again."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

from tests.simulation.agents import pause
from tests.simulation.passing import Departed
from tests.simulation.plan import MEMBERS

import mobd
from mobd.v1 import common_pb2

# Most happens in the first mob; the other one shares its commits.
MOB: Final = "m"
OTHER: Final = "n"
CALL_S: Final = 12.0
# Of who is in a hurry: the answer may or may not come in time.
HURRY_S: Final = 0.03


class Person:
    """A client, step by step."""

    def __init__(self, client: mobd.Client, name: str, departed: Departed) -> None:
        self.client = client
        self.name = name
        self._calls: dict[str, Callable[[dict[str, Any]], Awaitable[object]]] = {
            "deliver": self._deliver,
            "batch": self._batch,
            "ask": self._ask,
            "spawn": self._spawn,
            "hard_cancel": self._hard_cancel,
            "watch_input": self._watch_input,
            "get_input": lambda how: self.client.get_input(MOB, how["member"], how["input"], timeout=CALL_S),
            "observe": lambda how: self.client.observe(MOB, how["member"], fence=_fence(how), timeout=CALL_S),
            "list": self._list,
            "watch": self._watch,
            "operation": self._operation,
            "state": lambda _: self.client.get_state(MOB, timeout=CALL_S),
            "found": lambda how: departed.found(client, how["mob"], name),
            "remove": lambda how: departed.remove(client, how["mob"]),
        }
        self._aimed: dict[str, Any] = {
            "interrupt": client.interrupt,
            "retire_member": client.retire_member,
            "respawn_member": client.respawn_member,
            "retire_runtime": client.retire_runtime,
            "destroy_runtime": client.destroy_runtime,
        }
        self._on_mob: dict[str, Any] = {
            "retire_all": client.retire_all_members,
            "stop": client.stop_mob,
            "resume": client.resume_mob,
            "reset": client.reset_mob,
            "complete": client.complete_mob,
            "destroy": client.destroy_mob,
        }

    async def do(self, what: str, how: dict[str, Any]) -> str:
        """Do something; return what came of it, for people."""
        try:
            if what in self._aimed:
                await self._aimed[what](
                    MOB, how["member"], fence=_fence(how), request_id=self._request(what, how), timeout=CALL_S
                )
            elif what in self._on_mob:
                await self._on_mob[what](MOB, request_id=self._request(what, how), timeout=CALL_S)
            else:
                await self._calls[what](how)
        except mobd.Error as error:
            if error.reason == "INTERNAL":
                raise
            return f"{type(error).__name__} {error.reason}"
        return "done"

    def _request(self, what: str, how: dict[str, Any]) -> str | None:
        # An id that is used again is used for the same call, mostly.
        request = how.get("request")
        return f"{what}-{request}" if request is not None and request != "r0" else request

    async def _deliver(self, how: dict[str, Any]) -> None:
        # As whoever must know: with the same id, until it is known.
        name = how.get("input") or mobd.uuid7()
        for attempt in range(4):
            try:
                await self.client.deliver(
                    how.get("mob", MOB),
                    how["member"],
                    how["text"],
                    input_id=name,
                    fence=_fence(how),
                    **_shape(how),
                    timeout=HURRY_S if how.get("hurry") and not attempt else CALL_S,
                )
            except (mobd.Unavailable, mobd.DeadlineExceeded):
                continue
            return

    async def _batch(self, how: dict[str, Any]) -> None:
        drafts = [
            mobd.Draft(one["member"], one["text"], one.get("input") or mobd.uuid7(), _fence(one), **_shape(one))
            for one in how["drafts"]
        ]
        for _ in range(3):
            try:
                await self.client.deliver_batch(MOB, drafts, timeout=CALL_S)
            except (mobd.Unavailable, mobd.DeadlineExceeded):
                continue
            return

    async def _ask(self, how: dict[str, Any]) -> None:
        await self.client.ask(MOB, how["member"], how["text"], input_id=how.get("input"), timeout=CALL_S)

    async def _spawn(self, how: dict[str, Any]) -> None:
        member = how["member"]
        await self.client.spawn(
            MOB, member, MEMBERS[member], request_id=self._request(f"spawn-{member}", how), timeout=CALL_S
        )

    async def _hard_cancel(self, how: dict[str, Any]) -> None:
        seen = await self.client.observe(MOB, how["member"], timeout=CALL_S)
        if seen.current_run_id:
            request = self._request(f"cancel-{seen.current_run_id}", how)
            await self.client.hard_cancel(MOB, how["member"], seen.current_run_id, request_id=request, timeout=CALL_S)

    async def _watch_input(self, how: dict[str, Any]) -> None:
        try:
            async with (
                asyncio.timeout(CALL_S),
                aclosing(self.client.watch_input(MOB, how["member"], how["input"])) as states,
            ):
                async for _ in states:
                    pass
        except TimeoutError:
            return

    async def _list(self, _: dict[str, Any]) -> None:
        _members = [one async for one in self.client.list_members(MOB, timeout=CALL_S)]
        _inputs = [one async for one in self.client.list_inputs(MOB, timeout=CALL_S)]
        _runs = [one async for one in self.client.list_runs(MOB, timeout=CALL_S)]
        _operations = [one async for one in self.client.list_operations(MOB, timeout=CALL_S)]

    async def _watch(self, how: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(how["seconds"]), self.client.watch_events(MOB) as events:
                async for _ in events:
                    pass
        except TimeoutError:
            return

    async def _operation(self, how: dict[str, Any]) -> None:
        name = f"tool-{how.get('request', mobd.uuid7())}"
        await self.client.register_operation(MOB, "a tool", operation_id=name, request_id=f"{name}-1", timeout=CALL_S)
        await pause(1.0)
        await self.client.complete_operation(MOB, name, {"ok": 1}, request_id=f"{name}-2", timeout=CALL_S)


def _fence(how: dict[str, Any]) -> common_pb2.Fence | None:
    return common_pb2.Fence(generation=how["generation"]) if "generation" in how else None


def _shape(how: dict[str, Any]) -> dict[str, Any]:
    return {
        "steer": True if how.get("steer") else None,
        "wake": not how.get("quiet", False),
        "supersession_key": "key" if how.get("supersedes") else "",
    }
