"""The client for applications: asyncio. `mobd.sync` has the same methods without it."""

# ruff: noqa: ASYNC109  the timeout of a call is over all of its repeats, and is told to the server

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import datetime
from typing import Any

from mobd import errors
from mobd.base import PAGE
from mobd.bridge import BridgeCalls
from mobd.content import load
from mobd.deliveries import ask_timeout, event_start
from mobd.ids import uuid7
from mobd.members import MemberCalls
from mobd.mobs import MobCalls
from mobd.operations import OperationCalls
from mobd.states import MobState, read_state
from mobd.v1 import agents_pb2, bridge_pb2, events_pb2, runs_pb2, server_pb2
from mobd.watches import AgentEventWatch, EventWatch


class Client(MobCalls, MemberCalls, BridgeCalls, OperationCalls):
    """Speaks to a mobd server.

    Every call waits for the server and repeats itself, with the same ids, over restarts until `timeout` seconds are
    over; then it raises what stood in the way. Reads return the message that was asked for, mutations the whole answer
    (with `cursor` and `replayed`), lists are async iterators over all pages. What the server refuses is raised, as the
    class of its reason (`mobd.MobNotFound`) under `mobd.Error`. Use it on one event loop; close it when done.

    `token` is what the server knows the caller by, MOBD_TOKEN if it is not given; a server that takes only callers
    with a token refuses others with TokenMissing or TokenUnknown, which are `mobd.Unauthenticated`.
    """

    async def ask(
        self, mob_id: str, member_id: str, content: Any, *, input_id: str | None = None, timeout: float = 60.0
    ) -> Any:
        """Deliver one input, wait until a run has consumed it, and return that run's output.

        Raise InputAbandoned if it was given up, InputReplaced if a newer one took its place. Raise AskTimeout if
        `timeout` seconds are over: the input stays, and asking again with its input_id joins it.
        """
        input_id = input_id or uuid7()
        last = bridge_pb2.Input()
        try:
            async with asyncio.timeout(timeout):
                await self.deliver(mob_id, member_id, content, input_id=input_id, timeout=timeout)
                async with aclosing(self.watch_input(mob_id, member_id, input_id)) as states:
                    async for state in states:
                        last = state
        except (TimeoutError, errors.Unavailable):
            raise ask_timeout(last, member_id, input_id, timeout) from None
        if last.state == bridge_pb2.INPUT_STATE_ABANDONED:
            raise errors.InputAbandoned(f"input {input_id} of member '{member_id}' was given up: {last.reason}", last)
        if last.replaced_by:
            raise errors.InputReplaced(f"input {last.replaced_by} took the place of input {input_id}", last)
        return load(last.output_json)

    async def get_run(self, mob_id: str, run_id: str, *, timeout: float | None = None) -> runs_pb2.Run:
        """Return a run."""
        request = runs_pb2.GetRunRequest(mob_id=mob_id, run_id=run_id)
        answer: runs_pb2.GetRunResponse = await self._call(self._stubs.runs.GetRun, request, timeout)
        return answer.run

    def list_runs(
        self,
        mob_id: str,
        *,
        member_id: str = "",
        state: "runs_pb2.RunState.ValueType" = runs_pb2.RUN_STATE_UNSPECIFIED,
        timeout: float | None = None,
    ) -> AsyncIterator[runs_pb2.Run]:
        """Yield runs, in flight and settled, in the order in which they started."""
        request = runs_pb2.ListRunsRequest(mob_id=mob_id, member_id=member_id, state=state, page_size=PAGE)
        return self._pages(lambda: self._stubs.runs.ListRuns, request, lambda answer: answer.runs, timeout)

    def list_agents(self, mob_id: str, *, timeout: float | None = None) -> AsyncIterator[agents_pb2.Agent]:
        """Yield the agents of a mob in the order in which they attached."""
        request = agents_pb2.ListAgentsRequest(mob_id=mob_id, page_size=PAGE)
        return self._pages(lambda: self._stubs.agents.ListAgents, request, lambda answer: answer.agents, timeout)

    async def poll_events(
        self,
        mob_id: str,
        *,
        after: int | None = 0,
        since: datetime | None = None,
        kinds: Iterable[str] = (),
        members: Iterable[str] = (),
        limit: int = 0,
        log_id: str = "",
        timeout: float | None = None,
    ) -> events_pb2.PollEventsResponse:
        """Return a page of events after a cursor; go on from its next_cursor until that equals its head.

        `since` begins at a time instead; `after=None` after the newest event.
        """
        request = events_pb2.PollEventsRequest(
            mob_id=mob_id,
            start=event_start(after, since),
            limit=limit,
            filter=events_pb2.EventFilter(kinds=kinds, member_ids=members),
            log_id=log_id,
        )
        return await self._call(self._stubs.events.PollEvents, request, timeout)

    def watch_events(
        self,
        mob_id: str,
        *,
        after: int | None = 0,
        since: datetime | None = None,
        kinds: Iterable[str] = (),
        members: Iterable[str] = (),
        log_id: str = "",
    ) -> EventWatch:
        """Yield the events after a cursor and then those that come, over breaks and restarts, each once and in order.

        `since` begins at a time instead; `after=None` after the newest event.
        """
        request = events_pb2.WatchEventsRequest(
            mob_id=mob_id,
            start=event_start(after, since),
            filter=events_pb2.EventFilter(kinds=kinds, member_ids=members),
            log_id=log_id,
        )
        return EventWatch(self._watch, request)

    def watch_agent_events(self, mob_id: str, member_id: str | None = None) -> AgentEventWatch:
        """Yield what the agents of a mob, or of one of its members, put out while they run; nothing of it is stored."""
        request = events_pb2.WatchAgentEventsRequest(mob_id=mob_id, member_id=member_id or "")
        return AgentEventWatch(self._watch_agents, request)

    async def get_state(
        self, mob_id: str, *, at_cursor: int | None = None, log_id: str = "", timeout: float | None = None
    ) -> MobState:
        """Return the whole state of a mob: now, or as it was after the event at `at_cursor`."""
        request = events_pb2.GetStateRequest(mob_id=mob_id, at_cursor=at_cursor, log_id=log_id)
        patience = self._timeout if timeout is None else timeout
        return await read_state(self.target, lambda: self._stubs.events.GetState(request), patience)

    async def server_info(self, *, timeout: float | None = None) -> server_pb2.GetServerInfoResponse:
        """Return version, limits and mode of the server."""
        return await self._call(self._stubs.server.GetServerInfo, server_pb2.GetServerInfoRequest(), timeout)

    def _watch(self, request: events_pb2.WatchEventsRequest) -> Any:
        return self._stubs.events.WatchEvents(request)

    def _watch_agents(self, request: events_pb2.WatchAgentEventsRequest) -> Any:
        return self._stubs.events.WatchAgentEvents(request)
