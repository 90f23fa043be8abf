"""The client for applications: asyncio. `mobd.sync` has the same methods without it."""

# ruff: noqa: ASYNC109  the timeout of a call is over all of its repeats, and is told to the server

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from mobd import calls, errors, statuses
from mobd.content import content_of, load
from mobd.definitions import Definition, document_of
from mobd.deliveries import Delivery, Draft, ask_timeout, delivery_of, event_start, member_spec
from mobd.ids import uuid7
from mobd.stubs import Stubs
from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, events_pb2, members_pb2, mobs_pb2, runs_pb2, server_pb2
from mobd.watches import EventWatch

PAGE: Final = 500
ENDED: Final = (bridge_pb2.INPUT_STATE_CONSUMED, bridge_pb2.INPUT_STATE_ABANDONED)
Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Client:
    """Speaks to a mobd server.

    Every call waits for the server and repeats itself, with the same ids, over restarts until `timeout` seconds are
    over; then it raises what stood in the way. Reads return the message that was asked for, mutations the whole answer
    (with `cursor` and `replayed`), lists are async iterators over all pages. What the server refuses is raised, as the
    class of its reason (`mobd.MobNotFound`) under `mobd.Error`. Use it on one event loop; close it when done.
    """

    def __init__(self, target: str | None = None, *, timeout: float = 30.0) -> None:
        #: The server's address: as given, else MOBD_TARGET, else localhost:7780.
        self.target = calls.target_of(target)
        self._timeout = timeout
        self._open: Stubs | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection and end what is under way on it; the next call opens another."""
        stubs, self._open = self._open, None
        if stubs is not None:
            await stubs.channel.close()

    # Mobs.

    async def create_mob(
        self,
        mob_id: str,
        definition: Definition,
        *,
        labels: Mapping[str, str] | None = None,
        start: bool = True,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> mobs_pb2.CreateMobResponse:
        """Create a mob; raise MobExists if there is one of that name, DefinitionInvalid with every finding."""
        request = mobs_pb2.CreateMobRequest(
            mob_id=mob_id,
            definition=document_of(definition),
            labels=labels,
            start=start,
            request_id=request_id or uuid7(),
        )
        return await self._call(self._stubs.mobs.CreateMob, request, timeout)

    async def ensure_mob(
        self,
        mob_id: str,
        definition: Definition,
        *,
        labels: Mapping[str, str] | None = None,
        start: bool = True,
        timeout: float | None = None,
    ) -> mobs_pb2.Mob:
        """Return the mob of that name, created now if there was none. One that exists is returned as it is."""
        try:
            answer = await self.create_mob(mob_id, definition, labels=labels, start=start, timeout=timeout)
        except errors.MobExists:
            return await self.get_mob(mob_id, timeout=timeout)
        return answer.mob

    async def start_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> mobs_pb2.StartMobResponse:
        """Start a mob that was created without a start, or a stopped one."""
        request = mobs_pb2.StartMobRequest(mob_id=mob_id, request_id=request_id or uuid7())
        return await self._call(self._stubs.mobs.StartMob, request, timeout)

    async def stop_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> mobs_pb2.StopMobResponse:
        """Stop a mob: runs in flight settle, nothing new is dispatched, queues stay."""
        request = mobs_pb2.StopMobRequest(mob_id=mob_id, request_id=request_id or uuid7())
        return await self._call(self._stubs.mobs.StopMob, request, timeout)

    async def resume_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> mobs_pb2.ResumeMobResponse:
        """Resume a stopped mob and dispatch what waits."""
        request = mobs_pb2.ResumeMobRequest(mob_id=mob_id, request_id=request_id or uuid7())
        return await self._call(self._stubs.mobs.ResumeMob, request, timeout)

    async def destroy_mob(
        self, mob_id: str, *, request_id: str | None = None, timeout: float | None = None
    ) -> mobs_pb2.DestroyMobResponse:
        """Destroy a mob; return when all of it is durable. Repeating it returns the same report, with `already`."""
        request = mobs_pb2.DestroyMobRequest(mob_id=mob_id, request_id=request_id or uuid7())
        return await self._call(self._stubs.mobs.DestroyMob, request, timeout)

    async def get_mob(self, mob_id: str, *, timeout: float | None = None) -> mobs_pb2.Mob:
        """Return a mob as it stands."""
        request = mobs_pb2.GetMobRequest(mob_id=mob_id)
        answer: mobs_pb2.GetMobResponse = await self._call(self._stubs.mobs.GetMob, request, timeout)
        return answer.mob

    def list_mobs(
        self,
        *,
        phase: "mobs_pb2.MobPhase.ValueType" = mobs_pb2.MOB_PHASE_UNSPECIFIED,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[mobs_pb2.MobSummary]:
        """Yield the mobs in the order of their ids."""
        request = mobs_pb2.ListMobsRequest(phase=phase, labels=labels, page_size=PAGE)
        return self._pages(lambda: self._stubs.mobs.ListMobs, request, lambda answer: answer.mobs, timeout)

    async def validate_definition(
        self, definition: Definition, *, timeout: float | None = None
    ) -> mobs_pb2.ValidateDefinitionResponse:
        """Say what is wrong with a definition; nothing is stored."""
        request = mobs_pb2.ValidateDefinitionRequest(definition=document_of(definition))
        return await self._call(self._stubs.mobs.ValidateDefinition, request, timeout)

    # Members.

    async def spawn(
        self,
        mob_id: str,
        member_id: str,
        role: str,
        *,
        labels: Mapping[str, str] | None = None,
        context: Any = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> members_pb2.SpawnMemberResponse:
        """Spawn a member; raise MemberExists if there is one of that name. `context` is JSON for its agent."""
        request = members_pb2.SpawnMemberRequest(
            mob_id=mob_id,
            spec=member_spec(member_id, role, labels=labels, context=context),
            request_id=request_id or uuid7(),
        )
        return await self._call(self._stubs.members.SpawnMember, request, timeout)

    async def spawn_members(
        self,
        mob_id: str,
        specs: Iterable[members_pb2.MemberSpec],
        *,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> list[members_pb2.Member | errors.Error]:
        """Spawn up to 1,000 members in one decision; return each member, or the error that it was refused with."""
        request = members_pb2.SpawnMembersRequest(mob_id=mob_id, specs=specs, request_id=request_id or uuid7())
        answer: members_pb2.SpawnMembersResponse = await self._call(self._stubs.members.SpawnMembers, request, timeout)
        return [
            one.member if one.HasField("member") else statuses.of_reason(one.refused.reason, one.refused.message)
            for one in answer.results
        ]

    async def ensure_member(
        self,
        mob_id: str,
        member_id: str,
        role: str,
        *,
        labels: Mapping[str, str] | None = None,
        context: Any = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> members_pb2.EnsureMemberResponse:
        """Spawn a member unless one of that name and role is there."""
        request = members_pb2.EnsureMemberRequest(
            mob_id=mob_id,
            spec=member_spec(member_id, role, labels=labels, context=context),
            request_id=request_id or uuid7(),
        )
        return await self._call(self._stubs.members.EnsureMember, request, timeout)

    async def get_member(self, mob_id: str, member_id: str, *, timeout: float | None = None) -> members_pb2.Member:
        """Return a member as it stands."""
        request = members_pb2.GetMemberRequest(mob_id=mob_id, member_id=member_id)
        answer: members_pb2.GetMemberResponse = await self._call(self._stubs.members.GetMember, request, timeout)
        return answer.member

    def list_members(
        self,
        mob_id: str,
        *,
        role: str = "",
        state: "common_pb2.MemberState.ValueType" = common_pb2.MEMBER_STATE_UNSPECIFIED,
        labels: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[members_pb2.Member]:
        """Yield the members in the order of their ids."""
        request = members_pb2.ListMembersRequest(mob_id=mob_id, role=role, state=state, labels=labels, page_size=PAGE)
        return self._pages(lambda: self._stubs.members.ListMembers, request, lambda answer: answer.members, timeout)

    # Inputs.

    async def deliver(
        self,
        mob_id: str,
        member_id: str,
        content: Any,
        *,
        input_id: str | None = None,
        fence: common_pb2.Fence | None = None,
        timeout: float | None = None,
    ) -> Delivery:
        """Deliver one input; return when it is durable. Delivering an input_id again is harmless: see `duplicate`.

        `content` is a str (text), a mobd.Image, what `mobd.blocks` or the protocol make, or any other JSON value.
        Raise DeliveryRejected if the member refuses it, for example QueueFull.
        """
        request = bridge_pb2.DeliverRequest(
            mob_id=mob_id,
            member_id=member_id,
            fence=fence,
            input_id=input_id or uuid7(),
            content=content_of(content),
        )
        answer: bridge_pb2.DeliverResponse = await self._call(self._stubs.bridge.Deliver, request, timeout)
        outcome = delivery_of(member_id, request.input_id, answer)
        if isinstance(outcome, errors.Error):
            raise outcome
        return outcome

    async def deliver_batch(
        self, mob_id: str, drafts: Sequence[Draft], *, timeout: float | None = None
    ) -> list[Delivery | errors.Error]:
        """Deliver up to 256 inputs in one commit, in order; return each delivery, or the error it was refused with."""
        request = bridge_pb2.DeliverBatchRequest(
            mob_id=mob_id,
            deliveries=[
                bridge_pb2.Delivery(
                    member_id=one.member_id,
                    fence=one.fence,
                    input_id=one.input_id or uuid7(),
                    content=content_of(one.content),
                )
                for one in drafts
            ],
        )
        answer: bridge_pb2.DeliverBatchResponse = await self._call(self._stubs.bridge.DeliverBatch, request, timeout)
        return [
            delivery_of(one.member_id, one.input_id, outcome)
            for one, outcome in zip(request.deliveries, answer.outcomes, strict=True)
        ]

    async def ask(
        self, mob_id: str, member_id: str, content: Any, *, input_id: str | None = None, timeout: float = 60.0
    ) -> Any:
        """Deliver one input, wait until a run has consumed it, and return that run's output.

        Raise InputAbandoned if it was given up. Raise AskTimeout if `timeout` seconds are over: the input stays, and
        asking again with its input_id joins it.
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
        return load(last.output_json)

    async def observe(self, mob_id: str, member_id: str, *, timeout: float | None = None) -> bridge_pb2.ObserveResponse:
        """Return the state of a member's runtime."""
        request = bridge_pb2.ObserveRequest(mob_id=mob_id, member_id=member_id)
        return await self._call(self._stubs.bridge.Observe, request, timeout)

    async def get_input(
        self, mob_id: str, member_id: str, input_id: str, *, timeout: float | None = None
    ) -> bridge_pb2.Input:
        """Return an input, by the caller's id or by the canonical one."""
        request = bridge_pb2.GetInputRequest(mob_id=mob_id, member_id=member_id, input_id=input_id)
        answer: bridge_pb2.GetInputResponse = await self._call(self._stubs.bridge.GetInput, request, timeout)
        return answer.input

    async def watch_input(self, mob_id: str, member_id: str, input_id: str) -> AsyncGenerator[bridge_pb2.Input, None]:
        """Yield an input as it is and after each change, over breaks and restarts, until it has ended."""
        request = bridge_pb2.WatchInputRequest(mob_id=mob_id, member_id=member_id, input_id=input_id)
        last = None
        while last is None or last.state not in ENDED:
            async with aclosing(calls.stream(lambda: self._stubs.bridge.WatchInput(request))) as answers:
                async for answer in answers:
                    # A new stream begins with what the one before may have said already.
                    if answer.input != last:
                        last = answer.input
                        yield last

    # Runs, agents, events, the server.

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

    async def server_info(self, *, timeout: float | None = None) -> server_pb2.GetServerInfoResponse:
        """Return version, limits and mode of the server."""
        return await self._call(self._stubs.server.GetServerInfo, server_pb2.GetServerInfoRequest(), timeout)

    # How.

    @property
    def _stubs(self) -> Stubs:
        if self._open is None:
            self._open = Stubs(calls.open_channel(self.target))
        return self._open

    def _watch(self, request: events_pb2.WatchEventsRequest) -> Any:
        return self._stubs.events.WatchEvents(request)

    async def _call(self, method: Callable[..., Awaitable[Answer]], request: Any, timeout: float | None) -> Answer:
        return await calls.unary(self.target, method, request, self._timeout if timeout is None else timeout)

    async def _pages(
        self,
        method: Callable[[], Any],
        request: Any,
        items: Callable[[Any], Iterable[Item]],
        timeout: float | None,
    ) -> AsyncIterator[Item]:
        while True:
            answer: Any = await self._call(method(), request, timeout)
            for item in items(answer):
                yield item
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token
