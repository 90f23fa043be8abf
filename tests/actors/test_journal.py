"""The journal alone: when groups are handed over, what is accepted, and what becomes of those that fail."""

import asyncio

import pytest
from tests.support.clock import ManualClock
from tests.support.writers import HeldWriter

from mobd_server.actors.journal import GATHER_S, MAX_ROWS, PROBE_S, Journal
from mobd_server.errors import JournalDown, JournalFull
from mobd_server.machines.events import MobStarted
from mobd_server.machines.records import Append, Record
from mobd_server.ports import Fate, Result


class Owner:
    """Writes down what the journal tells it, in one list for all owners."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told
        self.head = 0

    def committed(self, append: Append) -> None:
        self.told.append(f"{self.name} committed {append.base}")

    def lost(self, append: Append, result: Result) -> None:
        self.told.append(f"{self.name} lost {append.base} {result.fate}")

    def answer(self) -> None:
        self.told.append(f"{self.name} answer")

    def react(self) -> None:
        self.told.append(f"{self.name} react")

    def leave(self) -> None:
        self.told.append(f"{self.name} leave")


class Bench:
    """A journal on a held writer."""

    def __init__(self, slots: int = 4_096) -> None:
        self.clock = ManualClock()
        self.writer = HeldWriter()
        self.journal = Journal(self.writer, self.clock, slots)
        self.told: list[str] = []
        self.owners: dict[str, Owner] = {}

    def submit(self, name: str = "a", rows: int = 1, times: int = 1) -> None:
        for _ in range(times):
            owner = self.owners.setdefault(name, Owner(name, self.told))
            self.journal.submit(append(name, owner.head, rows), owner)
            owner.head += rows

    async def group(self, size: int) -> None:
        """Let a group of `size` be handed over and return, the journal being idle."""
        self.submit("warm", times=size)
        await tick()
        self.writer.commit()
        self.told.clear()


def append(mob_id: str, base: int, rows: int) -> Append:
    records = [
        Record(base + i + 1, 0, MobStarted.kind, 1, None, None, None, None, None, "", None, "{}", MobStarted())
        for i in range(rows)
    ]
    return Append(mob_id, f"log-{mob_id}", 1, base, records, "running", None)


async def tick() -> None:
    """Let everything run that is ready, and what that makes ready."""
    loop = asyncio.get_running_loop()
    for _ in range(3):
        ticked = loop.create_future()
        loop.call_soon(ticked.set_result, None)
        await ticked


@pytest.mark.asyncio
async def test_an_idle_journal_hands_over_at_the_end_of_the_tick() -> None:
    bench = Bench()
    bench.submit(times=3)
    assert bench.writer.in_flight() == 0
    await tick()
    assert [len(group) for group in bench.writer.groups] == [3]
    assert not bench.clock.planned


@pytest.mark.asyncio
async def test_one_group_is_in_flight_and_the_next_is_collected_meanwhile() -> None:
    bench = Bench()
    bench.submit()
    await tick()
    bench.submit(times=2)
    await tick()
    assert [len(group) for group in bench.writer.groups] == [1]
    bench.writer.commit()
    await tick()
    assert [len(group) for group in bench.writer.groups] == [1, 2]


@pytest.mark.asyncio
async def test_after_a_small_group_nothing_is_waited_for() -> None:
    bench = Bench()
    await bench.group(3)
    assert not bench.clock.planned
    bench.submit()
    await tick()
    assert len(bench.writer.groups[-1]) == 1


@pytest.mark.asyncio
async def test_after_a_large_group_the_next_is_handed_over_at_as_many_items() -> None:
    bench = Bench()
    await bench.group(4)
    bench.submit(times=3)
    await tick()
    assert bench.writer.in_flight() == 0
    bench.submit()
    assert bench.writer.in_flight() == 4
    assert not bench.clock.planned


@pytest.mark.asyncio
async def test_after_a_large_group_the_next_is_handed_over_at_a_thousand_rows() -> None:
    bench = Bench()
    await bench.group(5)
    bench.submit(rows=MAX_ROWS - 1)
    await tick()
    assert bench.writer.in_flight() == 0
    bench.submit()
    assert bench.writer.in_flight() > 0


@pytest.mark.asyncio
async def test_after_a_large_group_the_next_is_handed_over_when_the_window_closes() -> None:
    bench = Bench()
    await bench.group(4)
    bench.submit()
    bench.clock.advance(GATHER_S * 0.9)
    await tick()
    assert bench.writer.in_flight() == 0
    bench.clock.advance(GATHER_S * 0.2)
    assert bench.writer.in_flight() == 1


@pytest.mark.asyncio
async def test_a_window_that_closes_on_nothing_leaves_the_journal_idle() -> None:
    bench = Bench()
    await bench.group(4)
    bench.clock.advance(GATHER_S)
    assert bench.writer.in_flight() == 0
    bench.submit()
    await tick()
    assert bench.writer.in_flight() == 1


@pytest.mark.asyncio
async def test_what_is_as_large_as_the_group_that_returns_is_handed_over_at_once() -> None:
    bench = Bench()
    bench.submit(times=4)
    await tick()
    bench.submit(times=6)
    bench.writer.commit()
    assert bench.writer.in_flight() == 6


@pytest.mark.asyncio
async def test_a_group_ends_before_its_rows_are_too_many_and_a_large_decision_goes_alone() -> None:
    bench = Bench()
    bench.submit(rows=600)
    bench.submit(rows=400)
    bench.submit(rows=1)
    bench.submit(rows=MAX_ROWS + 500)
    bench.submit(rows=1)
    sizes = []
    for _ in range(4):
        await tick()
        bench.clock.advance(GATHER_S)
        sizes.append([len(one.records) for one in bench.writer.groups[-1]])
        bench.writer.commit()
    assert sizes == [[600, 400], [1], [MAX_ROWS + 500], [1]]


@pytest.mark.asyncio
async def test_all_are_published_before_any_is_answered_and_all_answered_before_any_reacts() -> None:
    bench = Bench()
    for name in ("a", "b", "a"):
        bench.submit(name)
    await tick()
    bench.writer.commit()
    assert bench.told == [
        *("a committed 0", "b committed 0", "a committed 1"),
        *("a answer", "b answer", "a react", "b react"),
    ]


@pytest.mark.asyncio
async def test_a_tenth_of_the_slots_is_kept() -> None:
    bench = Bench(slots=20)
    bench.submit(times=18)
    assert isinstance(bench.journal.refusal(), JournalFull)
    assert bench.journal.refusal(kept=True) is None
    bench.submit(times=2)
    assert isinstance(bench.journal.refusal(kept=True), JournalFull)
    await tick()
    # A slot is free when its append has returned, not when it is handed over.
    assert isinstance(bench.journal.refusal(), JournalFull)
    bench.writer.commit()
    assert bench.journal.refusal() is None


@pytest.mark.asyncio
async def test_who_waits_for_room_is_told_when_there_is_some() -> None:
    bench = Bench(slots=10)
    bench.submit(times=10)
    called: list[str] = []
    bench.journal.when_room(lambda: called.append("room"))
    waiting = asyncio.create_task(bench.journal.room())
    await tick()
    assert (called, waiting.done()) == ([], False)
    bench.writer.commit()
    await asyncio.wait_for(waiting, 5)
    assert called == ["room"]


@pytest.mark.asyncio
async def test_room_that_others_took_is_waited_for_again() -> None:
    bench = Bench(slots=10)
    bench.submit(times=10)
    await tick()

    def take_all() -> None:
        bench.submit(times=10)

    bench.journal.when_room(take_all)
    waiting = asyncio.create_task(bench.journal.room())
    await tick()
    bench.writer.commit()
    await tick()
    assert not waiting.done()
    bench.writer.commit()
    await asyncio.wait_for(waiting, 5)


@pytest.mark.asyncio
async def test_queued_appends_of_a_failed_incarnation_never_reach_the_writer() -> None:
    bench = Bench()
    bench.submit("a")
    bench.submit("b")
    await tick()
    bench.submit("a", times=2)
    bench.submit("c")
    bench.writer.fail("fenced", "committed")
    await tick()
    assert [one.mob_id for one in bench.writer.groups[-1]] == ["c"]
    assert bench.told == [
        *("a lost 0 fenced", "b committed 0"),
        *("a answer", "b answer", "a react", "b react", "a leave"),
    ]
    assert not bench.journal.down


@pytest.mark.asyncio
async def test_an_incarnation_hears_of_its_first_lost_append_only() -> None:
    bench = Bench()
    bench.submit("a", times=3)
    await tick()
    bench.writer.fail("committed", "offender", "dropped")
    assert bench.told == ["a committed 0", "a lost 1 offender", "a answer", "a react", "a leave"]


@pytest.mark.parametrize("fate", ["unknown", "aborted"])
@pytest.mark.asyncio
async def test_a_store_that_failed_takes_the_journal_down(fate: Fate) -> None:
    bench = Bench()
    seen: list[bool] = []
    bench.journal.on_change(seen.append)
    bench.submit("a")
    await tick()
    bench.submit("b")
    bench.writer.fail(fate)
    # Nobody waits for a store that is gone: what was queued is given up.
    assert bench.told == [
        *(f"a lost 0 {fate}", "b lost 0 aborted"),
        *("a answer", "b answer", "a react", "b react", "a leave", "b leave"),
    ]
    assert bench.journal.down
    assert seen == [True]
    assert isinstance(bench.journal.refusal(kept=True), JournalDown)
    await tick()
    assert len(bench.writer.groups) == 1


@pytest.mark.asyncio
async def test_a_journal_that_is_down_probes_once_a_second_until_the_store_answers() -> None:
    bench = Bench()
    seen: list[bool] = []
    bench.journal.on_change(seen.append)
    bench.submit()
    await tick()
    bench.writer.fail("unknown")
    called: list[str] = []
    bench.journal.when_room(lambda: called.append("room"))
    for _ in range(2):
        assert not bench.writer.probing()
        bench.clock.advance(PROBE_S)
        assert bench.writer.probing()
        bench.writer.answer_probe(answers=False)
        assert seen == [True]
    bench.clock.advance(PROBE_S)
    bench.writer.answer_probe(answers=True)
    assert seen == [True, False]
    assert called == ["room"]
    assert not bench.clock.planned
    bench.submit("b")
    await tick()
    assert bench.writer.in_flight() > 0


@pytest.mark.asyncio
async def test_a_store_that_is_suspected_is_probed_and_the_journal_is_down_if_it_does_not_answer() -> None:
    bench = Bench()
    seen: list[bool] = []
    bench.journal.on_change(seen.append)
    bench.journal.suspect()
    bench.journal.suspect()
    bench.writer.answer_probe(answers=True)
    assert not bench.writer.probing()
    assert seen == []
    bench.journal.suspect()
    bench.writer.answer_probe(answers=False)
    assert seen == [True]
    assert isinstance(bench.journal.refusal(kept=True), JournalDown)
    bench.journal.suspect()
    assert not bench.writer.probing()
    bench.clock.advance(PROBE_S)
    bench.writer.answer_probe(answers=True)
    assert seen == [True, False]


@pytest.mark.asyncio
async def test_a_suspicion_gives_up_nothing_that_is_on_its_way() -> None:
    bench = Bench()
    bench.journal.suspect()
    bench.submit()
    await tick()
    bench.writer.answer_probe(answers=False)
    assert not bench.journal.down
    bench.writer.commit()
    assert bench.told == ["a committed 0", "a answer", "a react"]


@pytest.mark.asyncio
async def test_who_waits_for_room_hears_that_the_journal_went_down() -> None:
    bench = Bench(slots=10)
    bench.submit(times=10)
    waiting = asyncio.create_task(bench.journal.room())
    await tick()
    bench.writer.fail("aborted")
    with pytest.raises(JournalDown):
        await asyncio.wait_for(waiting, 5)


@pytest.mark.asyncio
async def test_drain_waits_for_what_is_queued_and_in_flight_and_opens_no_window() -> None:
    bench = Bench()
    await bench.group(4)
    bench.submit()
    draining = asyncio.create_task(bench.journal.drain())
    await tick()
    assert bench.writer.in_flight() > 0
    bench.submit(times=5)
    bench.writer.commit()
    await tick()
    assert not draining.done()
    assert not bench.clock.planned
    bench.writer.commit()
    await asyncio.wait_for(draining, 5)


@pytest.mark.asyncio
async def test_an_owner_that_fails_does_not_stop_the_journal() -> None:
    bench = Bench()

    class Broken(Owner):
        def answer(self) -> None:
            raise ValueError("broken")

    bench.owners["a"] = Broken("a", bench.told)
    bench.submit("a")
    await tick()
    with pytest.raises(ValueError, match="broken"):
        bench.writer.commit()
    bench.submit("b")
    await tick()
    assert bench.writer.in_flight() > 0
