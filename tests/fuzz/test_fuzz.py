"""Random requests over every method and stream, against a server of its own on each store; `make fuzz` makes more."""

import secrets
from pathlib import Path
from random import Random

import pytest
from google.protobuf import struct_pb2, type_pb2, wrappers_pb2
from google.protobuf.descriptor import Descriptor
from tests.fuzz.attaching import AttachCase
from tests.fuzz.calls import METHODS, case_from
from tests.fuzz.generating import Generator
from tests.fuzz.judging import Code, Outcome, complaints, exists
from tests.fuzz.session import SETTINGS, Run, case_of
from tests.fuzz.shrinking import smaller
from tests.fuzz.wire import Broken, join, split, spoil
from tests.fuzz.words import Words
from tests.support.processes import say
from tests.support.served import Served
from tests.support.settings import setting

from mobd.v1 import bridge_pb2, members_pb2
from mobd_server.adapters.rpc import status
from mobd_server.adapters.rpc.validate import checker
from mobd_server.errors import FieldInvalid, MobNotFound, Violation

CALLS = 500


@pytest.mark.asyncio
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", ["always", "anew"])
async def test_random_requests_are_answered_as_the_protocol_says(
    tmp_path: Path, store_url: str | None, seed: str
) -> None:
    if seed == "anew":
        seed = setting("MOBD_TEST_SEED") or secrets.token_hex(4)
    say(f"seed {seed}: make fuzz FROM={seed} REQUESTS={CALLS} makes the same calls")
    async with Served(tmp_path, store_url, SETTINGS) as served:
        report = await Run(served, seed).play(0, CALLS)
    say(report.summary())
    assert report.wrong == []


def test_the_same_seed_makes_the_same_calls() -> None:
    def made() -> list[str]:
        cases = [case_of(Random(f"seed/{number}"), Words()) for number in range(300)]
        return [case.line() for case in cases if not isinstance(case, AttachCase)]

    assert made() == made()
    assert [case_from(line).line() for line in made()] == made()


@pytest.mark.parametrize("name", METHODS)
def test_careful_requests_of_each_method_pass_the_door(name: str) -> None:
    descriptor = METHODS[name].input_type
    check = checker(descriptor)
    generator = Generator(Random(name), Words())
    passed = sum(check(generator.careful(descriptor)) is None for _ in range(40))
    # What several items may hold together, no rule beside a field says; and some documents are wrong on purpose.
    assert passed >= 30


@pytest.mark.parametrize(
    "descriptor",
    [struct_pb2.Struct.DESCRIPTOR, type_pb2.Type.DESCRIPTOR, wrappers_pb2.DoubleValue.DESCRIPTOR],
    ids=lambda one: one.name,
)
def test_every_kind_of_field_is_filled(descriptor: Descriptor) -> None:
    generator = Generator(Random("kinds"), Words())
    made = [generator.message(descriptor) for _ in range(100)]
    filled = {field.name for message in made for field, _ in message.ListFields()}
    assert filled == set(descriptor.fields_by_name)


def test_what_is_spoilt_differs_and_is_put_together_again() -> None:
    rng = Random("wire")
    raw = Generator(rng, Words()).careful(METHODS["MemberService/SpawnMember"].input_type).SerializeToString()
    assert join(split(raw)) == raw
    assert len({spoil(rng, raw) for _ in range(200)}) > 100
    assert all(len(one) < len(raw) for one in smaller(raw))
    with pytest.raises(Broken):
        split(raw[:-1])


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("mob_id", True),
        ("specs", True),
        ("specs[12].member_id", True),
        ('specs[0].labels["a.b[0]\\""]', True),
        ("specs[0].initial_message.blocks[1].block", True),
        ("specs[0].initial_message.blocks[1].image.data", True),
        ("acting.run_id", True),
        ("", False),
        ("nothing", False),
        ("mob_id.nothing", False),
        ("mob_id[0]", False),
        ("specs[x]", False),
        ("specs..member_id", False),
        ('specs["a"].member_id', False),
    ],
)
def test_paths_lead_to_fields(path: str, there: bool) -> None:
    assert exists(members_pb2.SpawnMembersRequest.DESCRIPTOR, path) is there


def refused(error: Exception, code: Code) -> Outcome:
    assert isinstance(error, MobNotFound | FieldInvalid)
    return Outcome(code, error.message, status.details_of(error))


def test_outcomes_that_must_not_be_are_complained_about() -> None:
    method = METHODS["BridgeService/Deliver"]
    raw = [bridge_pb2.DeliverRequest(mob_id="m").SerializeToString()]
    gone, here = MobNotFound("gone"), FieldInvalid([Violation("mob_id", "bad", "BAD_FORMAT")])
    nowhere = FieldInvalid([Violation("mob", "bad", "BAD_FORMAT")])
    answer = bridge_pb2.DeliverResponse().SerializeToString()
    good = [
        Outcome(Code.OK, answers=[answer]),
        refused(gone, Code.NOT_FOUND),
        refused(here, Code.INVALID_ARGUMENT),
        Outcome(Code.DEADLINE_EXCEEDED, impatient=True),
    ]
    bad = [
        Outcome(Code.OK),
        Outcome(Code.OK, answers=[b"\xff"]),
        Outcome(Code.OK, answers=[answer + b"\x3a\x80\x80\x80\x02" + bytes(4 << 20)]),
        Outcome(Code.DEADLINE_EXCEEDED),
        Outcome(Code.UNKNOWN, "Unexpected <class 'KeyError'>"),
        Outcome(Code.INTERNAL, "internal", status.details_of(gone)),
        Outcome(Code.NOT_FOUND, "gone"),
        Outcome(Code.RESOURCE_EXHAUSTED, "full"),
        refused(gone, Code.UNAVAILABLE),
        refused(nowhere, Code.INVALID_ARGUMENT),
    ]
    assert [list(complaints(method, raw, one)) for one in good] == [[]] * len(good)
    assert all(list(complaints(method, raw, one)) for one in bad)
    assert list(complaints(method, [b"\xff"], good[0])) == ["OK for bytes that are no message"]
