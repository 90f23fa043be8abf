"""The agents of one mob as the hub knows them: who is here, who is away and until when, what was sent to whom.

Facts are in the mob's log; nothing here is stored, and all of it is derived anew when the mob is read from its log.
An agent counts as connected from the tick in which its mob *decides* to attach it, so that no decision in between
passes it over; it is sent something only after that decision is durable, and after its Welcome.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final, cast

from mobd_server.actors.actor import MobActor
from mobd_server.actors.connection import Connection
from mobd_server.actors.controls import Controls
from mobd_server.actors.frames import Goodbye, Reject, Resync, Welcome
from mobd_server.actors.links import Receiver, Reply
from mobd_server.actors.presence import Presence
from mobd_server.actors.progress import Progress
from mobd_server.actors.shared import Shared
from mobd_server.actors.transcripts import Transcripts
from mobd_server.errors import JournalDown, JournalFull, MobdError, MobNotFound, Unavailable
from mobd_server.faults import ARMED, reach
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.machines.state import Attachment, Mob

# When an agent may ask again whose mob can't be read, who read too slowly, or whose grace has passed.
UNREADABLE_S: Final = 30.0
COME_BACK_S: Final = 1.0

Said = a.SendAssign | a.SendUnassign | a.SendStartRun | a.SendSteer | a.SendSettled


class Crew:
    """The agents of one mob."""

    def __init__(self, mob_id: str, shared: Shared) -> None:
        self.mob_id = mob_id
        # Attachments whose agents are connected and want work; decisions see this very set.
        self.connected: set[str] = set()
        self.presences: dict[str, Presence] = {}
        self.transcripts = Transcripts()
        self.controls = Controls(mob_id, shared, self.lose_run)
        self.progress = Progress(mob_id, shared)
        # Runs whose results the mob could not store.
        self.unstorable: set[str] = set()
        self._shared = shared
        # Streams that are to be attached, in order.
        self._waiting: dict[Connection, None] = {}
        self._seeking = False
        self._seek_due = 0.0
        # When to ask again for members that an agent declined; 0: none was.
        self._ask_again_due = 0.0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remember."""
        return not self.presences and not self._waiting

    # Attaching.

    def arrive(self, connection: Connection) -> None:
        """Attach an agent that has said Hello, as soon as its mob is there."""
        self._wait(connection)
        if self._shared.mobs.get(self.mob_id) is not None:
            self.attach(connection)
        else:
            self._seek()

    def attach(self, connection: Connection) -> None:
        """Ask the mob to attach a stream that waits, if the mob is in memory."""
        shared = self._shared
        actor = shared.mobs.get(self.mob_id)
        hello = connection.hello
        if connection not in self._waiting or actor is None or hello is None:
            return
        if isinstance(shared.journal.refusal(kept=True), JournalFull):
            shared.journal.when_room(partial(self.attach, connection))
            return
        del self._waiting[connection]
        connection.become("attaching")
        command = c.Attach(
            hello.host_id,
            hello.incarnation,
            hello.capacity,
            hello.max_members,
            hello.serves,
            hello.resume,
            sorted(connection.held),
            hello.steers,
        )
        actor.submit(command, connection.call, partial(self._attached, connection), kept=True)
        attachment = _attachment(actor.mob, connection)
        if attachment is not None and connection.state in ("attaching", "attached"):
            self._reserve(actor, connection, attachment)

    def attach_waiting(self) -> None:
        """Attach what waits, one after the other."""
        for connection in self._waiting:
            self._shared.later(partial(self.attach, connection))

    def attach_later(self, connection: Connection) -> None:
        """Attach an agent anew that was attached: it sends again what is not settled, and gets what it lacks."""
        if connection.state != "attached":
            return
        if connection.presence is not None:
            connection.presence.forget()
        self._resync(connection)
        self._shared.later(partial(self.attach, connection))

    def _resync(self, connection: Connection) -> None:
        self._wait(connection)
        connection.missed = False
        if connection.attachment_id:
            connection.send(Resync(self.mob_id))

    def _wait(self, connection: Connection) -> None:
        connection.become("waiting")
        self._waiting[connection] = None
        self._seek_due = self._shared.patience.after(self._shared.terms.lease_s)

    def _reserve(self, actor: MobActor, connection: Connection, attachment: Attachment) -> None:
        """From this decision on the agent is connected for its mob."""
        presence = self._presence(attachment.attachment_id)
        connection.presence = presence
        if connection.state == "attaching":
            presence.coming = connection
        presence.closing = None
        presence.draining = presence.draining or connection.draining
        for run_id in attachment.runs:
            if run_id in connection.held:
                presence.holds_run(run_id, actor.mob.runs[run_id].fence)
        if presence.draining:
            self.connected.discard(presence.attachment_id)
            self.tell(c.DrainAttachment(presence.attachment_id))
        else:
            self.connected.add(presence.attachment_id)

    def _attached(self, connection: Connection, reply: Reply) -> None:
        if ARMED:
            reach("before_attach_answer")
        if isinstance(reply.answer, a.Attached):
            if connection.state != "ended":
                self._seat(connection, reply.answer)
            return
        presence = connection.presence
        if presence is not None and presence.coming is connection:
            presence.coming = None
            self._check_presence(presence)
        if connection.state == "ended":
            return
        if isinstance(reply.answer, a.AttachRefused):
            self._refused(connection, reply.answer)
        elif reply.error is not None:
            self._not_now(connection, reply.error)

    def _refused(self, connection: Connection, answer: a.AttachRefused) -> None:
        if answer.cause == "superseded":
            self.end(connection, Goodbye("superseded", answer.message))
        else:
            retry_after_s = UNREADABLE_S if answer.cause == "too_many_agents" else None
            self.end(connection, Reject(answer.cause, answer.message, retry_after_s))

    def _seat(self, connection: Connection, answer: a.Attached) -> None:
        shared = self._shared
        presence = self._presence(answer.attachment_id)
        before = presence.connection
        if before is not None and before is not connection:
            before.end(Goodbye("superseded", "another stream of this agent took its place"))
        presence.connection, presence.suspended = connection, False
        if presence.coming is connection:
            presence.coming = None
        connection.presence = presence
        connection.due = shared.patience.after(shared.terms.lease_s)
        if not presence.draining:
            self.connected.add(answer.attachment_id)
        if connection.attachment_id != answer.attachment_id:
            connection.attachment_id = answer.attachment_id
            connection.send(Welcome(answer.attachment_id, answer.log_id, answer.serves, answer.resumed, shared.terms))
        connection.become("attached")

    def _not_now(self, connection: Connection, error: MobdError) -> None:
        """A mob that is being read anew is waited for; an agent is sent away only while nobody knows for how long."""
        passing = isinstance(error, Unavailable) and not isinstance(error, JournalDown)
        if passing or isinstance(error, JournalFull) or connection.attachment_id:
            self._wait(connection)
            self._park(connection, f"mob '{self.mob_id}' is being read anew")
            if isinstance(error, JournalFull):
                self.attach(connection)
        else:
            self._reject(connection, error)

    def _reject(self, connection: Connection, error: MobdError) -> None:
        retry_after_s = error.retry_after_s if isinstance(error, Unavailable) else UNREADABLE_S
        self.end(connection, Reject("mob_unavailable", error.message, retry_after_s))

    def _park(self, connection: Connection, why: str) -> None:
        """Tell an agent once that it waits."""
        if connection.hello is None or connection.parked or connection.attachment_id:
            return
        connection.parked = True
        serves = [a.ServeOutcome(serve, waiting=why) for serve in connection.hello.serves]
        connection.send(Welcome("", "", serves, resumed=False, terms=self._shared.terms))

    def _seek(self) -> None:
        """Have the mob read from its log."""
        self._seek_due = self._shared.patience.after(self._shared.terms.lease_s)
        if not self._seeking:
            self._seeking = True
            self._shared.spawn(self._load())

    async def _load(self) -> None:
        refusal: MobdError | None = None
        try:
            await self._shared.mobs.load(self.mob_id)
        except MobdError as error:
            refusal = error
        finally:
            self._seeking = False
        if self._shared.mobs.get(self.mob_id) is not None:
            self.attach_waiting()
        elif isinstance(refusal, MobNotFound):
            for connection in self._waiting:
                self._park(connection, f"mob '{self.mob_id}' does not exist yet")
        elif refusal is not None:
            for connection in list(self._waiting):
                self._reject(connection, refusal)

    # What the mob's actor and its registry say.

    def loaded(self, actor: MobActor) -> None:
        """The mob was read from its log: agents that are here are attached anew, the others have a full grace."""
        known = actor.mob.attachments
        self.unstorable &= actor.mob.runs.keys()
        self.connected.clear()
        for attachment_id in [one for one in self.presences if one not in known]:
            del self.presences[attachment_id]
        for attachment_id in known:
            presence = self._presence(attachment_id)
            presence.forget()
            presence.asked = False
            if not presence.present and presence.closing != "detached":
                presence.closing = None
                self._suspend(presence)
        for connection in self._waiting:
            self._resync(connection)
        self.attach_waiting()

    def evicted(self) -> None:
        """The mob is not in memory: what its agents say now is not decided, and they are asked for it later."""
        self.transcripts = Transcripts()
        self.connected.clear()
        for presence in self.presences.values():
            presence.forget()
            presence.asked = False
            connection = presence.connection
            if connection is not None and connection.leaving:
                self.end(connection)
            elif connection is not None and connection.state == "attached" and not presence.suspended:
                self._wait(connection)

    def journal_up(self) -> None:
        """The store answers again: ask for what agents said meanwhile."""
        for presence in self.presences.values():
            connection = presence.connection
            if connection is not None and connection.missed and not presence.suspended:
                self.attach_later(connection)
        self.attach_waiting()

    def dispatch(self, reactions: Sequence[a.AgentReaction]) -> None:
        """Send what a commit released, to each agent in this order."""
        by_agent: dict[str, list[a.AgentReaction]] = {}
        for reaction in reactions:
            by_agent.setdefault(reaction.attachment_id, []).append(reaction)
        for attachment_id, released in by_agent.items():
            presence = self.presences.get(attachment_id)
            if presence is not None:
                self._send(presence, released)

    def _send(self, presence: Presence, released: Sequence[a.AgentReaction]) -> None:
        connection = presence.connection
        if connection is not None and connection.full:
            # Everything that it lacks is derived anew when it comes back.
            connection.drop()
            message = "this agent read so slowly that too much waited to be sent to it"
            self.end(connection, Goodbye("slow", message, COME_BACK_S), Unavailable(message))
        sendable = presence.sendable
        for reaction in released:
            if isinstance(reaction, a.EndStream):
                self._ended(presence, reaction)
                return
            self._note(presence, reaction, sendable=sendable)
            if not sendable or connection is None:
                continue
            if isinstance(reaction, a.SendCancel):
                self.controls.send(presence, connection, reaction)
            elif isinstance(reaction, a.SendRetire):
                connection.send_control(reaction)
            else:
                connection.send(cast("Said", reaction))

    def _note(self, presence: Presence, reaction: a.AgentReaction, *, sendable: bool) -> None:
        due = self._shared.patience.after(self._shared.terms.accept_s)
        if isinstance(reaction, a.SendSettled):
            presence.settled(reaction.run_id)
            self.unstorable.discard(reaction.run_id)
            if presence.connection is not None:
                presence.connection.held.discard(reaction.run_id)
            if presence.draining:
                # Its member has no run now and may go to an agent that wants work.
                self._shared.later(partial(self._drain, presence))
        elif isinstance(reaction, a.SendUnassign):
            presence.assigns.pop(reaction.member_id, None)
        elif sendable and isinstance(reaction, a.SendStartRun):
            presence.sent_run(reaction.run_id, reaction.fence, due)
        elif sendable and isinstance(reaction, a.SendAssign) and not reaction.confirmed:
            presence.assigns[reaction.member_id] = (reaction.fence, due)

    def _ended(self, presence: Presence, reaction: a.EndStream) -> None:
        self._remove(presence)
        if presence.connection is not None:
            presence.connection.end(Goodbye(reaction.reason, reaction.message))

    # Coming and going.

    def heard(self, connection: Connection) -> None:
        """Renew the lease of a stream that something came from; one that was silent for too long is attached anew."""
        connection.due = self._shared.patience.after(self._shared.terms.lease_s)
        presence = connection.presence
        if presence is not None and presence.suspended and presence.connection is connection:
            self.attach_later(connection)

    def end(self, connection: Connection, last: Goodbye | Reject | None = None, error: Exception | None = None) -> None:
        """End a stream; its agent is away from now on."""
        connection.end(last, error)
        self.left(connection)

    def left(self, connection: Connection) -> None:
        """Take note that a stream has ended; harmless if repeated."""
        self._waiting.pop(connection, None)
        presence = connection.presence
        if presence is None:
            return
        if presence.connection is connection:
            presence.connection = None
        if presence.coming is connection:
            presence.coming = None
        self._check_presence(presence)

    def _drain(self, presence: Presence) -> None:
        self.tell(c.DrainAttachment(presence.attachment_id))

    def declined(self) -> None:
        """Take note that an agent did not want a member: if no other has come by then, it is asked again."""
        self._ask_again_due = self._shared.patience.after(self._shared.terms.accept_s)

    def expire(self) -> None:
        """See whose lease, grace or time to answer has passed, and do about it what can be done now."""
        shared = self._shared
        time, later = shared.patience.time, shared.later
        if self._ask_again_due and time >= self._ask_again_due and self.tell(c.Continue()):
            self._ask_again_due = 0.0
        self.progress.expire()
        for presence in self.presences.values():
            connection = presence.connection
            if connection is None or presence.suspended or presence.closing is not None:
                if time >= presence.due and presence.coming is None:
                    later(partial(self.close, presence))
            elif connection.unread:
                connection.due = shared.patience.after(shared.terms.lease_s)
            elif time >= connection.due:
                later(partial(self._silent, presence))
            elif presence.overdue_assigns(time) or presence.overdue_runs(time) or presence.overdue_cancels(time):
                later(partial(self._overdue, presence))
        if self._waiting and time >= self._seek_due and shared.mobs.get(self.mob_id) is None:
            self._seek()

    def close(self, presence: Presence) -> None:
        """Ask the mob to end an attachment whose agent has left, or did not come back."""
        if self.presences.get(presence.attachment_id) is not presence or presence.asked:
            return
        if presence.closing is None:
            if presence.present or self._shared.patience.time < presence.due:
                return
            presence.closing = "lost"
        self.connected.discard(presence.attachment_id)
        presence.asked = True
        command = c.CloseAttachment(presence.attachment_id, presence.closing)
        if not self.tell(command, partial(self._closed, presence)):
            presence.asked = False

    def lose_run(self, presence: Presence, run_id: str, fence: int, reason: str) -> None:
        """Tell the mob that the agent does not hold a run."""
        if self.tell(c.LoseRun(presence.attachment_id, run_id, fence, reason)):
            presence.settled(run_id)

    def tell(self, command: c.Command, then: Receiver | None = None) -> bool:
        """Have the mob decide what the hub found out; return False if that is not possible now."""
        return self._shared.tell(self.mob_id, command, then)

    def _closed(self, presence: Presence, reply: Reply) -> None:
        if reply.error is None:
            # Not at once: what the same commit releases is still to be sent.
            self._shared.later(partial(self._part, presence))
        else:
            presence.asked = False
            presence.due = self._shared.patience.after(COME_BACK_S)

    def _part(self, presence: Presence) -> None:
        connection = presence.connection
        self._remove(presence)
        # It may have spoken again meanwhile, and is being attached anew.
        if connection is None or connection.presence is not presence:
            return
        if presence.closing == "detached":
            connection.end()
        else:
            connection.end(Goodbye("revoked", "its grace had passed: attach again", COME_BACK_S))

    def _silent(self, presence: Presence) -> None:
        connection = presence.connection
        if connection is not None and not presence.suspended and self._shared.patience.time >= connection.due:
            self._suspend(presence)

    def _overdue(self, presence: Presence) -> None:
        time, accept_s = self._shared.patience.time, self._shared.terms.accept_s
        if not presence.sendable:
            return
        for member_id, fence in presence.overdue_assigns(time):
            reason = f"no answer within {accept_s:g} s"
            command = c.Decline(presence.attachment_id, member_id, fence, reason)
            if self.tell(command, partial(self._declined, presence, member_id, fence, reason)):
                del presence.assigns[member_id]
        for run_id, fence in presence.overdue_runs(time):
            self.lose_run(presence, run_id, fence, f"not accepted within {accept_s:g} s")
        self.controls.overdue(presence)

    def _declined(self, presence: Presence, member_id: str, fence: int, reason: str, reply: Reply) -> None:
        """Tell an agent that it serves a member no longer; it may answer yet."""
        self.declined()
        if reply.answer == a.Done() and presence.sendable and presence.connection is not None:
            presence.connection.send(a.SendUnassign(presence.attachment_id, member_id, fence, reason))

    def _suspend(self, presence: Presence) -> None:
        self._shared.suspensions += 1
        presence.suspended = True
        presence.forget()
        self.connected.discard(presence.attachment_id)
        if presence.closing is None:
            presence.due = self._shared.patience.after(self._shared.terms.grace_s)

    def _check_presence(self, presence: Presence) -> None:
        """Suspend an attachment that has no stream any more."""
        if presence.connection is None and presence.coming is None and not presence.suspended:
            self._suspend(presence)
        elif presence.suspended and presence.coming is None:
            self.connected.discard(presence.attachment_id)

    def _presence(self, attachment_id: str) -> Presence:
        presence = self.presences.get(attachment_id)
        if presence is None:
            due = self._shared.patience.after(self._shared.terms.grace_s)
            presence = self.presences[attachment_id] = Presence(attachment_id, due)
        return presence

    def _remove(self, presence: Presence) -> None:
        if self.presences.get(presence.attachment_id) is presence:
            del self.presences[presence.attachment_id]
        self.connected.discard(presence.attachment_id)


def _attachment(mob: Mob, connection: Connection) -> Attachment | None:
    """Return the attachment that the newest state has for an agent."""
    hello = connection.hello
    for attachment in mob.attachments.values():
        if hello is not None and (attachment.host_id, attachment.incarnation) == (hello.host_id, hello.incarnation):
            return attachment
    return None
