"""What goes out is what came in."""

import msgspec
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from mobd.v1 import common_pb2, events_pb2, runs_pb2
from mobd_server.adapters.rpc import convert, convert_events, events
from mobd_server.machines import events as e
from mobd_server.machines.records import Record
from mobd_server.machines.state import Definition, Profile, Serve, Stamp, Usage

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
BLOCKS = st.lists(
    st.builds(lambda text: common_pb2.Block(text=text), TEXT)
    | st.builds(lambda value: common_pb2.Block(value_json=msgspec.json.encode(value).decode()), JSON)
    | st.builds(
        lambda kind, data: common_pb2.Block(image=common_pb2.Image(media_type=kind, data=data)), TEXT, st.binary()
    ),
    min_size=1,
    max_size=4,
)


@given(BLOCKS)
def test_content_survives_the_way_in_and_out(blocks: list[common_pb2.Block]) -> None:
    content = common_pb2.Content(blocks=blocks)
    assert convert.content_to(convert.content_from(content)) == content


@pytest.mark.parametrize(
    "text", ["1.0", "1e2", '{"b": 1,  "a":2, "a":3}', '"\\u0000\\ud83d\\ude00"', "12345678901234567890123"]
)
def test_json_stays_as_it_was_written(text: str) -> None:
    content = common_pb2.Content(blocks=[common_pb2.Block(value_json=f" {text}\n")])
    assert convert.content_to(convert.content_from(content)).blocks[0].value_json == text


def test_content_is_json_that_sql_can_read() -> None:
    content = common_pb2.Content(
        blocks=[
            common_pb2.Block(text='é"\u2028'),
            common_pb2.Block(value_json='{"a": [1]}'),
            common_pb2.Block(image=common_pb2.Image(media_type="image/png", data=b"\0abc")),
        ]
    )
    assert msgspec.json.decode(convert.content_from(content)) == [
        {"text": 'é"\u2028'},
        {"json": {"a": [1]}},
        {"image": {"media_type": "image/png", "data": "AGFiYw=="}},
    ]


@given(st.integers(1, 253_402_300_799_999_999))
def test_a_time_survives_the_way_out_and_in(at: int) -> None:
    time = convert.time_to(at)
    assert time is not None
    assert convert.time_from(time) == at


def test_a_time_between_microseconds_is_not_earlier_than_meant() -> None:
    assert convert.time_from(Timestamp(seconds=1, nanos=1)) == 1_000_001


EVENTS: list[e.Event] = [
    e.MobCreated(Definition(id="d", profiles={"lead": Profile("lead", "merge")}), "log-1", {"k": "v"}),
    e.MobStarted(),
    e.MobStopped(),
    e.MobResumed(),
    e.MobDestroying(),
    e.MobDestroyed(2, 3),
    e.MobCompleting(),
    e.MobCompleted(),
    e.MobResetting(),
    e.MobCleanupBegun(),
    e.MobCleanupFinished(),
    e.RetireAllBegun(),
    e.RetireAllFinished(),
    e.MemberSpawned("a", "lead", 0, 1, "ses-1", "op-1", "b", {"k": "v"}, Raw(b'{"x":1}'), "in-0"),
    e.MemberRespawned("a", 1, 2, "ses-2", "op-2", "b", "in-0", 3),
    e.RuntimeRetired("a", 0, 2),
    e.MemberRetiring("a"),
    e.MemberRetired("a", 1, ["b"]),
    e.DrainSuspended("a", 5_000_000),
    e.MemberDestroyed("a", 0),
    e.AttachmentOpened("att-1", "host", "inc", 4, 8, [Serve(role="lead"), Serve(member_id="a")], steers=True),
    e.AttachmentClosed("att-1", "detached"),
    e.ExecutorAssigned("a", "att-1", 2),
    e.ExecutorConfirmed("a", "att-1", 2),
    e.ExecutorReleased("a", "att-1", 2, "drained"),
    e.ExecutorLost("a", "att-1", 2, "grace passed"),
    e.InputAccepted(
        "a",
        "i",
        "in-1",
        Raw(b'[{"text":"hi"}]'),
        "anonymous",
        input_kind="peer_request",
        lane="steer",
        drives=False,
        stamp=Stamp("run_checkpoint"),
        supersession_key="s",
        correlation_id="c",
        about=Raw(b'{"intent":"look"}'),
        consumed=True,
    ),
    e.InputSuperseded("a", "in-1", "in-2", 2),
    e.InputCoalesced("a", "in-1", "in-2", 1),
    e.InputAbandoned("a", ["in-1"], "destroyed", [1]),
    e.RunStarted(
        "a", "run-1", "att-1", 2, ["in-1"], [1], lane="steer", stamp=Stamp("run_checkpoint"), deadline=7_000_000
    ),
    e.RunSteered("a", "run-1", ["in-2"], [1]),
    e.RunCancelRequested("a", "run-1", "ctl-1", hard=True, by="deadline", reason="too long", deadline=5_000_000),
    e.RunResent("a", "run-1", 1),
    e.RunSettled(
        "a",
        "run-1",
        "committed",
        [
            e.Outcome("in-1", "consumed", attempt=1),
            e.Outcome("in-2", "returned", attempt=1),
            e.Outcome("in-3", "consumed", attempt=1, sequence=1),
        ],
        output=Raw(b'{"errors": 3}'),
        usage=Usage(1, 2, Raw(b"{}")),
        message_count=2,
        digest="d",
        boundary="run_checkpoint",
    ),
    e.RunSettled("a", "run-1", "failed", [e.Outcome("in-1", "requeued")], error="boom", retry_at=5_000_000),
    e.RetryDue("a"),
    e.OperationRegistered("op-1", "mob_member_child", "b", "m/lead/a", "a", expect_peer_channel=True),
    e.OperationStarted("op-1"),
    e.OperationPeerReady("op-1", Raw(b'{"host_id":"h"}')),
    e.OperationProgressed("op-1", "half", 50),
    e.OperationRetiring("op-1"),
    e.OperationEnded("op-1", "failed", Raw(b"1"), is_error=True, error="boom", reason="why"),
]


OPERATION_SAYS = {
    "operation_started": {"operation_id"},
    "operation_peer_ready": {"operation_id", "peer_handle_json"},
    "operation_progressed": {"operation_id", "message", "percent"},
    "operation_retiring": {"operation_id"},
    "operation_ended": {"operation_id", "status", "result_json", "is_error", "error", "reason"},
}


# What an event's readers need not be told, or what they are told beside the payload.
UNSAID = frozenset({"member_id", "run_id", "forgets", "result_hash", "owner", "control_id"})


def record(event: e.Event, **columns: str) -> Record:
    return Record(
        seq=7,
        at=1_700_000_000_000_001,
        kind=event.kind,
        v=event.v,
        member_id=columns.get("member_id"),
        run_id=columns.get("run_id"),
        request_id=None,
        request_hash=None,
        answer=None,
        principal="anonymous",
        traceparent=None,
        payload="{}",
        event=event,
    )


def test_every_kind_of_event_is_tried_here() -> None:
    assert {type(event) for event in EVENTS} == set(e.EVENT_TYPES)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: f"{event.kind} {getattr(event, 'state', '')}")
def test_an_event_says_all_that_it_knows(event: e.Event) -> None:
    seen = events_pb2.Event.FromString(convert_events.wire(record(event, member_id="a")))
    assert (seen.seq, seen.kind, seen.member_id, seen.principal) == (7, event.kind, "a", "anonymous")
    assert seen.time.ToMicroseconds() == 1_700_000_000_000_001
    payload = seen.WhichOneof("payload")
    said = {name for name in event.__struct_fields__ if name not in UNSAID}
    # The kind of these says everything.
    assert (payload is None) == (not said)
    if payload is None:
        return
    message = getattr(seen, payload)
    unsaid = {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}
    default = {"inputs_abandoned", "reason", "generation", "error", "retry_time"}
    if payload == "operation":
        # One message for five kinds: each says what it knows and nothing else.
        default |= {"status", "message", "percent", "result_json", "is_error", "peer_handle_json"}
        assert {field.name for field, _ in message.ListFields()} == OPERATION_SAYS[event.kind]
    if isinstance(event, e.RunSettled) and event.state != "committed":
        default |= {"output_json", "usage", "receipt", "steered_receipts"}
    assert unsaid <= default


def test_a_settled_run_carries_its_proof_and_its_output() -> None:
    committed = next(one for one in EVENTS if isinstance(one, e.RunSettled) and one.state == "committed")
    settled = events_pb2.Event.FromString(convert_events.wire(record(committed))).run_settled
    assert settled.state == runs_pb2.RUN_STATE_COMMITTED
    assert settled.output_json == '{"errors": 3}'
    assert settled.usage.input_tokens == 1
    assert list(settled.receipt.contributing_input_ids) == ["in-1"]
    assert (settled.receipt.message_count, settled.receipt.conversation_digest) == (2, "d")
    assert (settled.receipt.sequence, settled.receipt.boundary) == (0, "run_checkpoint")
    # What was not taken in is no part of any proof.
    assert settled.steered_receipts == [
        runs_pb2.Receipt(sequence=1, boundary="run_checkpoint", contributing_input_ids=["in-3"])
    ]
    assert [(one.canonical_input_id, one.outcome, one.sequence) for one in settled.outcomes] == [
        ("in-1", "consumed", 0),
        ("in-2", "returned", 0),
        ("in-3", "consumed", 1),
    ]


def test_an_event_is_serialised_once() -> None:
    one = record(EVENTS[0])
    assert convert_events.wire(one) is convert_events.wire(one)


@given(st.integers(1, 1 << 29), st.binary(max_size=300))
def test_a_field_put_together_by_hand_is_what_protobuf_writes(number: int, payload: bytes) -> None:
    raw = events.field_bytes(events_pb2.EventPage.DESCRIPTOR.fields_by_name["events"].number, payload)
    assert raw == events.varint(10) + events.varint(len(payload)) + payload
    assert events.varint(number)[-1] < 0x80


def test_a_page_put_together_by_hand_is_a_page() -> None:
    records = [record(event) for event in EVENTS]
    page = events_pb2.EventPage(events=[convert_events.event_to(one) for one in records])
    (message,) = events.messages(records)
    assert events_pb2.WatchEventsResponse.FromString(message) == events_pb2.WatchEventsResponse(page=page)


def test_a_long_page_is_cut_into_messages() -> None:
    text = '[{"text":"' + "x" * 100_000 + '"}]'
    records = [record(e.InputAccepted("a", "i", f"in-{i}", Raw(text.encode()), "s")) for i in range(8)]
    messages = list(events.messages(records))
    assert [len(events_pb2.WatchEventsResponse.FromString(one).page.events) for one in messages] == [2, 2, 2, 2]
    assert all(len(one) < events.MESSAGE_BYTES for one in messages)
