"""What every change has in common: a key, asking without doing, acting for a run, and what it answers."""

import re
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from tests.rpc.cases import METHODS, name
from tests.rpc.speaking import DEFINITION, RawAgent, Speaker

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, events_pb2, members_pb2, mobs_pb2

# Authorize and Revoke are answered without doing anything, Wire and Unwire are always refused.
READS = re.compile(r"(Get|List|Wait|Watch|Poll|Validate|Check|Observe|Attach|Authorize|Revoke|Wire|Unwire)")
MUTATIONS = [method for method in METHODS if not READS.match(method.name)]

# What is left out, and why.
WITHOUT = {
    # input_id is the key, and deduplicated is what replayed is elsewhere.
    "BridgeService.Deliver": {"request_id", "cursor", "replayed"},
    "BridgeService.DeliverBatch": {"request_id", "cursor", "replayed"},
    # Nobody acts for a run of a mob that is not there yet.
    "MobService.CreateMob": {"acting"},
    # Nothing is left in which it could be recorded: mob_id is the key.
    "MobService.DeleteMob": {"request_id", "validate_only", "acting", "replayed", "would_append"},
}
ASKED = ("request_id", "validate_only", "acting")
ANSWERED = ("cursor", "replayed", "would_append")


@pytest.mark.parametrize("method", MUTATIONS, ids=name)
def test_every_change_can_be_repeated_asked_for_and_acted(method: MethodDescriptor) -> None:
    has = {*method.input_type.fields_by_name, *method.output_type.fields_by_name}
    assert {one for one in (*ASKED, *ANSWERED) if one not in has} == WITHOUT.get(name(method), set())


def content(text: str = "hi") -> common_pb2.Content:
    return common_pb2.Content(blocks=[common_pb2.Block(text=text)])


def spec(member_id: str) -> members_pb2.MemberSpec:
    return members_pb2.MemberSpec(member_id=member_id, role="lead")


# Method -> the phase that it is tried in, and what is asked for; {run} is the run in flight of member b.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "MobService.CreateMob": (
        "running",
        {"mob_id": "new", "definition": mobs_pb2.DefinitionDocument(json=DEFINITION)},
    ),
    "MobService.StartMob": ("stopped", {}),
    "MobService.StopMob": ("running", {}),
    "MobService.ResumeMob": ("stopped", {}),
    "MobService.CompleteMob": ("running", {}),
    "MobService.ResetMob": ("running", {}),
    "MobService.DestroyMob": ("running", {}),
    "MemberService.SpawnMember": ("running", {"spec": spec("new")}),
    "MemberService.SpawnMembers": ("running", {"specs": [spec("new")]}),
    "MemberService.EnsureMember": ("running", {"spec": spec("new")}),
    "MemberService.RetireMember": ("running", {"member_id": "a"}),
    "MemberService.RespawnMember": ("running", {"member_id": "a"}),
    "MemberService.RetireAllMembers": ("running", {}),
    "BridgeService.Deliver": ("running", {"member_id": "a", "input_id": "new", "content": content()}),
    "BridgeService.DeliverBatch": (
        "running",
        {"deliveries": [bridge_pb2.Delivery(member_id="a", input_id="new", content=content())]},
    ),
    "BridgeService.Interrupt": ("running", {"member_id": "b"}),
    "BridgeService.HardCancel": ("running", {"member_id": "b", "run_id": "{run}"}),
    "BridgeService.Retire": ("running", {"member_id": "a"}),
    "BridgeService.Destroy": ("running", {"member_id": "a"}),
}
OURS = ("MobService", "MemberService", "BridgeService")
TRIED = [method for method in MUTATIONS if name(method) in CASES]


def test_every_change_of_these_services_is_tried() -> None:
    ours = {name(method) for method in MUTATIONS if method.containing_service.name in OURS}
    assert ours == {*CASES, "MobService.DeleteMob"}


class Stage:
    """A mob with a waiting input of member a and a run in flight of member b."""

    def __init__(self, peer: Speaker, method: MethodDescriptor, run: Any) -> None:
        self._peer = peer
        self._run = run
        self._method = method
        stubs = {"MobService": peer.mobs, "MemberService": peer.members, "BridgeService": peer.bridge}
        self.call: Any = getattr(stubs[method.containing_service.name], method.name)

    def request(self, **more: Any) -> Any:
        fields = {"mob_id": "m", **CASES[name(self._method)][1], **more}
        if "run_id" in fields:
            fields["run_id"] = self._run.run_id
        for module in (mobs_pb2, members_pb2, bridge_pb2):
            if hasattr(module, self._method.input_type.name):
                return getattr(module, self._method.input_type.name)(**fields)
        raise AssertionError(self._method.input_type.name)

    def acting(self, fence: int = 0) -> dict[str, Any]:
        if "acting" not in self._method.input_type.fields_by_name:
            return {}
        run = self._run
        return {"acting": common_pb2.Acting(run_id=run.run_id, executor_fence=fence or run.executor_fence)}

    async def seen(self) -> list[Any]:
        mob = await self._peer.mobs.GetMob(mobs_pb2.GetMobRequest(mob_id="m"))
        members = await self._peer.members.ListMembers(
            members_pb2.ListMembersRequest(mob_id="m", include_retiring=True)
        )
        inputs = await self._peer.bridge.ListInputs(bridge_pb2.ListInputsRequest(mob_id="m"))
        return [mob, members, inputs]


async def stage(peer: Speaker, agent: RawAgent, method: MethodDescriptor) -> Stage:
    await peer.deliver("a", "waits")
    await peer.deliver("b", "runs")
    run = await agent.accept_run()
    if CASES[name(method)][0] == "stopped":
        await peer.mobs.StopMob(mobs_pb2.StopMobRequest(mob_id="m"))
    return Stage(peer, method, run)


def served(peer: Speaker) -> RawAgent:
    return RawAgent(peer, serves=[agents_pb2.Serve(member_id="b")])


@pytest.mark.asyncio
@pytest.mark.parametrize("method", TRIED, ids=name)
async def test_who_only_asks_learns_what_would_be_appended_and_leaves_no_trace(
    peer: Speaker, method: MethodDescriptor
) -> None:
    await peer.create("m", "a", "b")
    async with served(peer) as agent:
        on = await stage(peer, agent, method)
        before = await on.seen()
        key = {"request_id": "r"} if "request_id" in method.input_type.fields_by_name else {}
        asked = await on.call(on.request(validate_only=True, **key))
        assert await on.seen() == before
        head = before[0].mob.head if name(method) != "MobService.CreateMob" else 0
        assert [event.seq for event in asked.would_append] == [head + 1 + at for at in range(len(asked.would_append))]
        # The same key may then be used for the change itself, which does what was said.
        done = await on.call(on.request(**key))
        assert not done.would_append
        mob_id = "new" if name(method) == "MobService.CreateMob" else "m"
        log = await peer.events.PollEvents(
            events_pb2.PollEventsRequest(mob_id=mob_id, start=events_pb2.EventStart(after_cursor=head))
        )
        kinds = [event.kind for event in asked.would_append]
        assert kinds
        assert [event.kind for event in log.events][: len(kinds)] == kinds


@pytest.mark.asyncio
@pytest.mark.parametrize("method", TRIED, ids=name)
async def test_who_acts_for_a_run_that_is_not_in_flight_is_refused(peer: Speaker, method: MethodDescriptor) -> None:
    await peer.create("m", "a", "b")
    async with served(peer) as agent:
        on = await stage(peer, agent, method)
        if not on.acting():
            return
        before = await on.seen()
        for acting in (on.acting(fence=999), {"acting": common_pb2.Acting(run_id="run-x", executor_fence=1)}):
            refused = await peer.refused(on.call, on.request(**acting))
            assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_FENCE")
        assert await on.seen() == before
        await on.call(on.request(**on.acting()))


@pytest.mark.asyncio
async def test_an_agent_that_repeats_its_request_in_another_attempt_gets_the_stored_answer(peer: Speaker) -> None:
    await peer.create("m", "b")
    async with served(peer) as agent:
        await peer.deliver("b", "i")
        answers = []
        for _ in range(2):
            run = await agent.accept_run()
            acting = common_pb2.Acting(run_id=run.run_id, executor_fence=run.executor_fence)
            request = members_pb2.SpawnMemberRequest(mob_id="m", spec=spec("c"), request_id="r", acting=acting)
            answers.append(await peer.members.SpawnMember(request))
            await agent.fail(run, retryable=True)
    assert [answer.replayed for answer in answers] == [False, True]
    assert answers[0].member == answers[1].member
    # Its operation belongs to the member whose agent spawned it.
    assert answers[0].member.operation_id


@pytest.mark.asyncio
async def test_a_mob_that_exists_would_not_be_created(peer: Speaker) -> None:
    await peer.create("m")
    definition = mobs_pb2.DefinitionDocument(json=DEFINITION)
    request = mobs_pb2.CreateMobRequest(mob_id="m", definition=definition, validate_only=True)
    refused = await peer.refused(peer.mobs.CreateMob, request)
    assert refused.reason == "MOB_EXISTS"
    request = mobs_pb2.CreateMobRequest(mob_id="n", definition=definition, validate_only=True)
    asked = await peer.mobs.CreateMob(request)
    assert [event.kind for event in asked.would_append] == ["mob_created", "mob_started"]
    assert asked.mob.phase == mobs_pb2.MOB_PHASE_RUNNING
    refused = await peer.refused(peer.mobs.GetMob, mobs_pb2.GetMobRequest(mob_id="n"))
    assert refused.reason == "MOB_NOT_FOUND"


@pytest.mark.asyncio
async def test_what_would_be_appended_is_cut_before_an_answer_grows_too_long(peer: Speaker) -> None:
    await peer.create("m", "a")
    deliveries = [
        bridge_pb2.Delivery(member_id="a", input_id=f"i{number}", content=content("x" * 100_000))
        for number in range(20)
    ]
    asked = await peer.bridge.DeliverBatch(
        bridge_pb2.DeliverBatchRequest(mob_id="m", deliveries=deliveries, validate_only=True)
    )
    assert [one.WhichOneof("outcome") for one in asked.outcomes] == ["accepted"] * 20
    assert len(asked.would_append) == 5
