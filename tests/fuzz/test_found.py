"""What the fuzzer found, each in its shortest form: requests that were answered as if the server had failed."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import RawAgent, Speaker

from mobd.v1 import agents_pb2, bridge_pb2, common_pb2, mobs_pb2, operations_pb2, operations_pb2_grpc
from mobd_server import errors
from mobd_server.adapters.rpc.status import STATUS
from mobd_server.services.definitions import check
from mobd_server.services.documents import MAX_YAML_VALUES

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def peer(tmp_path: Path, store_url: str | None) -> AsyncIterator[Speaker]:
    """A server on each store."""
    async with speaking(settings(tmp_path, database_url=store_url)) as speaker:
        yield speaker


def forged(token: str, after: bytes) -> str:
    """Return a token with what the server made of the question, and another place than it gave."""
    digest = urlsafe_b64decode(token + "=" * (-len(token) % 4))[:8]
    return urlsafe_b64encode(digest + after).decode().rstrip("=")


async def test_nothing_ended_behind_a_number_that_the_store_has_not(peer: Speaker) -> None:
    await peer.create("m", "a")
    operations: Any = operations_pb2_grpc.OperationServiceStub(peer.channel)
    for after in (1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        request = operations_pb2.ListCompletionsRequest(mob_id="m", after_seq=after)
        assert await operations.ListCompletions(request) == operations_pb2.ListCompletionsResponse(watermark=0)


@pytest.mark.parametrize("after", [b"\0", b"b\0"])
async def test_a_page_token_that_somebody_put_a_zero_into_is_refused(peer: Speaker, after: bytes) -> None:
    for mob_id in ("a", "b", "c"):
        await peer.create(mob_id)
    token = (await peer.mobs.ListMobs(mobs_pb2.ListMobsRequest(page_size=1))).next_page_token
    assert [mob.mob_id for mob in (await _mobs(peer, forged(token, b"b"))).mobs] == ["c"]
    refused = await peer.refused(peer.mobs.ListMobs, mobs_pb2.ListMobsRequest(page_token=forged(token, after)))
    assert (refused.reason, list(refused.fields)) == ("FIELD_INVALID", ["page_token"])


async def _mobs(peer: Speaker, token: str) -> mobs_pb2.ListMobsResponse:
    answer: mobs_pb2.ListMobsResponse = await peer.mobs.ListMobs(mobs_pb2.ListMobsRequest(page_token=token))
    return answer


@pytest.mark.parametrize("after", [b"x", b"1e3", b"1.0", b"\xc2\xb2", b" "])
async def test_a_page_token_of_agents_that_holds_no_number_is_refused(peer: Speaker, after: bytes) -> None:
    await peer.create("m")
    async with RawAgent(peer, host_id="one"), RawAgent(peer, host_id="two"):
        request = agents_pb2.ListAgentsRequest(mob_id="m", page_size=1)
        token = (await peer.agents.ListAgents(request)).next_page_token
        refused = await peer.refused(
            peer.agents.ListAgents, agents_pb2.ListAgentsRequest(mob_id="m", page_token=forged(token, after))
        )
    assert (refused.reason, list(refused.fields)) == ("FIELD_INVALID", ["page_token"])


async def test_every_error_of_the_server_has_a_reason_of_the_catalogue() -> None:
    catalogue = {kind.reason for kind in STATUS}
    kinds = [errors.MobdError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert [kind for kind in kinds if kind.reason not in catalogue] == []


async def test_yaml_of_more_values_than_can_be_built_beside_other_work_is_refused() -> None:
    (found,) = check("yaml", "- x\n" * 100_000).diagnostics
    assert (found.code, found.location) == ("too_large", f"line {MAX_YAML_VALUES}, column 3")
    assert check("yaml", "- x\n" * (MAX_YAML_VALUES - 1)).diagnostics[0].code == "wrong_type"
    # A long text is one value.
    assert check("yaml", f"profiles: {{a: {{instructions: {'x' * 1_000_000}}}}}").definition is not None


async def test_a_json_block_without_json_is_refused_and_does_not_spoil_the_log(peer: Speaker) -> None:
    await peer.create("m", "a")
    content = common_pb2.Content(blocks=[common_pb2.Block(value_json="")])
    request = bridge_pb2.DeliverRequest(mob_id="m", member_id="a", input_id="i", content=content)
    refused = await peer.refused(peer.bridge.Deliver, request)
    assert (refused.reason, list(refused.fields)) == ("FIELD_INVALID", ["content.blocks[0].value_json"])
    assert (await peer.deliver("a", "i")).HasField("accepted")
    listed = await peer.bridge.ListInputs(bridge_pb2.ListInputsRequest(mob_id="m"))
    assert [one.input_id for one in listed.inputs] == ["i"]
