"""Who a server lets in: tokens on calls, streams and agents, and the name of the caller on what it causes."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.rpc.cases import METHODS
from tests.rpc.conftest import settings, speaking
from tests.rpc.speaking import TIMEOUT_S, Refusal, Speaker, refusal_of
from tests.support.loops import ticks

import mobd
from mobd.v1 import agents_pb2, common_pb2, events_pb2, server_pb2
from mobd_server import compose
from mobd_server.adapters import tokens
from mobd_server.adapters.rpc import guests
from mobd_server.errors import TokenUnknown

pytestmark = pytest.mark.asyncio

DEFINITION = {"profiles": {"lead": {"instructions": "merge"}}}


def write(file: Path, *principals: str) -> list[str]:
    """Write a tokens file and return a token for each principal."""
    made = [tokens.mint(one) for one in principals]
    file.write_text("# who may come\n\n" + "".join(f"{one.line}\n" for one in made))
    return [one.token for one in made]


@pytest_asyncio.fixture
async def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Speaker, str, str]]:
    """A server with two callers, and their tokens."""
    monkeypatch.delenv("MOBD_TOKEN", raising=False)
    alice, bob = write(tmp_path / "tokens", "alice", "team/bob@host")
    async with speaking(settings(tmp_path, tokens_file=tmp_path / "tokens")) as speaker:
        yield speaker, alice, bob


async def ask(peer: Speaker, *authorization: str) -> server_pb2.GetServerInfoResponse | Refusal:
    metadata = tuple(("authorization", one) for one in authorization)
    try:
        answer = await peer.info.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=metadata, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
    assert isinstance(answer, server_pb2.GetServerInfoResponse)
    return answer


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_no_method_is_open_to_those_without_a_token(guarded: tuple[Speaker, str, str], method: object) -> None:
    peer, *_ = guarded
    refused = await peer.first(method, b"\xff")  # type: ignore[arg-type]  # bytes that nobody can decode: not even that is told
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert "MOBD_TOKEN" in refused.message


async def test_a_token_is_looked_for_and_nothing_else(guarded: tuple[Speaker, str, str]) -> None:
    peer, alice, _ = guarded
    for good in (f"Bearer {alice}", f"bearer  {alice}"):
        for _ in range(2):
            info = await ask(peer, good)
            assert isinstance(info, server_pb2.GetServerInfoResponse)
            assert info.auth_mode == "tokens"
    digest = (peer.server.config.tokens_file or Path()).read_text().split(":")[2].split("\n")[0]
    for bad, reason in [
        (f"Bearer {alice}x", "TOKEN_UNKNOWN"),
        (f"Bearer {digest}", "TOKEN_UNKNOWN"),
        (f"Basic {alice}", "TOKEN_MISSING"),
        (alice, "TOKEN_MISSING"),
        ("Bearer", "TOKEN_MISSING"),
        ("", "TOKEN_MISSING"),
    ]:
        refused = await ask(peer, bad)
        assert isinstance(refused, Refusal), bad
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason), bad
        assert alice not in refused.message


async def test_the_caller_is_on_every_event_and_its_requests_are_its_own(guarded: tuple[Speaker, str, str]) -> None:
    peer, alice, bob = guarded
    address = peer.server.address
    async with mobd.Client(address, token=alice) as a, mobd.Client(address, token=bob) as b:
        await a.create_mob("m", DEFINITION)
        await a.spawn("m", "x", "lead")
        first = await a.stop_mob("m", request_id="r")
        assert not first.replayed
        assert (await a.stop_mob("m", request_id="r")).replayed
        # The same name of another caller's request is another request, which is not legal any more.
        with pytest.raises(mobd.InvalidTransition):
            await b.stop_mob("m", request_id="r")
        await b.resume_mob("m")
        agent = mobd.Agent(address, mob="m", role="lead", token=bob)

        @agent.turn
        async def turn(ctx: mobd.Turn) -> str:
            return ctx.text

        async with agent.running():
            assert await b.ask("m", "x", "yes") == "yes"
        async with a.watch_events("m") as watch:
            found: dict[str, str] = {}
            async for event in watch:
                found.setdefault(event.kind, event.principal)
                if event.kind == "attachment_closed":
                    break
    assert {found[kind] for kind in ("mob_created", "member_spawned", "mob_stopped")} == {"alice"}
    assert {found[kind] for kind in ("mob_resumed", "input_accepted", "attachment_opened")} == {"team/bob@host"}


async def test_clients_and_agents_are_told_what_to_do(
    guarded: tuple[Speaker, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, alice, _ = guarded
    async with mobd.Client(peer.server.address) as client:
        with pytest.raises(mobd.TokenMissing, match="MOBD_TOKEN") as missing:
            await client.server_info()
    assert isinstance(missing.value, mobd.Unauthenticated)
    monkeypatch.setenv("MOBD_TOKEN", f"{alice}\n")
    async with mobd.Client(peer.server.address) as client:
        assert (await client.server_info()).auth_mode == "tokens"
    async with mobd.Client(peer.server.address, token="mobd_other") as client:
        with pytest.raises(mobd.TokenUnknown, match="revoked"):
            await client.server_info()
    agent = mobd.Agent(peer.server.address, mob="m", role="lead", token="mobd_other")

    @agent.turn
    async def turn(_: mobd.Turn) -> None:
        """Never called."""

    with pytest.raises(mobd.AgentStopped, match="does not know the token") as stopped:
        await agent.serve()
    assert stopped.value.reason == "TOKEN_UNKNOWN"
    with pytest.raises(mobd.TokenUnknown, match="damaged"):
        mobd.Client(peer.server.address, token="two words")


async def test_a_file_is_read_again_and_one_that_is_wrong_changes_nothing(guarded: tuple[Speaker, str, str]) -> None:
    peer, alice, bob = guarded
    known = peer.server.tokens
    assert known is not None
    assert isinstance(await ask(peer, f"Bearer {alice}"), server_pb2.GetServerInfoResponse)
    lines = known.file.read_text().splitlines()
    known.file.write_text("alice:sha256:nonsense\n")
    with pytest.raises(tokens.TokensInvalid, match="line 1"):
        known.reload()
    assert isinstance(await ask(peer, f"Bearer {alice}"), server_pb2.GetServerInfoResponse)
    known.file.write_text("\n".join(line for line in lines if not line.startswith("alice")))
    known.reload()
    refused = await ask(peer, f"Bearer {alice}")
    assert isinstance(refused, Refusal)
    assert refused.reason == "TOKEN_UNKNOWN"
    assert isinstance(await ask(peer, f"Bearer {bob}"), server_pb2.GetServerInfoResponse)


async def test_health_is_open_and_reflection_is_not(guarded: tuple[Speaker, str, str]) -> None:
    peer, alice, _ = guarded
    health = health_pb2_grpc.HealthStub(peer.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)).status == 1
    reflection = reflection_pb2_grpc.ServerReflectionStub(peer.channel)
    wanted = reflection_pb2.ServerReflectionRequest(list_services="")
    call = reflection.ServerReflectionInfo(timeout=TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert refusal_of(error.value).reason == "TOKEN_MISSING"
    call = reflection.ServerReflectionInfo(timeout=TIMEOUT_S, metadata=(("authorization", f"Bearer {alice}"),))
    await call.write(wanted)
    assert (await call.read()).list_services_response.service
    call.cancel()


async def test_without_tokens_the_server_stays_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(compose.CannotStart, match="MOBD_INSECURE_LISTEN=true"):
        async with compose.serving(settings(tmp_path, listen="0.0.0.0:0")):
            """Not reached."""


@pytest.mark.parametrize("how", ["insecure", "tokens"])
async def test_beyond_this_machine_each_start_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    write(tmp_path / "tokens", "alice")
    more = {"insecure_listen": True} if how == "insecure" else {"tokens_file": tmp_path / "tokens"}
    async with compose.serving(settings(tmp_path, listen="0.0.0.0:0", **more)):
        (warned,) = [one for one in caplog.records if one.message == "open_to_others"]
    assert warned.levelname == "WARNING"
    assert warned.__dict__["auth"] == ("none" if how == "insecure" else "tokens")
    assert warned.__dict__["encrypted"] is False


async def test_those_who_guess_displace_nobody(tmp_path: Path) -> None:
    (alice,) = write(tmp_path / "tokens", "alice")
    known = tokens.Tokens(tmp_path / "tokens")
    for number in range(3):
        with pytest.raises(TokenUnknown):
            known.identify(f"Bearer {number}")
    for spaces in range(1, 2 * tokens.REMEMBERED):
        assert known.identify(f"Bearer{' ' * spaces}{alice}") == "alice"
    assert 0 < len(known._remembered) <= tokens.REMEMBERED


async def test_a_line_is_added_to_a_file_of_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    first, second = tokens.mint("alice"), tokens.mint("alice")
    tokens.append(file, first.line)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(file.read_text().rstrip("\n"))
    tokens.append(file, second.line)
    known = tokens.Tokens(file)
    assert len(known) == 2
    assert {known.identify(f"Bearer {one.token}") for one in (first, second)} == {"alice"}
    assert first.token not in file.read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no token: mobd token new"),
        ("alice", "line 1"),
        ("# x\nalice:md5:" + "0" * 64, "line 2"),
        ("alice:sha256:" + "0" * 63, "line 1"),
        ("a b:sha256:" + "0" * 64, "a principal has"),
        ("mobd:sha256:" + "0" * 64, "mobd is no name"),
        ("a:sha256:" + "0" * 64 + "\nb:sha256:" + "0" * 64, "line 2 .* has the token of an earlier line"),
    ],
)
async def test_a_wrong_line_is_named_and_not_shown(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(tokens.TokensInvalid, match=says) as wrong:
        tokens.Tokens(tmp_path / "tokens")
    assert "0000" not in str(wrong.value)


async def broken_off(stream: Any) -> Refusal:
    """Return what a stream that goes on ends with."""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            while await stream.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
    raise AssertionError("it ended in order")


async def test_streams_end_with_their_token_and_others_go_on(guarded: tuple[Speaker, str, str]) -> None:
    peer, alice, bob = guarded
    config = peer.server.config
    assert config.tokens_file is not None
    assert peer.server.tokens is not None
    as_alice, as_bob = ((("authorization", f"Bearer {one}"),) for one in (alice, bob))
    async with mobd.Client(peer.server.address, token=bob) as client:
        await client.create_mob("m", DEFINITION)
        await client.spawn("m", "x", "lead")
        start = events_pb2.EventStart(after_cursor=0)
        events = events_pb2.WatchEventsRequest(mob_id="m", start=start)
        live = events_pb2.WatchAgentEventsRequest(mob_id="m")
        revoked = [
            peer.events.WatchEvents(events, metadata=as_alice),
            peer.events.WatchAgentEvents(live, metadata=as_alice),
            peer.agents.Attach(metadata=as_alice),
        ]
        kept = peer.events.WatchEvents(events, metadata=as_bob)
        for stream in (*revoked[:2], kept):
            await asyncio.wait_for(stream.read(), TIMEOUT_S)
        hello = agents_pb2.Hello(mob_id="m", host_id="h", incarnation="1", protocol=1, capacity=1, max_members=1)
        hello.serves.add(role="lead")
        await revoked[2].write(agents_pb2.AttachRequest(frames=[agents_pb2.AgentFrame(hello=hello)]))
        await asyncio.wait_for(revoked[2].read(), TIMEOUT_S)

        lines = config.tokens_file.read_text().splitlines()
        config.tokens_file.write_text("\n".join(line for line in lines if not line.startswith("alice")))
        peer.server.tokens.reload()
        assert peer.server.rpc.ask_again() == 3
        for refused in await asyncio.gather(*map(broken_off, revoked)):
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN")
        # The agent that was told so is away at once, and the other caller has missed nothing.
        agents = [agent async for agent in client.list_agents("m")]
        assert [agent.host_id for agent in agents] == ["h"]
        assert agents[0].connectivity != common_pb2.CONNECTIVITY_CONNECTED
        head = (await client.deliver("m", "x", "hi")).cursor
        async with asyncio.timeout(TIMEOUT_S):
            seen = 0
            while seen < head:
                message = await kept.read()
                seen = message.page.events[-1].seq if message.page.events else seen
        assert peer.server.rpc.ask_again() == 0
        kept.cancel()


async def test_a_stream_whose_reader_takes_nothing_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "UNREAD_S", 0.05)
    over = asyncio.Event()

    async def serve(open_streams: guests.Guests) -> None:
        try:
            with open_streams.enter("Bearer x") as guest:
                guest.principal = "alice"
                # As while a message is sent: it can't be told here.
                await asyncio.get_running_loop().create_future()
        finally:
            over.set()

    open_streams = guests.Guests()
    serving = asyncio.create_task(serve(open_streams))
    await ticks()
    assert open_streams.ask_again(lambda _: "alice") == 0
    assert open_streams.ask_again(lambda _: "bob") == 1
    await asyncio.wait_for(over.wait(), TIMEOUT_S)
    await asyncio.gather(serving, return_exceptions=True)
    assert serving.cancelled()
