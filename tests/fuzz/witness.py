"""A client that only wants to work: it delivers all the time, in a process of its own, while others misbehave.

python tests/fuzz/witness.py TARGET      writes a line for each delivery: when it began, how long it took, or a failure
"""

import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

import grpc

from mobd.v1 import bridge_pb2, bridge_pb2_grpc, common_pb2

MOB: Final = "witness"
MEMBERS: Final = ("w-0", "w-1")
# Later than this nobody's delivery may be answered.
LIMIT_S: Final = 5.0
PACE_S: Final = 0.005


class Delivery(NamedTuple):
    """One delivery: when it began, how long it took, and what was wrong with it."""

    began_s: float
    took_s: float
    failure: str


def deliver(target: str) -> None:
    """Deliver to two members in turn, each input in the place of the one before, until this process is ended."""
    content = common_pb2.Content(blocks=[common_pb2.Block(text="hi")])
    with grpc.insecure_channel(target) as channel:
        stub = bridge_pb2_grpc.BridgeServiceStub(channel)
        number = 0
        while True:
            number += 1
            request = bridge_pb2.DeliverRequest(
                mob_id=MOB,
                member_id=MEMBERS[number % 2],
                input_id=f"i-{number}",
                content=content,
                supersession_key="same",
                external_event=bridge_pb2.ExternalEvent(event_type="tick"),
            )
            began = time.time()
            failure = ""
            try:
                answer = stub.Deliver(request, timeout=LIMIT_S)
                if not answer.HasField("accepted"):
                    failure = str(answer)
            except grpc.RpcError as error:
                failure = str(error)
            print(began, time.time() - began, failure.replace("\n", " "), flush=True)  # noqa: T201 what it is for
            time.sleep(PACE_S)  # noqa: TID251 a client that does something else in between


def deliveries(log: Path, since_s: float, until_s: float) -> list[Delivery]:
    """Return what a witness has written of the deliveries that it began in a span of time, in seconds since 1970."""
    text = log.read_text()
    found = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        began, took, failure = line.split(" ", 2)
        if since_s <= float(began) <= until_s:
            found.append(Delivery(float(began), float(took), failure))
    return found


def p99_s(some: list[Delivery]) -> float:
    """Return how long a delivery took, at the 99th percentile."""
    return sorted(one.took_s for one in some)[int(len(some) * 0.99)]


if __name__ == "__main__":
    deliver(sys.argv[1])
