"""A stage whose callers do all that callers may, and whose agents are good and bad: those of tests.checker.

Nothing is checked after each injection but that the server serves and calls are answered. At the end all is healed,
what waits is driven to its end, and the history of everybody is judged.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Self

from tests.checker.checker import check, told
from tests.checker.history import Plain, Recorder, merged, read, write
from tests.checker.recording import clock
from tests.checker.workload import MEMBERS, Client, Plan, Shared
from tests.crash.stage import CALLERS, Stage
from tests.support.disks import Disk
from tests.support.peers import MOB, ROLE, content
from tests.support.postgres import Cluster
from tests.support.processes import Process, say

from mobd.v1 import bridge_pb2, mobs_pb2

# How long a healed mob is given to come to rest: a failed input waits 1 s and 10 s for its next attempts.
REST_S: Final = 30.0
UNDECIDED: Final = "could not be decided in time"


class Counting(Recorder):
    """A recorder that says so when a call is answered."""

    def __init__(self, answered: Callable[[], None]) -> None:
        super().__init__(clock, "t-")
        self._told = answered

    def answered(self, who: str, call: str, answer: Plain) -> None:
        super().answered(who, call, answer)
        self._told()


class RecordedAgent:
    """An agent process that takes down every frame; each start of it is another incarnation with a file of its own."""

    def __init__(self, folder: Path, name: str, target: str) -> None:
        self.name = name
        self.books: list[Path] = []
        self._folder = folder
        self._target = target
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    def start(self) -> Self:
        """Start it, for the first time or in the place of one that has ended."""
        incarnation = str(len(self.books) + 1)
        book = self._folder / f"{self.name}-{incarnation}.jsonl"
        book.touch()
        self.books.append(book)
        names = [self._target, MOB, ROLE, self.name, incarnation, f"{self.name}-{incarnation}", str(book)]
        log = self._folder / f"{self.name}.log"
        self._process = Process(["-m", "tests.checker.agent", *names], {}, log)
        return self

    def kill9(self) -> None:
        self.process.kill()

    def in_flight(self) -> int:
        """Return how many turns it is known to be at: it does not say."""
        return 0


class MixedStage(Stage):
    """See the head of this file."""

    members = tuple(MEMBERS)
    unit = "answers"
    # A history that is judged only at its end is kept short.
    uses = 4

    def __init__(self, folder: Path, cluster: Cluster | None, disk: Disk | None) -> None:
        super().__init__(folder, cluster, disk)
        self.recorder = Counting(self.answered)
        self._shared = Shared()
        self._processes: list[RecordedAgent] = []

    @property
    def agents(self) -> list[RecordedAgent]:
        return self._processes

    async def populate(self) -> None:
        for at in range(2):
            agent = RecordedAgent(self.folder, f"host-{at}", self.to_agents.target)
            self._processes.append(agent.start())
            self.stack.callback(agent.kill9)
        plan = Plan(seed=1)
        self._clients = [Client(await self.caller(f"client-{at}"), at, plan, self._shared) for at in range(CALLERS)]
        self._follower = asyncio.create_task((await self.caller("follower")).follow())
        self.stack.callback(self._follower.cancel)

    def calling(self, draw: random.Random) -> AbstractAsyncContextManager[None]:
        self._shared.enough = asyncio.Event()
        return self.calls_of([client.live() for client in self._clients], self._shared.enough.set)

    async def check(self) -> None:
        """Wait for what was interrupted; the rest is for `judge`."""
        await self.caught_up()

    async def judge(self) -> None:
        """Bring the mob to rest and judge the history of everybody."""
        await self._rest()
        watching = [self._follower, *self._shared.watching]
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for agent in self._processes:
            agent.kill9()
        await self.recorded_admin.finish(quiet=True)
        books = [read(book) for agent in self._processes for book in agent.books]
        history = merged(self.recorder, *books)
        write(self.folder / "history.jsonl", history)
        verdicts = check(history)
        open_ones = [one for one in verdicts if one.text.endswith(UNDECIDED)]
        for one in open_ones:
            # Many calls without an answer can be ordered in more ways than can be tried.
            say(f"     NOT DECIDED: {one}")
        broken = [one for one in verdicts if one not in open_ones]
        assert not broken, f"{self.folder / 'history.jsonl'}\n{told(broken)}"

    async def _rest(self) -> None:
        """Wake what waits, and return when nothing is left to be run."""
        admin = self.recorded_admin
        await admin.ask("ResumeMob", mobs_pb2.ResumeMobRequest(mob_id=MOB, request_id="resume"))
        for name in MEMBERS:
            last = f"last-{name}"
            request = bridge_pb2.DeliverRequest(mob_id=MOB, member_id=name, input_id=last, content=content(n=last))
            await admin.ask("Deliver", request)
        deadline = asyncio.get_running_loop().time() + REST_S
        # One that wakes nobody may wait for ever.
        while live := [one for one in await admin.live_inputs() if not one.silent]:
            if asyncio.get_running_loop().time() > deadline:
                # Whether these should have ended is for the checker to say.
                say(f"     NOT AT REST: {[(one.member_id, one.input_id, one.waiting_reason) for one in live]}")
                return
            await self.pause(0.1)
