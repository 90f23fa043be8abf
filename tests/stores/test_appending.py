"""What a store does with what it is given: all of it or nothing, for the incarnation that owns the mob alone."""

import msgspec
import pytest
from tests.stores.conftest import Backend
from tests.support.authors import DEFINITION, Author

from mobd_server.machines import commands as c
from mobd_server.machines.decision import fold, new_mob
from mobd_server.machines.state import Mob

_state = msgspec.json.Encoder(order="deterministic").encode

pytestmark = pytest.mark.asyncio


async def folded(backend: Backend, mob_id: str) -> Mob:
    mob = new_mob(mob_id)
    for record in await backend.store.read_events(mob_id, 0, 10_000, 1 << 30):
        fold(mob, record)
    return mob


async def test_what_is_read_back_folds_to_the_state_that_was_decided(backend: Backend) -> None:
    author = Author("m")
    group = [*author.create("a", "b"), *author.attach(), *author.run("a", "i1", '{"role":"user"}')]
    assert set(await backend.fates(*group)) == {"committed"}
    assert _state(await folded(backend, "m")) == _state(author.mob)


async def test_an_append_of_an_earlier_incarnation_never_lands(backend: Backend) -> None:
    author = Author("m")
    assert set(await backend.fates(*author.create("a"))) == {"committed"}
    loaded = await backend.store.acquire("m")
    assert loaded is not None
    assert (loaded.epoch, loaded.head) == (2, author.mob.head)
    assert await backend.fates(author.deliver("a", "late")) == ["fenced"]
    assert (await backend.store.read_events("m", 0, 100))[-1].kind == "member_spawned"


async def test_the_next_incarnation_goes_on_where_the_log_ends(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a"))
    await backend.store.acquire("m")
    author.epoch = 2
    assert await backend.fates(author.deliver("a", "next")) == ["committed"]


async def test_who_knew_a_deleted_mob_writes_nothing_to_the_next_one_of_its_name(backend: Backend) -> None:
    old, new = Author("m"), Author("m")
    assert set(await backend.fates(*old.create("a"))) == {"committed"}
    # All that tells the two apart is the log: epochs and heads are the same.
    await backend.store.destroy_unreadable("m")
    await backend.store.mark_deleting("m")
    await backend.store.delete_rows("m")
    created = new.append(c.CreateMob(DEFINITION, {}, "log-new"))
    spawned = new.append(c.SpawnMember(c.MemberSpec("b", "analyst")))
    assert set(await backend.fates(created, spawned)) == {"committed"}
    assert (old.epoch, old.mob.head) == (new.epoch, new.mob.head)
    late = old.deliver("a", "late")
    assert await backend.fates(late) == ["fenced"]
    assert await backend.fates(late, new.deliver("b", "first")) == ["fenced", "committed"]
    assert _state(await folded(backend, "m")) == _state(new.mob)


async def test_an_append_at_another_head_is_fenced(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a"))
    author.deliver("a", "never stored")
    assert await backend.fates(author.deliver("a", "after it")) == ["fenced"]


async def test_appends_of_one_incarnation_in_a_group_have_one_fate(backend: Backend) -> None:
    stale, live = Author("stale"), Author("live")
    await backend.fates(*stale.create("a"), *live.create("a"))
    await backend.store.acquire("stale")
    group = [
        stale.deliver("a", "1"),
        live.deliver("a", "1"),
        stale.deliver("a", "2"),
        live.deliver("a", "2"),
    ]
    assert await backend.fates(*group) == ["fenced", "committed", "fenced", "committed"]
    seqs = [record.seq for record in await backend.store.read_events("live", 0, 100)]
    assert seqs == list(range(1, live.mob.head + 1))


async def test_of_two_creators_one_wins(backend: Backend) -> None:
    one, other = Author("m"), Author("m")
    assert await backend.fates(*one.create("a")) == ["committed", "committed"]
    assert set(await backend.fates(*other.create("b"))) == {"fenced"}
    assert list((await folded(backend, "m")).members) == ["a"]


async def test_of_two_creators_in_one_group_the_other_adds_nothing(backend: Backend) -> None:
    one, other = Author("m").create("a"), Author("m").create("b")
    assert await backend.fates(one[0], other[0], one[1], other[1]) == ["committed", "fenced", "fenced", "fenced"]
    assert list((await folded(backend, "m")).members) == []


async def test_what_can_not_be_stored_fails_alone(backend: Backend) -> None:
    poisoned, neighbour = Author("poisoned"), Author("neighbour")
    await backend.fates(*poisoned.create("a"), *neighbour.create("a"))
    before, offender, after = (poisoned.deliver("a", i) for i in ("before", "offender", "after"))
    # A lone surrogate: text that no database takes. The door refuses it; this is what happens if one slips through.
    offender.records[0].payload = '{"text":"\ud800"}'
    group = [before, neighbour.deliver("a", "1"), offender, neighbour.deliver("a", "2"), after]
    assert await backend.fates(*group) == ["committed", "committed", "offender", "committed", "dropped"]
    assert (await backend.store.read_events("poisoned", 0, 100))[-1].seq == before.records[-1].seq
    assert (await folded(backend, "neighbour")).head == neighbour.mob.head


async def test_projections_are_stored_with_their_events_or_not_at_all(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a"), *author.attach())
    delivered, settled = author.run("a", "i1", '{"role":"user"}', '{"role":"assistant"}')
    run_id = settled.runs[0].run_id
    await backend.store.acquire("m")
    assert set(await backend.fates(delivered, settled)) == {"fenced"}
    assert await backend.store.read_run("m", run_id) is None
    assert await backend.store.read_messages("m", author.mob.members["a"].session_id, 0, 10) == []
    delivered.epoch = settled.epoch = 2
    assert set(await backend.fates(delivered, settled)) == {"committed"}
    run = await backend.store.read_run("m", run_id)
    assert run is not None
    assert (run.state, run.settled_seq, run.message_count) == ("committed", settled.records[0].seq, 2)
    messages = await backend.store.read_messages("m", author.mob.members["a"].session_id, 0, 10)
    assert [(m.position, m.payload) for m in messages] == [(0, '{"role":"user"}'), (1, '{"role":"assistant"}')]


async def test_a_decision_larger_than_any_block_of_rows_is_stored_whole(backend: Backend) -> None:
    author = Author("m")
    group = author.create()
    group.append(author.append(c.SpawnMembers([c.MemberSpec(f"m{i}", "analyst") for i in range(1_000)])))
    assert set(await backend.fates(*group)) == {"committed"}
    assert len((await folded(backend, "m")).members) == 1_000


async def test_text_of_every_kind_comes_back_as_it_was(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a"))
    text = r'"nul \u0000, quote \", emoji 😀, combining é, line \n, back \\"'
    await backend.fates(author.deliver("a", "odd", text))
    record = (await backend.store.read_events("m", author.mob.head - 1, 1))[0]
    assert record.payload.count(text) == 1
    assert _state(await folded(backend, "m")) == _state(author.mob)


async def test_the_answer_of_a_request_is_kept_beside_its_event(backend: Backend) -> None:
    author = Author("m")
    group = author.create("a")
    last = group[-1].records[-1]
    last.request_id, last.request_hash, last.answer, last.traceparent = "r1", "hash", '{"x":1}', "00-trace"
    await backend.fates(*group)
    stored = await backend.store.read_event("m", last.seq)
    assert stored is not None
    assert (stored.request_id, stored.request_hash, stored.answer, stored.traceparent) == (
        "r1",
        "hash",
        '{"x":1}',
        "00-trace",
    )
