"""The rules beside the fields: all of them are there, and each is enforced."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from tests.rpc.cases import METHODS, breakages, name, valid

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, mobs_pb2, validate_pb2
from mobd_server.adapters.rpc.validate import MAX_CONTENT_BYTES, MAX_VIOLATIONS, checker, rules_of

KEYWORDS = {
    "python": "False None True and as assert async await break class continue def del elif else except finally for"
    " from global if import in is lambda match case nonlocal not or pass raise return try type while with yield self",
    "go": "break case chan const continue default defer else fallthrough for func go goto if import interface map"
    " package range return select struct switch type var",
    "typescript": "any as boolean break case catch class const constructor continue debugger declare default delete do"
    " else enum export extends false finally for from function get if implements import in instanceof interface let"
    " module new null number of package private protected public require return set static string super switch symbol"
    " this throw true try type typeof var void while with yield",
    "java": "abstract assert boolean break byte case catch char class const continue default do double else enum"
    " extends final finally float for goto if implements import instanceof int interface long native new package"
    " private protected public return short static strictfp super switch synchronized this throw throws transient try"
    " void volatile while true false null",
}


def reachable(descriptor: Descriptor, seen: dict[str, Descriptor]) -> dict[str, Descriptor]:
    """Every message of ours that one message can hold, itself included."""
    if descriptor.full_name not in seen and descriptor.file.package == "mobd.v1":
        if not descriptor.GetOptions().map_entry:
            seen[descriptor.full_name] = descriptor
        for field in descriptor.fields:
            if field.message_type is not None:
                reachable(field.message_type, seen)
    return seen


def request_fields() -> Iterator[FieldDescriptor]:
    seen: dict[str, Descriptor] = {}
    for method in METHODS:
        reachable(method.input_type, seen)
    return (field for message in seen.values() for field in message.fields)


def test_every_field_of_every_request_has_rules() -> None:
    missing = [field.full_name for field in request_fields() if rules_of(field) in (None, validate_pb2.FieldRules())]
    assert not missing, "a field without limits needs {any: true}"


# Oneofs that mean something when no arm is set.
OPEN_CHOICES = ["mobd.v1.DeliverRequest.form", "mobd.v1.Delivery.form"]


def test_every_choice_of_a_request_must_be_made() -> None:
    seen: dict[str, Descriptor] = {}
    for method in METHODS:
        reachable(method.input_type, seen)
    open_choices = [
        oneof.full_name
        for message in seen.values()
        for oneof in message.oneofs
        if len(oneof.fields) > 1 and not oneof.GetOptions().Extensions[validate_pb2.choice_required]
    ]
    assert sorted(open_choices) == OPEN_CHOICES


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_a_request_that_satisfies_every_rule_passes(method: MethodDescriptor) -> None:
    assert checker(method.input_type)(valid(method.input_type)) is None


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_every_broken_rule_is_found_and_named(method: MethodDescriptor) -> None:
    check = checker(method.input_type)
    for breakage in breakages(method.input_type):
        message = valid(method.input_type)
        breakage.do(message)
        found = check(message)
        assert found, f"{breakage.path}: {breakage.what} passed"
        assert [violation.field for violation in found] == [breakage.path], breakage.what
        assert found[0].description.startswith(("must ", "its key must ")), found[0].description


def test_no_field_is_a_keyword() -> None:
    keywords = {word for words in KEYWORDS.values() for word in words.split()}
    seen: dict[str, Descriptor] = {}
    for method in METHODS:
        reachable(method.input_type, seen)
        reachable(method.output_type, seen)
    fields = [field for message in seen.values() for field in message.fields]
    assert not [field.full_name for field in fields if {field.name, field.camelcase_name} & keywords]


def test_mob_id_is_the_first_field_of_every_request_of_a_mob() -> None:
    without = {"ListMobs", "ValidateDefinition", "GetServerInfo", "Attach"}
    for method in METHODS:
        if method.name not in without:
            assert method.input_type.fields_by_name["mob_id"].number == 1
    assert agents_pb2.Hello.DESCRIPTOR.fields_by_name["mob_id"].number == 1


def test_content_is_bounded_as_a_whole() -> None:
    half = "é" * (MAX_CONTENT_BYTES // 4)
    content = common_pb2.Content(blocks=[common_pb2.Block(text=half)] * 2)
    check = checker(common_pb2.Content.DESCRIPTOR)
    assert check(content) is None
    content.blocks.add(value_json="1")
    found = check(content)
    assert found
    assert (found[0].field, found[0].code) == ("blocks", "TOO_LONG")


def test_specs_are_bounded_as_a_whole() -> None:
    request = valid(next(method for method in METHODS if method.name == "SpawnMembers").input_type)
    for _ in range(100):
        request.specs.add(member_id="a", role="a", context_json='"' + "x" * 60_000 + '"')  # type: ignore[attr-defined]  # one of two messages
    found = checker(request.DESCRIPTOR)(request)
    assert found
    assert (found[0].field, found[0].code) == ("specs", "TOO_LONG")


def test_every_broken_item_is_named_up_to_a_bound() -> None:
    request = bridge_pb2.DeliverBatchRequest(mob_id="m")
    for number in range(256):
        request.deliveries.add(member_id="-", input_id="i", content={"blocks": [{"text": str(number)}]})
    found = checker(request.DESCRIPTOR)(request)
    assert found
    assert [violation.field for violation in found] == [f"deliveries[{i}].member_id" for i in range(MAX_VIOLATIONS)]


def test_all_that_is_wrong_is_said_at_once() -> None:
    request = mobs_pb2.CreateMobRequest(mob_id="__flow_1", labels={"k": "\0"}, request_id="a b")
    found = checker(request.DESCRIPTOR)(request)
    assert found
    assert {violation.field for violation in found} == {"mob_id", 'labels["k"]', "request_id", "definition"}


@pytest.mark.parametrize(
    "text", ["[" * 128 + "]" * 128, '"' + "[" * 1000 + '\\""', "1" * 4000, '"\\ud83d\\ude00"', " 1 "]
)
def test_unusual_json_passes(text: str) -> None:
    assert checker(common_pb2.Block.DESCRIPTOR)(common_pb2.Block(value_json=text)) is None
