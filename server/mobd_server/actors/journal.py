"""The journal's side on the loop: it collects appends into groups and hands the writer one group at a time.

How long it collects decides the cost of an append more than anything else. While groups are large, the next one waits
until it is as large as the last, but not longer than a few milliseconds; a small group is followed at the end of the
tick. A journal whose store failed is *down*: it accepts nothing until the store answers a probe.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Container
from functools import partial
from typing import Final

from mobd_server.actors.bell import wake
from mobd_server.actors.links import Appender
from mobd_server.errors import Exhausted, JournalDown, JournalFull, Unavailable
from mobd_server.faults import ARMED, reach
from mobd_server.machines.records import Append
from mobd_server.ports import Clock, JournalMeter, Result, Timer, Writer

log: Final = logging.getLogger(__name__)

SLOTS: Final = 4_096
# Groups of this size and more are followed by one that is collected for a while.
LARGE_GROUP: Final = 4
GATHER_S: Final = 0.003
MAX_ROWS: Final = 1_000
PROBE_S: Final = 1.0


class Journal:
    """Makes appends durable, in the order in which they were submitted, and tells their incarnations."""

    __slots__ = (
        "_appends",
        "_clock",
        "_drained",
        "_in_flight",
        "_listeners",
        "_loop",
        "_meter",
        "_open_slots",
        "_owners",
        "_planned",
        "_rows",
        "_sent_at",
        "_since",
        "_slots",
        "_suspecting",
        "_taken",
        "_target",
        "_times",
        "_waiting",
        "_window",
        "_writer",
        "down",
    )

    def __init__(self, writer: Writer, clock: Clock, slots: int = SLOTS, meter: JournalMeter | None = None) -> None:
        self._writer = writer
        self._clock = clock
        self._meter = meter
        self._loop = asyncio.get_running_loop()
        self._slots = slots
        # A tenth is kept for what must not fail: settlements, timers, leases.
        self._open_slots = slots - slots // 10
        # Appends that are queued or in flight.
        self._taken = 0
        # The queue, as three lists in step: the first is handed to the writer as it is, the last says since when each
        # of them waits, in monotonic seconds.
        self._appends: list[Append] = []
        self._owners: list[Appender] = []
        self._times: list[float] = []
        self._rows = 0
        self._in_flight: tuple[list[Append], list[Appender]] | None = None
        # Of what is in flight: since when its oldest append waits, and when it was handed over.
        self._since = 0.0
        self._sent_at = 0.0
        # A hand-over is planned for the end of the tick.
        self._planned = False
        # While a window is open: how many appends end it early. 0: no window.
        self._target = 0
        self._window: Timer | None = None
        self._waiting: deque[Callable[[], None]] = deque()
        self._listeners: list[Callable[[bool], None]] = []
        self._drained: list[asyncio.Future[None]] | None = None
        self.down = False
        # It is probed whether the store answers, although nothing that was appended failed.
        self._suspecting = False

    @property
    def waiting(self) -> int:
        """How many appends are queued or in flight."""
        return self._taken

    @property
    def age_s(self) -> float:
        """Since how many seconds the oldest append waits to be durable; 0 if none does."""
        if self._in_flight is not None:
            return self._clock.monotonic() - self._since
        return self._clock.monotonic() - self._times[0] if self._times else 0.0

    def refusal(self, kept: bool = False) -> Unavailable | Exhausted | None:
        """Return why nothing can be appended now, or None, which holds until the end of the tick's next `submit`.

        `kept` appends may use the slots that are kept for them.
        """
        if self.down:
            return self.refusal_while_down()
        if self._taken >= (self._slots if kept else self._open_slots):
            return JournalFull(f"{self._taken} decisions wait to be stored: repeat the call a little later")
        return None

    def refusal_while_down(self) -> JournalDown | None:
        """Return the refusal of a journal that is down."""
        if not self.down:
            return None
        return JournalDown("the store does not answer: repeat the call with the same ids")

    def submit(self, append: Append, owner: Appender) -> None:
        """Queue `append`; `owner` hears of it exactly once, never from within this call."""
        self._appends.append(append)
        self._owners.append(owner)
        self._times.append(self._clock.monotonic())
        self._rows += len(append.records) + len(append.messages)
        self._taken += 1
        if self._in_flight is not None:
            return
        if self._target:
            if len(self._appends) >= self._target or self._rows >= MAX_ROWS:
                self._hand_over()
        elif not self._planned:
            self._planned = True
            self._loop.call_soon(self._hand_over)

    def drop(self, owner: Appender) -> None:
        """Forget what `owner` has queued: it never reaches the writer. What is in flight stays in flight."""
        self._drop({owner})

    def on_change(self, listener: Callable[[bool], None]) -> None:
        """Call `listener` with `down` whenever it changes, after everything that it changed was told."""
        self._listeners.append(listener)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, in a later tick or a later commit, when a kept append would be accepted."""
        self._waiting.append(callback)
        if self.refusal(kept=True) is None:
            self._loop.call_soon(self._offer_room)

    async def room(self) -> None:
        """Return when a kept append is accepted in this tick. Raises JournalDown."""
        while (refusal := self.refusal(kept=True)) is not None:
            if self.down:
                raise refusal
            freed: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(partial(wake, freed))
            await freed

    async def drain(self) -> None:
        """Return when nothing is queued or in flight. From now on nothing is collected for long."""
        if self._drained is None:
            self._drained = []
        if self._target:
            self._hand_over()
        while self._taken:
            drained: asyncio.Future[None] = self._loop.create_future()
            self._drained.append(drained)
            await drained

    def _hand_over(self) -> None:
        self._planned = False
        self._target = 0
        if self._window is not None:
            self._window.cancel()
            self._window = None
        if self._in_flight is not None or not self._appends:
            return
        self._since, self._sent_at = self._times[0], self._clock.monotonic()
        if self._rows <= MAX_ROWS:
            group = (self._appends, self._owners)
            self._appends, self._owners, self._times, self._rows = [], [], [], 0
        else:
            group = self._take()
        self._in_flight = group
        self._writer.submit(group[0], self._returned)

    def _take(self) -> tuple[list[Append], list[Appender]]:
        # A decision that is too large for any group comes first at last, and then goes alone.
        count = rows = 0
        for append in self._appends:
            size = len(append.records) + len(append.messages)
            if count and rows + size > MAX_ROWS:
                break
            count += 1
            rows += size
        group = (self._appends[:count], self._owners[:count])
        del self._appends[:count], self._owners[:count], self._times[:count]
        self._rows -= rows
        return group

    def _returned(self, results: list[Result]) -> None:
        assert self._in_flight is not None
        appends, owners = self._in_flight
        self._taken -= len(appends)
        if self._meter is not None:
            self._meter.group(results, self._sent_at - self._since, self._clock.monotonic() - self._sent_at)
        try:
            self._tell(appends, owners, results)
        finally:
            self._in_flight = None
            self._plan(len(appends))
            self._offer_room()

    def _tell(self, appends: list[Append], owners: list[Appender], results: list[Result]) -> None:
        touched: dict[Appender, None] = {}
        lost: dict[Appender, None] = {}
        failure: Result | None = None
        for append, owner, result in zip(appends, owners, results, strict=True):
            touched[owner] = None
            if result.fate == "committed":
                owner.committed(append)
            elif owner not in lost:
                lost[owner] = None
                owner.lost(append, result)
                if failure is None and result.fate in ("unknown", "aborted"):
                    failure = result
        if lost:
            self._drop(lost)
        if failure is not None:
            self._go_down(touched, lost, failure)
        if ARMED:
            reach("before_answer")
        for owner in touched:
            owner.answer()
        for owner in touched:
            owner.react()
        for owner in lost:
            owner.leave()
        if failure is not None:
            self._tell_change()

    def _go_down(self, touched: dict[Appender, None], lost: dict[Appender, None], failure: Result) -> None:
        """Give up what is queued: nobody waits for a store that is gone, and memory no longer runs ahead of it."""
        log.error("store_failed", extra={"error": failure.error, "outcome": failure.fate})
        for append, owner in zip(self._appends, self._owners, strict=True):
            if owner not in lost:
                touched[owner] = lost[owner] = None
                owner.lost(append, Result("aborted", "an earlier group failed"))
        self._drop(lost)
        self.down = True
        self._clock.call_later(PROBE_S, self._probe)

    def _drop(self, lost: Container[Appender]) -> None:
        queued = zip(self._appends, self._owners, self._times, strict=True)
        kept = [one for one in queued if one[1] not in lost]
        self._taken -= len(self._appends) - len(kept)
        self._appends = [append for append, _, _ in kept]
        self._owners = [owner for _, owner, _ in kept]
        self._times = [at for _, _, at in kept]
        self._rows = sum(len(append.records) + len(append.messages) for append in self._appends)
        self._tell_drained()

    def _plan(self, size: int) -> None:
        """Plan the next hand-over, `size` appends having returned."""
        queued = len(self._appends)
        if size >= LARGE_GROUP and self._drained is None:
            if queued >= size or self._rows >= MAX_ROWS:
                self._hand_over()
            else:
                self._target = size
                self._window = self._clock.call_later(GATHER_S, self._hand_over)
        elif queued and not self._planned:
            self._planned = True
            self._loop.call_soon(self._hand_over)
        self._tell_drained()

    def _offer_room(self) -> None:
        # Not more than are waiting now: who is called may find the room gone, and wait again.
        for _ in range(len(self._waiting)):
            if self.refusal(kept=True) is not None and not self.down:
                break
            self._waiting.popleft()()

    def _tell_drained(self) -> None:
        if not self._taken and self._drained:
            for drained in self._drained:
                wake(drained)
            self._drained.clear()

    def suspect(self) -> None:
        """Have the store probed, for something else than an append failed there; down is what it is if that fails too.

        Without mobs in memory nothing is appended, and nobody else would find out.
        """
        if not self.down and not self._suspecting:
            self._suspecting = True
            self._writer.probe(self._examined)

    def _examined(self, answers: bool) -> None:
        self._suspecting = False
        # What is queued or in flight finds out by itself.
        if not answers and not self.down and not self._taken:
            self._go_down({}, {}, Result("aborted", "it does not answer a probe"))
            self._tell_change()

    def _probe(self) -> None:
        self._writer.probe(self._probed)

    def _probed(self, answers: bool) -> None:
        if not answers:
            self._clock.call_later(PROBE_S, self._probe)
            return
        self.down = False
        log.info("store_answers")
        self._tell_change()
        self._offer_room()

    def _tell_change(self) -> None:
        for listener in self._listeners:
            listener(self.down)
