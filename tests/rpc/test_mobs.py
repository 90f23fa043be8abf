"""MobService: the life of a mob, repeated requests, definitions, lists."""

import asyncio
from typing import Any

import grpc
import pytest
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import DEFINITION, Speaker

from mobd.v1 import mobs_pb2

pytestmark = pytest.mark.asyncio

PHASES = {
    "creating": mobs_pb2.MOB_PHASE_CREATING,
    "running": mobs_pb2.MOB_PHASE_RUNNING,
    "stopped": mobs_pb2.MOB_PHASE_STOPPED,
    "destroyed": mobs_pb2.MOB_PHASE_DESTROYED,
}
REQUESTS = {
    "start": ("StartMob", mobs_pb2.StartMobRequest),
    "stop": ("StopMob", mobs_pb2.StopMobRequest),
    "resume": ("ResumeMob", mobs_pb2.ResumeMobRequest),
    "destroy": ("DestroyMob", mobs_pb2.DestroyMobRequest),
}


async def bring(peer: Speaker, phase: str) -> None:
    """Create a mob in a phase."""
    await peer.create(start=phase != "creating")
    if phase == "stopped":
        await peer.mobs.StopMob(mobs_pb2.StopMobRequest(mob_id="m"))
    if phase == "destroyed":
        await peer.mobs.DestroyMob(mobs_pb2.DestroyMobRequest(mob_id="m"))


def command(peer: Speaker, name: str) -> tuple[Any, Any]:
    method, request = REQUESTS[name]
    return getattr(peer.mobs, method), request(mob_id="m")


@pytest.mark.parametrize(
    ("phase", "name", "after"),
    [
        ("creating", "start", "running"),
        ("stopped", "start", "running"),
        ("running", "stop", "stopped"),
        ("stopped", "resume", "running"),
        ("creating", "destroy", "destroyed"),
        ("running", "destroy", "destroyed"),
        ("stopped", "destroy", "destroyed"),
        ("destroyed", "destroy", "destroyed"),
    ],
)
async def test_a_legal_command_moves_the_mob(peer: Speaker, phase: str, name: str, after: str) -> None:
    await bring(peer, phase)
    method, request = command(peer, name)
    answer = await method(request)
    assert answer.mob.phase == PHASES[after]
    assert answer.cursor == answer.mob.head
    got = (await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob
    assert got == answer.mob


@pytest.mark.parametrize(
    ("phase", "name", "to", "allowed"),
    [
        ("running", "start", "running", "creating,stopped"),
        ("destroyed", "start", "running", "creating,stopped"),
        ("creating", "stop", "stopped", "running"),
        ("stopped", "stop", "stopped", "running"),
        ("destroyed", "stop", "stopped", "running"),
        ("creating", "resume", "running", "stopped"),
        ("running", "resume", "running", "stopped"),
        ("destroyed", "resume", "running", "stopped"),
    ],
)
async def test_an_illegal_command_says_from_where_to_where_and_what_is_legal(
    peer: Speaker, phase: str, name: str, to: str, allowed: str
) -> None:
    await bring(peer, phase)
    before = (await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob
    refused = await peer.refused(*command(peer, name))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "INVALID_TRANSITION")
    assert refused.details == {"from": phase, "to": to, "allowed": allowed}
    assert (await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))).mob == before


async def test_a_mob_is_created_with_what_its_definition_and_its_request_say(peer: Speaker) -> None:
    definition = mobs_pb2.DefinitionDocument(yaml="labels: {a: '1', b: '2'}\nprofiles: {lead: {}}")
    answer = await peer.mobs.CreateMob(
        mobs_pb2.CreateMobRequest(mob_id="m", definition=definition, labels={"b": "3", "c": "4"})
    )
    assert dict(answer.mob.labels) == {"a": "1", "b": "3", "c": "4"}
    assert answer.mob.phase == mobs_pb2.MOB_PHASE_RUNNING
    assert answer.mob.definition_json == '{"labels":{"a":"1","b":"2"},"profiles":{"lead":{"role":"lead"}}}'
    assert [(one.code, one.severity) for one in answer.diagnostics] == [
        ("empty_instructions", mobs_pb2.SEVERITY_WARNING)
    ]
    assert answer.mob.log_id


async def test_a_definition_with_errors_names_each(peer: Speaker) -> None:
    document = mobs_pb2.DefinitionDocument(json='{"extra": 1, "profiles": {"a b": {}, "c": {"role": "d"}}}')
    refused = await peer.refused(peer.mobs.CreateMob, mobs_pb2.CreateMobRequest(mob_id="m", definition=document))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DEFINITION_INVALID")
    assert list(refused.fields) == ['profiles["a b"]', "extra"]
    answer = await peer.mobs.ValidateDefinition(mobs_pb2.ValidateDefinitionRequest(definition=document))
    assert [one.location for one in answer.diagnostics] == list(refused.fields)
    assert not answer.definition_json


async def test_validation_returns_what_would_be_stored(peer: Speaker) -> None:
    document = mobs_pb2.DefinitionDocument(toml='[profiles.lead]\ninstructions = "x"')
    answer = await peer.mobs.ValidateDefinition(mobs_pb2.ValidateDefinitionRequest(definition=document))
    assert answer.definition_json == '{"profiles":{"lead":{"role":"lead","instructions":"x"}}}'
    assert not answer.diagnostics


async def test_labels_are_bounded_together_with_those_of_the_definition(peer: Speaker) -> None:
    labels = ", ".join(f'"d{i}": "x"' for i in range(20))
    document = mobs_pb2.DefinitionDocument(json=f'{{"labels": {{{labels}}}, "profiles": {{"a": {{}}}}}}')
    refused = await peer.refused(
        peer.mobs.CreateMob,
        mobs_pb2.CreateMobRequest(mob_id="m", definition=document, labels={f"r{i}": "x" for i in range(20)}),
    )
    assert (refused.reason, list(refused.fields)) == ("FIELD_INVALID", ["labels"])


async def test_a_name_is_taken_once(peer: Speaker) -> None:
    await peer.create()
    definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
    refused = await peer.refused(peer.mobs.CreateMob, mobs_pb2.CreateMobRequest(mob_id="m", definition=definition))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "MOB_EXISTS")


async def test_of_many_who_create_a_mob_one_does(peer: Speaker) -> None:
    request = mobs_pb2.CreateMobRequest(mob_id="m", definition=mobs_pb2.DefinitionDocument(json=DEFINITION))
    answers = await asyncio.gather(*(peer.mobs.CreateMob(request) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, mobs_pb2.CreateMobResponse) for answer in answers) == 1


@pytest.mark.parametrize("name", ["start", "stop", "resume", "destroy", "get"])
async def test_an_unknown_mob_is_not_found(peer: Speaker, name: str) -> None:
    if name == "get":
        refused = await peer.refused(peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id="m"))
    else:
        refused = await peer.refused(*command(peer, name))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "MOB_NOT_FOUND")
    assert refused.details == {"mob_id": "m"}


async def test_a_repeated_request_gets_the_stored_answer_also_after_a_restart(tmp_path: Any) -> None:
    definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
    create = mobs_pb2.CreateMobRequest(mob_id="m", definition=definition, request_id="r1")
    stop = mobs_pb2.StopMobRequest(mob_id="m", request_id="r2")
    async with speaking(settings(tmp_path)) as peer:
        created = await peer.mobs.CreateMob(create)
        stopped = await peer.mobs.StopMob(stop)
        await peer.mobs.ResumeMob(mobs_pb2.ResumeMobRequest(mob_id="m"))
        assert not created.replayed
    async with speaking(settings(tmp_path)) as peer:
        for again, first in ((await peer.mobs.CreateMob(create), created), (await peer.mobs.StopMob(stop), stopped)):
            assert again.replayed
            again.replayed = False
            assert again == first
        # It was replayed, not done: the mob runs on.
        got = await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))
        assert got.mob.phase == mobs_pb2.MOB_PHASE_RUNNING


async def test_a_request_id_is_good_for_one_content(peer: Speaker) -> None:
    await peer.create(request_id="r")
    refused = await peer.refused(peer.mobs.StopMob, mobs_pb2.StopMobRequest(mob_id="m", request_id="r"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_CONFLICT")


async def test_a_refusal_is_decided_anew(peer: Speaker) -> None:
    await peer.create(start=False)
    stop = mobs_pb2.StopMobRequest(mob_id="m", request_id="r")
    assert (await peer.refused(peer.mobs.StopMob, stop)).reason == "INVALID_TRANSITION"
    await peer.mobs.StartMob(mobs_pb2.StartMobRequest(mob_id="m"))
    assert not (await peer.mobs.StopMob(stop)).replayed


async def test_a_duplicate_in_flight_joins_the_first(peer: Speaker) -> None:
    await peer.create()
    stop = mobs_pb2.StopMobRequest(mob_id="m", request_id="r")
    answers = await asyncio.gather(*(peer.mobs.StopMob(stop) for _ in range(10)))
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 9
    assert len({answer.cursor for answer in answers}) == 1


async def test_a_destruction_reports_what_it_did_and_says_so_again(peer: Speaker) -> None:
    await peer.create("m", *(f"a{i:04}" for i in range(700)))
    for number in range(3):
        await peer.deliver("a0001", f"i{number}")
    request = mobs_pb2.DestroyMobRequest(mob_id="m")
    # In slices, while others ask for the same.
    answers = await asyncio.gather(*(peer.mobs.DestroyMob(request) for _ in range(3)))
    for answer in answers:
        assert (answer.report.members, answer.report.inputs_abandoned, len(answer.report.outcomes)) == (700, 3, 700)
        assert [one.member_id for one in answer.report.outcomes if one.inputs_abandoned] == ["a0001"]
    # Who comes when it is over is told so; who began it is not.
    assert not all(answer.already for answer in answers)
    again = await peer.mobs.DestroyMob(request)
    assert again.already
    assert again.report == answers[0].report
    got = await peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))
    assert (got.mob.phase, got.mob.members.destroyed) == (mobs_pb2.MOB_PHASE_DESTROYED, 700)


async def test_a_repeated_destruction_gets_the_same_report(peer: Speaker) -> None:
    await peer.create("m", *(f"a{i:04}" for i in range(600)))
    request = mobs_pb2.DestroyMobRequest(mob_id="m", request_id="r")
    first, second = await peer.mobs.DestroyMob(request), await peer.mobs.DestroyMob(request)
    assert (first.replayed, second.replayed) == (False, True)
    assert second.report == first.report
    assert second.cursor == first.cursor == first.mob.head


async def test_mobs_are_listed_by_pages_and_filters(peer: Speaker) -> None:
    for number in range(5):
        await peer.create(f"m{number}", labels={"parity": str(number % 2)}, start=number != 3)

    async def page(token: str = "", **more: Any) -> tuple[list[str], str]:
        request = mobs_pb2.ListMobsRequest(page_size=2, page_token=token, **more)
        answer = await peer.mobs.ListMobs(request)
        return [mob.mob_id for mob in answer.mobs], answer.next_page_token

    first, token = await page()
    second, token = await page(token)
    third, end = await page(token)
    assert (first, second, third, end) == (["m0", "m1"], ["m2", "m3"], ["m4"], "")
    odd, token = await page(labels={"parity": "1"})
    assert odd == ["m1", "m3"]
    creating, _ = await page(phase=mobs_pb2.MOB_PHASE_CREATING)
    assert creating == ["m3"]


async def test_a_page_token_of_another_question_is_refused(peer: Speaker) -> None:
    for number in range(3):
        await peer.create(f"m{number}")
    token = (await peer.mobs.ListMobs(mobs_pb2.ListMobsRequest(page_size=1))).next_page_token
    for request in (
        mobs_pb2.ListMobsRequest(page_size=1, page_token=token, labels={"a": "b"}),
        mobs_pb2.ListMobsRequest(page_token="nonsense"),
        mobs_pb2.ListMobsRequest(page_token="é"),
        mobs_pb2.ListMobsRequest(page_token=token[:-1]),
    ):
        refused = await peer.refused(peer.mobs.ListMobs, request)
        assert (refused.reason, list(refused.fields)) == ("FIELD_INVALID", ["page_token"])
    # The size of the page is no part of the question.
    assert len((await peer.mobs.ListMobs(mobs_pb2.ListMobsRequest(page_size=5, page_token=token))).mobs) == 2
