"""Reads the commands of a transcript, carries them out on a mob, and writes down what was decided.

A transcript is a text of scenes. A scene is some commands, a line `----`, and what came of them: for each its answer,
a line for each event (`+`), and one for each thing that was sent (`>`). Lines that begin with `#` are for the reader.
"""

import shlex
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw
from tests.machines.stage import SECOND, CountedIds, Stage, state_bytes, text

from mobd_server.errors import MobdError
from mobd_server.machines import answers as a
from mobd_server.machines import commands as c
from mobd_server.machines.records import Record
from mobd_server.machines.state import Input, Run, Serve

RULE: Final = "----"


class NumberedIds(CountedIds):
    """Ids that are short to read: each prefix has a counter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def new(self, prefix: str) -> str:
        self.counts[prefix] += 1
        return f"{prefix}-{self.counts[prefix]}"


class Scribe:
    """A mob and the names that a transcript gives to what is in it."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.answer: a.Answer | None = None
        self.hosts: dict[str, str] = {}
        self.runs: dict[str, Run] = {}

    def play(self, line: str) -> list[str]:
        """Carry out one command; return what came of it."""
        verb, *words = shlex.split(line)
        plain = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        if verb == "create":
            return self._create(plain, options)
        if verb == "look":
            return self._look()
        if verb == "restart":
            return self._restart()
        if verb == "break":
            self.stage.suspend(self.hosts[plain[0]])
            return ["nothing is decided: the stream is gone, the grace runs"]
        if verb == "wait":
            self.stage.now += int(float(plain[0]) * SECOND)
            return self._decide(c.Wake())
        lines = self._decide(VERBS[verb](self, plain, options))
        if isinstance(self.answer, a.Attached):
            self.hosts[plain[0]] = self.answer.attachment_id
            self.stage.connected.add(self.answer.attachment_id)
        return lines

    def _create(self, roles: list[str], options: dict[str, str]) -> list[str]:
        self.stage = Stage(roles, options.get("start") != "no")
        self.stage.ids = NumberedIds()
        return self._told(c.CreateMob)

    def _restart(self) -> list[str]:
        replayed = self.stage.replayed()
        assert state_bytes(replayed) == state_bytes(self.stage.mob)
        self.stage.mob = replayed
        self.stage.connected.clear()
        return [f"the log of {len(self.stage.log)} events adds up to the same state; nobody is connected"]

    def _decide(self, command: c.Command) -> list[str]:
        self.answer = None
        if isinstance(command, c.CloseAttachment | c.DrainAttachment):
            self.stage.connected.discard(command.attachment_id)
        try:
            self.answer = self.stage.decide(command).answer
        except MobdError as refused:
            return [f"refused: {refused.reason} {refused.message}"]
        return self._told(type(command))

    def _told(self, command: type[c.Command]) -> list[str]:
        lines = [] if command is c.CreateMob else [answered(self.answer)]
        records = self.stage.append.records if self.stage.append is not None else []
        lines += [f"+ {record.seq} {record.kind}{fields(record)}" for record in records]
        self.runs |= self.stage.mob.runs
        return lines + [f"> {sent(one)}" for one in self.stage.reactions]

    def _look(self) -> list[str]:
        mob = self.stage.mob
        lines = [f"mob {mob.phase}{'' if mob.pending == 'none' else ', pending ' + mob.pending}, head {mob.head}"]
        for member_id, member in sorted(mob.members.items()):
            parts: list[str] = [member.state]
            if member.executor is not None:
                there = "" if member.executor.attachment_id in self.stage.connected else " (away)"
                parts.append(f"on {mob.attachments[member.executor.attachment_id].host_id}{there}")
            if member.run_id is not None:
                run = mob.runs[member.run_id]
                parts.append(
                    f"{run.run_id} attempt {run.attempts[0]} of {' '.join(one.input_id for one in run.inputs)}"
                )
            if member.steer:
                parts.append(f"steering {listed(member.steer)}")
            if member.queue:
                parts.append(f"waiting {listed(member.queue)}")
            if member.retry_at:
                parts.append(f"again in {(member.retry_at - self.stage.now) / SECOND:g} s")
            lines.append(f"{member_id}: {', '.join(parts)}")
        return lines

    # How a command is read.

    def serves(self, names: list[str]) -> list[Serve]:
        """`@name` is a member, any other word a role."""
        return [Serve(member_id=name[1:]) if name.startswith("@") else Serve(role=name) for name in names]

    def attach(self, words: list[str], options: dict[str, str]) -> c.Command:
        return c.Attach(
            words[0],
            options.get("incarnation", "1"),
            int(options.get("capacity", "4")),
            int(options.get("max", "10")),
            self.serves(words[1:]),
            held=[one for one in options.get("held", "").split(",") if one],
            steers=options.get("steers") == "yes",
        )

    def deliver(self, words: list[str], options: dict[str, str]) -> c.Command:
        mode: Any = options.get("mode")
        return c.DeliverBatch(
            [
                c.Deliver(
                    words[0],
                    one,
                    text(options.get("text", one)),
                    handling_mode=mode,
                    wake=options.get("wake") != "no",
                    supersession_key=options.get("key"),
                )
                for one in words[1:]
            ]
        )

    def fence_off(self, words: list[str], options: dict[str, str]) -> c.Command:
        run = self.runs[words[0]]
        return c.FenceOff(run.attachment_id, run.run_id, run.fence, run.control_id, "it did not answer")

    def assignment(self, member_id: str) -> tuple[str, str, int]:
        executor = self.stage.executor(member_id)
        return executor.attachment_id, member_id, executor.fence

    def settle(self, words: list[str], options: dict[str, str]) -> c.Command:
        run = self.runs[words[0]]
        output = options.get("output", '"done"').encode()
        taken = [one for one in options.get("taken", "").split(",") if one]
        return c.SettleRun(run.attachment_id, run.run_id, run.fence, Raw(output), output.ljust(16, b"."), steered=taken)

    def fail(self, words: list[str], options: dict[str, str]) -> c.Command:
        run = self.runs[words[0]]
        kind: Any = options.get("kind", "error")
        retryable = options.get("retryable") != "no"
        return c.FailRun(run.attachment_id, run.run_id, run.fence, kind, options.get("message", "boom"), retryable)

    def lose(self, words: list[str], options: dict[str, str]) -> c.Command:
        run = self.runs[words[0]]
        return c.LoseRun(run.attachment_id, run.run_id, run.fence, "not accepted in time")

    def close(self, words: list[str], options: dict[str, str]) -> c.Command:
        reason: Any = options.get("reason", "lost")
        return c.CloseAttachment(self.hosts[words[0]], reason)


Reader = Callable[[Scribe, list[str], dict[str, str]], c.Command]

VERBS: Final[dict[str, Reader]] = {
    "start": lambda s, w, o: c.StartMob(),
    "stop": lambda s, w, o: c.StopMob(),
    "resume": lambda s, w, o: c.ResumeMob(),
    "destroy": lambda s, w, o: c.DestroyMob(),
    "continue": lambda s, w, o: c.Continue(),
    "spawn": lambda s, w, o: c.SpawnMembers([c.MemberSpec(one, o["role"]) for one in w]),
    "deliver": Scribe.deliver,
    "interrupt": lambda s, w, o: c.Interrupt(w[0], o.get("run"), reason=o.get("reason", "")),
    "hard-cancel": lambda s, w, o: c.HardCancel(w[0], w[1], reason=o.get("reason", "")),
    "retire": lambda s, w, o: c.RetireMember(w[0], interrupt_first=o.get("interrupt") == "first"),
    "retire-runtime": lambda s, w, o: c.RetireRuntime(w[0]),
    "destroy-runtime": lambda s, w, o: c.DestroyRuntime(w[0]),
    "respawn": lambda s, w, o: c.RespawnMember(w[0]),
    "complete": lambda s, w, o: c.CompleteMob(),
    "reset": lambda s, w, o: c.ResetMob(),
    "fence-off": Scribe.fence_off,
    "attach": Scribe.attach,
    "confirm": lambda s, w, o: c.Confirm(*s.assignment(w[0])),
    "decline": lambda s, w, o: c.Decline(*s.assignment(w[0]), o.get("reason", "")),
    "result": Scribe.settle,
    "fail": Scribe.fail,
    "lose": Scribe.lose,
    "drain": lambda s, w, o: c.DrainAttachment(s.hosts[w[0]]),
    "close": Scribe.close,
}

# Fields that say nothing to a reader of transcripts.
_QUIET: Final = {
    "log_id",
    "digest",
    "labels",
    "definition",
    "session_id",
    "result_hash",
    "content",
    "sender",
    "principal",
}


def listed(inputs: list[Input]) -> str:
    return " ".join(one.input_id for one in inputs)


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ":".join(shown(one) for one in value.values() if one not in ("", None))
    if isinstance(value, list):
        return ",".join(shown(one) for one in value)
    return str(value)


def fields(record: Record) -> str:
    """Return what is stored of an event, in order, as far as it says something."""
    words = []
    for name, value in msgspec.json.decode(record.payload).items():
        if name in _QUIET or value in ("", None, False):
            continue
        if name in ("retry_at", "until"):
            value = f"+{(value - record.at) / SECOND:g}s"
        words.append(f" {name}={shown(value)}")
    return "".join(words)


def answered(answer: a.Answer | None) -> str:
    if type(answer) not in ANSWERED:
        raise AssertionError(f"nobody wrote down how {answer} reads")
    return ANSWERED[type(answer)](answer)


def _spawned(answer: a.SpawnedMembers) -> str:
    return ", ".join(one.member_id if isinstance(one, a.MemberView) else one.reason for one in answer.results)


def _attached(answer: a.Attached) -> str:
    whole = ", ".join(
        one.waiting or f"{one.serve.role or one.serve.member_id}: {one.assigned}" for one in answer.serves
    )
    return f"{'resumed' if answer.resumed else 'attached'} {answer.attachment_id}; {whole}"


def _destroyed(answer: a.DestroyAnswer) -> str:
    words = "destroyed already" if answer.already else "destroyed" if answer.done else "being destroyed"
    return f"{words}, {answer.inputs_abandoned} inputs abandoned"


def _retired(answer: a.Retired) -> str:
    words = "retired already" if answer.already else "retired"
    return f"{words}, {answer.inputs_abandoned} abandoned, {answer.inputs_pending_drain} pending"


def _respawned(answer: a.Respawned) -> str:
    generations = f"generation {answer.member.generation} after {answer.previous_generation}"
    return f"{generations}, {answer.inputs_abandoned} abandoned"


def _reported(answer: a.MobReport) -> str:
    pending = "" if answer.mob.pending == "none" else f", pending {answer.mob.pending}"
    told = "".join(
        f"; {one.member_id}: {one.inputs_abandoned} abandoned, {one.inputs_pending_drain} pending"
        for one in answer.outcomes
    )
    return f"{answer.mob.phase}{pending}{told}"


ANSWERED: Final[dict[Any, Callable[[Any], str]]] = {
    a.BatchDelivered: lambda answer: ", ".join(delivered(one) for one in answer.outcomes),
    a.SpawnedMembers: _spawned,
    a.Attached: _attached,
    a.AttachRefused: lambda answer: f"rejected: {answer.message}",
    a.RunAnswer: lambda answer: answer.disposition,
    a.MobView: lambda answer: answer.phase,
    a.DestroyAnswer: _destroyed,
    a.CancelAnswer: lambda answer: f"{answer.outcome} {answer.run_id}".strip(),
    a.Retired: _retired,
    a.Destroyed: lambda answer: f"destroyed{' already' if answer.already else ''}, {answer.inputs_abandoned} abandoned",
    a.Respawned: _respawned,
    a.MobReport: _reported,
    a.Done: lambda answer: "done" if answer.changed else "nothing to do",
}


def delivered(outcome: a.Delivered) -> str:
    match outcome:
        case a.Accepted(input_id=input_id, canonical_input_id=canonical):
            return f"accepted {input_id} as {canonical}"
        case a.Deduplicated(canonical_input_id=canonical, terminal=terminal):
            return f"deduplicated, {canonical} {'has ended' if terminal else 'is live'}"
        case a.Rejected(cause=cause):
            return f"rejected: {cause}"
        case a.UnknownMember(member_id=member_id):
            return f"no member {member_id}"


def sent(reaction: a.Reaction) -> str:
    match reaction:
        case a.Again():
            return "(go on)"
        case a.SendAssign(attachment_id=to, member_id=member_id, fence=fence, confirmed=confirmed):
            return f"{to} Assign {member_id} fence={fence}{' again' if confirmed else ''}"
        case a.SendUnassign(attachment_id=to, member_id=member_id, reason=reason):
            return f"{to} Unassign {member_id}: {reason}"
        case a.SendStartRun(attachment_id=to, run_id=run_id, member_id=member_id, inputs=inputs):
            return f"{to} StartRun {run_id} {member_id}: " + ", ".join(
                f"{one.input_id} attempt {one.attempt}" for one in inputs
            )
        case a.SendSteer(attachment_id=to, run_id=run_id, inputs=inputs):
            return f"{to} SteerRun {run_id}: " + ", ".join(f"{one.input_id} attempt {one.attempt}" for one in inputs)
        case a.SendCancel(attachment_id=to, run_id=run_id, control_id=control_id, hard=hard):
            return f"{to} {'HardCancel' if hard else 'CancelAtBoundary'} {run_id} {control_id}"
        case a.SendRetire(attachment_id=to, member_id=member_id, drain=drain):
            return f"{to} Retire {member_id}{' and drain' if drain else ''}"
        case a.SendSettled(attachment_id=to, run_id=run_id, disposition=disposition):
            return f"{to} RunSettled {run_id} {disposition}"
        case a.EndStream(attachment_id=to, reason=reason, message=message):
            return f"{to} Goodbye {reason}: {message}"
        case other:
            raise AssertionError(f"nobody wrote down how {other} reads")


def rewritten(script: str) -> str:
    """Play a transcript and return it with what came of its commands now."""
    scribe = Scribe()
    scenes = []
    for scene in script.strip().split("\n\n"):
        command = scene.split(f"\n{RULE}")[0]
        told = [line for one in command.splitlines() if not one.startswith("#") for line in scribe.play(one)]
        scenes.append("\n".join([command, RULE, *told]) if not is_comment(command) else command)
    return "\n\n".join(scenes) + "\n"


def is_comment(scene: str) -> bool:
    return all(line.startswith("#") for line in scene.splitlines())
