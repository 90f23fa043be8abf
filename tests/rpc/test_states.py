"""GetState: the whole state, now and as it was, in parts that fit any reader."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, Speaker, rest_of
from tests.support.processes import until

from mobd.v1 import bridge_pb2, common_pb2, events_pb2, mobs_pb2
from mobd_server.adapters.rpc.convert_states import MESSAGE_BYTES, messages
from mobd_server.adapters.sql.rebuilding import RebuilderProcess
from mobd_server.machines.sections import Part
from mobd_server.services.state import SMALL

pytestmark = pytest.mark.asyncio

STARTED_S = 30


async def state(peer: Speaker, **more: Any) -> tuple[events_pb2.StateHeader, list[tuple[str, str, Any]]]:
    """Return a state: its header, and kind, id and value of its sections."""
    call = peer.events.GetState(events_pb2.GetStateRequest(mob_id="m", **more), timeout=STARTED_S)
    header, *rest = await rest_of(call)
    assert header.WhichOneof("part") == "header"
    sections = [one for answer in rest for one in answer.sections.sections]
    return header.header, [(one.kind, one.id, json.loads(one.value_json)) for one in sections]


async def test_the_state_now_is_that_of_the_head(peer: Speaker) -> None:
    created = (await peer.create("m", "a", "b")).mob
    await peer.deliver("a", "i1", "hello")
    header, sections = await state(peer)
    assert (header.cursor, header.head, header.log_id) == (5, 5, created.log_id)
    assert [(kind, name) for kind, name, _ in sections if kind in ("mob", "member")] == [
        ("mob", "m"),
        ("member", "a"),
        ("member", "b"),
    ]
    values = {kind: value for kind, _, value in sections}
    assert values["mob"]["phase"] == "running"
    assert (values["input"]["input_id"], values["input"]["state"], values["input"]["member_id"]) == (
        "i1",
        "waiting",
        "a",
    )
    assert sections[-1] == ("requests", "m", {"count": 0})


async def test_a_state_of_the_past_is_what_was_answered_then(peer: Speaker) -> None:
    await peer.create("m", "a", "b")
    then = []
    for number in range(5):
        await peer.deliver("a", f"i{number}")
        then.append(await state(peer))
    for header, sections in then:
        past, found = await state(peer, at_cursor=header.cursor)
        assert (past.cursor, past.head) == (header.cursor, then[-1][0].head)
        assert found == sections
    header, sections = await state(peer, at_cursor=0)
    assert (header.cursor, [kind for kind, _, _ in sections]) == (0, ["mob", "requests"])


async def test_a_cursor_that_the_log_has_not_is_refused(peer: Speaker) -> None:
    async def refused(**more: Any) -> str:
        call = peer.events.GetState(events_pb2.GetStateRequest(mob_id="m", **more), timeout=TIMEOUT_S)
        return (await peer.refused(lambda _, timeout: rest_of(call), None)).reason

    assert await refused() == "MOB_NOT_FOUND"
    assert await refused(at_cursor=1) == "MOB_NOT_FOUND"
    await peer.create("m")
    assert await refused(at_cursor=100) == "CURSOR_AHEAD"
    assert await refused(log_id="another") == "LOG_CHANGED"
    assert await refused(at_cursor=1, log_id="another") == "LOG_CHANGED"


async def test_a_large_state_comes_from_the_other_process_and_is_the_same(peer: Speaker) -> None:
    names = [f"m{at:04}" for at in range(500)]
    await peer.create("m", *names)
    for at in (0, 1, 2):
        deliveries = [
            bridge_pb2.Delivery(
                member_id=name,
                input_id=f"i{at}",
                content=common_pb2.Content(blocks=[common_pb2.Block(text="x" * 500)]),
            )
            for name in names
        ]
        for begin in (0, 250):
            request = bridge_pb2.DeliverBatchRequest(mob_id="m", deliveries=deliveries[begin : begin + 250])
            await peer.bridge.DeliverBatch(request, timeout=TIMEOUT_S)
    assert 4 * len(names) > SMALL
    header, sections = await state(peer)
    assert isinstance(peer.server.rebuilder, RebuilderProcess)
    assert peer.server.rebuilder.pid is not None
    assert len([1 for kind, _, _ in sections if kind == "input"]) == 1_500
    assert (header.cursor, header.head) == (2_002, 2_002)
    assert await state(peer, at_cursor=2_002) == (header, sections)


async def test_sections_are_put_into_messages_that_any_reader_takes() -> None:
    parts = [Part("member", f"m{at}", "x" * 300_000) for at in range(10)] + [Part("mob", "large", "x" * 3_000_000)]
    made = list(messages(parts))
    assert [one.id for message in made for one in message.sections.sections] == [part.id for part in parts]
    assert [len(message.sections.sections) for message in made] == [3, 3, 3, 1, 1]
    assert max(message.ByteSize() for message in made[:-1]) <= MESSAGE_BYTES
    assert list(messages([])) == []


async def test_mobs_that_nobody_uses_leave_memory_and_answer_as_before(tmp_path: Path) -> None:
    async with speaking(settings(tmp_path, passivate_after_s=0.2, snapshot_tail=1)) as peer:
        await peer.create("m", "a")
        await peer.deliver("a", "i1")
        before = await state(peer)
        await until(lambda: not peer.server.registry.loaded, "the mob to leave memory")
        assert await state(peer) == before
        assert (await peer.deliver("a", "i1")).HasField("deduplicated")
        got = await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))
        assert got.mob.head == before[0].head
