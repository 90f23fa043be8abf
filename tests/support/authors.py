"""Whoever decides on a mob: makes the appends that a store is given, as an actor would."""

from msgspec import Raw

from mobd_server.machines import commands as c
from mobd_server.machines.answers import SendStartRun
from mobd_server.machines.decision import Decided, decide, new_mob
from mobd_server.machines.records import Append
from mobd_server.machines.state import Definition, Profile, Serve

DEFINITION = Definition(profiles={"analyst": Profile("analyst")})
BEGIN = 1_700_000_000_000_000


class Counted:
    """Ids in the order of their creation, the same in every test."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._count = 0

    def new(self, prefix: str) -> str:
        """Return the next one."""
        self._count += 1
        return f"{prefix}-{self._epoch:08x}{'0' * 8}{self._count:08x}"


class Author:
    """One incarnation of one mob, one microsecond between two decisions."""

    def __init__(self, mob_id: str, epoch: int = 1) -> None:
        self.mob = new_mob(mob_id)
        self.epoch = epoch
        self.now = BEGIN
        self.ids = Counted(epoch)
        self.online: set[str] = set()

    def decide(self, command: c.Command) -> Decided:
        """Decide, and move on."""
        self.now += 1
        return decide(self.mob, command, c.Context(self.now, self.ids, self.online), self.epoch)

    def append(self, command: c.Command) -> Append:
        """Decide, and return what that appends."""
        append = self.decide(command).append
        assert append is not None
        return append

    def create(self, *members: str, labels: dict[str, str] | None = None) -> list[Append]:
        """Create the mob with members."""
        first = self.append(c.CreateMob(DEFINITION, labels or {}, f"log-{self.mob.mob_id}"))
        return [first, *(self.append(c.SpawnMember(c.MemberSpec(member, "analyst"))) for member in members)]

    def deliver(self, member: str, input_id: str, text: str = '"hello"') -> Append:
        """Deliver one input."""
        return self.append(c.Deliver(member, input_id, Raw(f'[{{"text":{text}}}]'.encode())))

    def attach(self) -> list[Append]:
        """Let an agent serve every member."""
        opened = self.append(c.Attach("host", "one", 8, 100, [Serve(role="analyst")]))
        (attachment,) = self.mob.attachments.values()
        self.online.add(attachment.attachment_id)
        confirms = [
            self.append(c.Confirm(attachment.attachment_id, member_id, fence))
            for member_id, fence in sorted(attachment.members.items())
        ]
        return [opened, *confirms]

    def run(self, member: str, input_id: str, *messages: str) -> list[Append]:
        """Deliver one input, and settle its run with messages."""
        delivered = self.decide(c.Deliver(member, input_id, Raw(b'[{"text":"work"}]')))
        (start,) = (r for r in delivered.reactions if isinstance(r, SendStartRun))
        count = self.mob.members[member].message_count + len(messages)
        settled = self.append(
            c.SettleRun(
                start.attachment_id,
                start.run_id,
                start.fence,
                Raw(b'{"ok":true}'),
                b"hash",
                [Raw(message.encode()) for message in messages],
                count,
                f"digest-{count}",
            )
        )
        assert delivered.append is not None
        return [delivered.append, settled]
