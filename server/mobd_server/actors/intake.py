"""What agents say, frame by frame, turned into commands for their mobs.

A frame that can't be decided now is dropped and its stream is noted: when the mob can decide again the agent is asked
for all that is not settled. Only while the journal is full is a frame held, and its stream not read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from msgspec import Raw

from mobd_server.actors import frames as f
from mobd_server.actors.actor import MobActor
from mobd_server.actors.connection import Connection
from mobd_server.actors.crew import Crew
from mobd_server.actors.links import Reply
from mobd_server.actors.presence import Presence
from mobd_server.actors.shared import Shared
from mobd_server.actors.transcripts import Transcript, canonical, result_hash
from mobd_server.errors import Exhausted, FieldInvalid, JournalDown, Unavailable, Violation
from mobd_server.faults import ARMED, reach
from mobd_server.machines import commands as c
from mobd_server.machines.answers import RunAnswer
from mobd_server.machines.run import current

# Frames that are handled in one go: others wait as long.
STEP_FRAMES: Final = 32

Handler = Callable[[Crew, Connection, Any], Awaitable[None]]


def hello_missing(why: str) -> FieldInvalid:
    """Return the end of a stream that does not begin with Hello."""
    return FieldInvalid([Violation("frames[0].hello", why, "REQUIRED")])


class Intake:
    """Handles the frames of agents that have said Hello."""

    __slots__ = ("_handlers", "_shared")

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._handlers: dict[type, Handler] = {
            f.Heartbeat: self._heartbeat,
            f.Assigned: self._assigned,
            f.Declined: self._declined,
            f.RunAccepted: self._accepted,
            f.RunResult: self._result,
            f.RunFailed: self._failed,
            f.ControlAck: self._acknowledged,
            f.RunProgress: self._progress,
            f.RunEvents: self._events,
            f.Drain: self._drain,
            f.Detach: self._detach,
        }

    async def receive(self, crew: Crew, connection: Connection, frames: Iterable[f.AgentFrame], first: int) -> None:
        """Handle the entries of one message from place `first` on. Raises FieldInvalid for a second Hello."""
        if connection.presence is not None and connection.presence.suspended:
            # What it holds must be known before it is attached anew.
            frames = list(frames)
            self._learn(connection, frames)
        crew.heard(connection)
        for place, frame in enumerate(frames, first):
            if connection.state == "ended" or connection.leaving:
                return
            if isinstance(frame, f.Hello):
                description = "must be the first entry of the stream and no other"
                raise FieldInvalid([Violation(f"frames[{place}].hello", description, "MISPLACED")])
            await self._handlers[type(frame)](crew, connection, frame)
            if place % STEP_FRAMES == STEP_FRAMES - 1:
                await asyncio.sleep(0)

    def _learn(self, connection: Connection, frames: Iterable[f.AgentFrame]) -> None:
        for frame in frames:
            if isinstance(frame, f.Heartbeat):
                connection.held = set(frame.run_ids)

    async def _ready(self, connection: Connection) -> MobActor | None:
        """Return the mob's actor when it takes a decision for this agent, or None if the frame must come again."""
        shared = self._shared
        while connection.state != "ended":
            if connection.state == "attaching":
                await self._unread(connection, connection.answered())
                continue
            presence, hello = connection.presence, connection.hello
            actor = shared.mobs.get(hello.mob_id) if hello is not None else None
            if connection.state != "attached" or presence is None or actor is None or actor.failed:
                break
            refusal = shared.journal.refusal(kept=True)
            if refusal is None:
                return actor
            if isinstance(refusal, JournalDown):
                break
            try:
                await self._unread(connection, shared.journal.room())
            except JournalDown:
                break
        connection.missed = True
        return None

    async def _unread(self, connection: Connection, wait: Awaitable[None]) -> None:
        """Wait without reading the stream: its lease stands still."""
        connection.unread = True
        try:
            await wait
        finally:
            connection.unread = False

    async def _heartbeat(self, crew: Crew, connection: Connection, frame: f.Heartbeat) -> None:
        connection.held = set(frame.run_ids)
        connection.acknowledge()
        presence = connection.presence
        if presence is not None and connection.state == "attached" and not self._shared.journal.down:
            for run_id, fence in presence.heartbeat(connection.held):
                crew.lose_run(presence, run_id, fence, "its agent does not hold it any more")

    async def _accepted(self, _: Crew, connection: Connection, frame: f.RunAccepted) -> None:
        connection.held.add(frame.run_id)
        if connection.presence is not None:
            connection.presence.accepted(frame.run_id, frame.fence)

    async def _assigned(self, _: Crew, connection: Connection, frame: f.Assigned) -> None:
        actor = await self._ready(connection)
        presence = connection.presence
        if actor is not None and presence is not None:
            self._answer_assign(presence, frame.member_id, frame.fence)
            command = c.Confirm(presence.attachment_id, frame.member_id, frame.fence)
            actor.submit(command, connection.call, kept=True)

    async def _declined(self, crew: Crew, connection: Connection, frame: f.Declined) -> None:
        actor = await self._ready(connection)
        presence = connection.presence
        if actor is not None and presence is not None:
            self._answer_assign(presence, frame.member_id, frame.fence)
            command = c.Decline(presence.attachment_id, frame.member_id, frame.fence, frame.reason)
            actor.submit(command, connection.call, kept=True)
            crew.declined()

    def _answer_assign(self, presence: Presence, member_id: str, fence: int) -> None:
        if presence.assigns.get(member_id, (0, 0.0))[0] == fence:
            del presence.assigns[member_id]

    async def _result(self, crew: Crew, connection: Connection, frame: f.RunResult) -> None:
        output, *messages = await canonical([frame.output, *frame.messages])
        while (actor := await self._ready(connection)) is not None:
            presence = connection.presence
            if presence is None:
                return
            command = c.SettleRun(
                presence.attachment_id,
                frame.run_id,
                frame.fence,
                frame.output,
                result_hash(output, messages),
                usage=frame.usage,
                steered=frame.steered,
            )
            run = current(actor.mob, presence.attachment_id, frame.run_id, frame.fence)
            session_id, grown = "", None
            if run is not None:
                member = actor.mob.members[run.member_id]
                session_id, count = member.session_id, member.message_count
                if frame.expected_message_count not in (None, count):
                    message = f"run {frame.run_id} expects {frame.expected_message_count} messages before its own, "
                    crew.end(connection, f.Goodbye("protocol", f"{message}the transcript holds {count}"))
                    return
                if frame.run_id in crew.unstorable:
                    self._give_up(connection, actor, presence, frame)
                    return
                transcript = crew.transcripts.find(session_id, count)
                if messages and transcript is None:
                    await self._unread(connection, self._read(crew, actor, session_id, count))
                    continue
                if messages and transcript is not None:
                    grown = transcript.extended(messages)
                    command.messages = [Raw(message) for message in messages]
                    command.message_count, command.digest = grown.count, grown.digest()
            presence.settling(frame.run_id, frame.fence)
            crew.progress.flush(frame.run_id)
            done = partial(self._settled, crew, connection, frame, session_id, grown)
            actor.submit(command, connection.call, done, kept=True)
            return

    async def _read(self, crew: Crew, actor: MobActor, session_id: str, count: int) -> None:
        """Read a transcript whose messages may not all be durable yet."""
        transcripts = crew.transcripts
        await actor.read(lambda _: None)
        await transcripts.read(self._shared.store, crew.mob_id, session_id, count)

    def _settled(
        self,
        crew: Crew,
        connection: Connection,
        frame: f.RunResult,
        session_id: str,
        grown: Transcript | None,
        reply: Reply,
    ) -> None:
        if reply.error is None:
            if ARMED:
                reach("after_settle")
            if reply.answer == RunAnswer("committed") and grown is not None:
                crew.transcripts.keep(session_id, grown)
            elif reply.answer == RunAnswer("conflict"):
                message = f"run {frame.run_id} was settled with another result"
                crew.end(connection, f.Goodbye("protocol", message))
        elif not isinstance(reply.error, Unavailable | Exhausted):
            # It would fail again however often the agent sends it.
            crew.unstorable.add(frame.run_id)
            actor = self._shared.mobs.get(crew.mob_id)
            if actor is not None and not actor.failed and connection.presence is not None:
                self._give_up(connection, actor, connection.presence, frame)

    def _give_up(self, connection: Connection, actor: MobActor, presence: Presence, frame: f.RunResult) -> None:
        message = "its result can't be stored"
        command = c.FailRun(presence.attachment_id, frame.run_id, frame.fence, "error", message, steered=frame.steered)
        actor.submit(command, connection.call, kept=True)

    async def _failed(self, crew: Crew, connection: Connection, frame: f.RunFailed) -> None:
        actor = await self._ready(connection)
        presence = connection.presence
        if actor is not None and presence is not None:
            presence.settling(frame.run_id, frame.fence)
            crew.progress.flush(frame.run_id)
            command = c.FailRun(
                presence.attachment_id,
                frame.run_id,
                frame.fence,
                frame.kind,
                frame.message,
                frame.retryable,
                frame.steered,
            )
            actor.submit(command, connection.call, kept=True)

    # What is only worth something now is never waited with, and never asked for again.

    async def _acknowledged(self, crew: Crew, connection: Connection, frame: f.ControlAck) -> None:
        if connection.state == "attached" and connection.presence is not None:
            crew.controls.acknowledged(connection.presence, frame)

    async def _progress(self, crew: Crew, connection: Connection, frame: f.RunProgress) -> None:
        if connection.state == "attached" and connection.presence is not None:
            crew.progress.report(connection.presence.attachment_id, frame, connection.call)

    async def _events(self, crew: Crew, connection: Connection, frame: f.RunEvents) -> None:
        if connection.state == "attached" and connection.presence is not None:
            crew.progress.show(connection.presence.attachment_id, frame)

    async def _drain(self, crew: Crew, connection: Connection, _: f.Drain) -> None:
        connection.draining = True
        if connection.state == "attaching":
            await self._unread(connection, connection.answered())
        presence = connection.presence
        if presence is None or presence.draining:
            return
        presence.draining = True
        crew.connected.discard(presence.attachment_id)
        actor = await self._ready(connection)
        if actor is not None:
            actor.submit(c.DrainAttachment(presence.attachment_id), connection.call, kept=True)

    async def _detach(self, crew: Crew, connection: Connection, _: f.Detach) -> None:
        connection.leaving = True
        if connection.state == "attaching":
            await self._unread(connection, connection.answered())
        presence = connection.presence
        if presence is not None and presence.connection is connection:
            presence.closing = "detached"
            presence.due = self._shared.patience.time
            crew.close(presence)
            if presence.asked:
                # The stream ends when that is durable.
                return
        crew.end(connection)
