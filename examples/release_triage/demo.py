"""A mob reads the log of a release, and its server is killed in the middle.

This starts a server on a SQLite file, a lead and three analysts as processes of their own, splits the log among the
analysts, kills the server with SIGKILL while they work, starts it again on the same file, gives the lead what the
analysts found, and prints the report. `make demo` runs it; `make demo LOG=path` reads another log.
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mobd
import triage
from mobd.v1 import runs_pb2

HERE = Path(__file__).parent
MOB = "release-triage"
ANALYSTS = ("analyst-1", "analyst-2", "analyst-3")
HIDDEN = {"member_spawned", "executor_assigned"}
# An agent works for at least this long on all chunks together, or there would be nothing to watch, and nothing to kill.
WORK_S = 12.0
# How long to wait for agents that were left out on purpose.
MISSING_S = 5.0


class Failed(Exception):
    """The demo can't go on; the message says why."""


class Processes:
    """The server and the agents: started here, and ended here whatever happens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._meant: set[int] = set()
        self._watchers: list[asyncio.Task[None]] = []
        self.trouble: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # What the demo uses is given to it, not found in the environment.
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("MOBD_")}

    async def start(self, name: str, *arguments: str, **settings: str) -> int:
        """Start one and return its pid; if it ends unasked, that is trouble."""
        with self._log(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self._env, **settings},
            )
        self._running[name] = process
        self._watchers.append(asyncio.create_task(self._watch(name, process)))
        return process.pid

    async def _watch(self, name: str, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        if process.pid not in self._meant and not self.trouble.done():
            missing = "" if name == "server" else f"an agent of role {name.partition('-')[0]} is missing: "
            self.trouble.set_exception(Failed(f"{missing}{name} ended with {code}, see its log above"))

    async def end(self, name: str, how: signal.Signals) -> None:
        """Send a signal and wait until the process is gone."""
        process = self._running.pop(name)
        self._meant.add(process.pid)
        if process.returncode is None:
            process.send_signal(how)
        await process.wait()

    async def end_all(self) -> None:
        """End what is left: asked first, then forced."""
        left = list(self._running.values())
        self._running.clear()
        for process in left:
            self._meant.add(process.pid)
            if process.returncode is None:
                process.terminate()
        try:
            async with asyncio.timeout(5):
                await asyncio.gather(*(process.wait() for process in left))
        except TimeoutError:
            for process in left:
                if process.returncode is None:
                    process.kill()
            await asyncio.gather(*(process.wait() for process in left))
        await asyncio.gather(*self._watchers)
        if self.trouble.done():
            self.trouble.exception()  # whoever ends everything knows

    def tails(self, lines: int = 12) -> str:
        """Return the last lines that each process wrote."""
        out = []
        for log in sorted(self.folder.glob("*.log")):
            out.append(f"{log.stem} wrote:")
            out += [f"    {line}" for line in log.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(out)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


class Story:
    """What the events tell: which runs are in flight, and which of them outlive a kill."""

    def __init__(self) -> None:
        self._told = asyncio.Condition()
        self._seen = 0
        # Runs of analysts in flight: run_id -> cursor of run_started.
        self._running: dict[str, int] = {}
        self._settled = 0
        # Runs that were in flight at a kill, and when that was.
        self._cut: dict[str, int] = {}
        self._killed_at = datetime.min.replace(tzinfo=UTC)
        # (run_id, member, cursor of run_started, cursor of run_settled)
        self.survivor: tuple[str, str, int, int] | None = None

    async def tell(self, event: mobd.Event) -> None:
        """Take in one event and print it."""
        if event.kind not in HIDDEN:
            state = runs_pb2.RunState.Name(event.run_settled.state) if event.kind == "run_settled" else ""
            about = f"{event.run_id} {state.removeprefix('RUN_STATE_').lower()}".rstrip()
            print(f"  {event.seq:>4} {event.kind:<18} {event.member_id:<10} {about}".rstrip(), flush=True)
        ours = event.member_id in ANALYSTS
        async with self._told:
            self._seen = event.seq
            if ours and event.kind == "run_started":
                self._running[event.run_id] = event.seq
            elif ours and event.kind == "run_settled":
                self._settled += 1
                self._running.pop(event.run_id, None)
                begun = self._cut.get(event.run_id)
                if begun is not None and event.time.ToDatetime(UTC) > self._killed_at:
                    self.survivor = self.survivor or (event.run_id, event.member_id, begun, event.seq)
            self._told.notify_all()

    async def until_running(self, chunks: int) -> None:
        """Return in the middle of the work, while a run is in flight and has been for at least one event."""
        async with self._told:
            await self._told.wait_for(
                lambda: (
                    self._settled >= chunks // 4
                    and any(begun < self._seen or chunks == 1 for begun in self._running.values())
                )
            )

    def killed(self, in_flight: dict[str, int]) -> None:
        """Remember what was in flight when the server was killed."""
        self._cut.update(in_flight)
        self._killed_at = datetime.now(UTC)

    async def until_ended(self, in_flight: dict[str, int]) -> None:
        """Return when none of these runs is in flight any more."""
        async with self._told:
            await self._told.wait_for(lambda: not self._running.keys() & in_flight.keys())

    async def until_seen(self, cursor: int) -> None:
        """Return when the event at this cursor was told."""
        async with self._told:
            await self._told.wait_for(lambda: self._seen >= cursor)

    @property
    def running(self) -> dict[str, int]:
        """The runs in flight."""
        return dict(self._running)


class Demo:
    """One showing."""

    def __init__(self, folder: Path, processes: Processes, options: argparse.Namespace) -> None:
        self._folder = folder
        self._processes = processes
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._target = f"127.0.0.1:{free.getsockname()[1]}"
        self.story = Story()
        self.servers: list[int] = []

    async def run(self, text: str) -> str:
        """Show everything and return the report."""
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        if not text.strip():
            raise Failed("the log is empty")
        chunks = list(triage.split(text, max(16 * 1024, min(200 * 1024, len(text.encode()) // 12))))
        await self._serve()
        async with mobd.Client(self._target) as client:
            await client.ensure_mob(MOB, HERE / "definition.yaml")
            for member_id in ("lead", *ANALYSTS):
                await client.ensure_member(MOB, member_id, member_id.split("-")[0])
            watching = asyncio.create_task(self._watch(client))
            try:
                await self._start_agents(min(2.0, self._options.work / len(chunks)))
                parts = await self._analyse(client, chunks, stamped=triage.is_stamped(triage.lines_of(text)[:200]))
                report = await self._merge(client, parts)
                head = (await client.get_mob(MOB)).head
                await asyncio.wait(
                    {watching, asyncio.create_task(self.story.until_seen(head))}, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        return report

    async def _serve(self) -> None:
        settings = {
            "MOBD_LISTEN": self._target,
            "MOBD_HTTP_LISTEN": "off",
            "MOBD_DATA_DIR": str(self._folder / "data"),
        }
        pid = await self._processes.start("server", "-m", "mobd_server", "serve", **settings)
        self.servers.append(pid)
        print(f"server: pid {pid} on {self._target}, data in {self._folder / 'data'}", flush=True)

    async def _start_agents(self, pace: float) -> None:
        common = ("--target", self._target, "--mob", MOB)
        if self._options.without != "lead":
            await self._processes.start("lead", str(HERE / "lead.py"), *common)
        if self._options.without != "analysts":
            for name in ANALYSTS:
                await self._processes.start(name, str(HERE / "analyst.py"), *common, "--pace", str(pace))

    async def _watch(self, client: mobd.Client) -> None:
        async for event in client.watch_events(MOB, after=0):
            await self.story.tell(event)

    async def _analyse(self, client: mobd.Client, chunks: list[tuple[int, str]], *, stamped: bool) -> list[triage.Part]:
        """Let whoever is free take the next chunk, until all are read; kill the server in between."""
        left = iter(chunks)
        parts: list[triage.Part] = []

        async def employ(member_id: str) -> None:
            for first_line, text in left:
                content = mobd.blocks({"first_line": first_line, "stamped": stamped}, text)
                output = await client.ask(MOB, member_id, content, timeout=self._patience("analysts"))
                parts.extend(output["parts"])

        killing = asyncio.create_task(self._kill(len(chunks)))
        reading = [asyncio.create_task(employ(member_id)) for member_id in ANALYSTS]
        try:
            await asyncio.gather(*reading)
        finally:
            for task in (killing, *reading):
                task.cancel()
            await asyncio.gather(killing, *reading, return_exceptions=True)
        return parts

    def _patience(self, agents: str) -> float:
        return MISSING_S if agents == self._options.without else float(self._options.timeout)

    async def _kill(self, chunks: int) -> None:
        """Kill the server while a run is in flight and start it again; once more if no run outlived that."""
        while self.story.survivor is None:
            await self.story.until_running(chunks)
            await self._processes.end("server", signal.SIGKILL)
            in_flight = self.story.running
            self.story.killed(in_flight)
            print(f"server: pid {self.servers[-1]} killed with SIGKILL during {', '.join(in_flight)}", flush=True)
            await self._serve()
            await self.story.until_ended(in_flight)

    async def _merge(self, client: mobd.Client, parts: list[triage.Part]) -> str:
        """Give the lead what fits one input, until one part is left: the whole log."""
        waiting = sorted(parts, key=lambda part: part["first_line"])
        while True:
            taken = [waiting.pop(0)]
            while waiting and triage.size([*taken, waiting[0]]) <= 200 * 1024:
                taken.append(waiting.pop(0))
            output = await client.ask(MOB, "lead", {"parts": taken}, timeout=self._patience("lead"))
            if not waiting:
                return str(output["report"])
            waiting = [*output["parts"], *waiting]


async def show(options: argparse.Namespace) -> None:
    """Run the demo and print what it came to."""
    try:
        text = options.log.read_text(errors="replace")
    except OSError as error:
        raise Failed(f"the log {options.log} can't be read: {error.strerror}") from None
    began = time.monotonic()
    this = asyncio.current_task()
    if this is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    with tempfile.TemporaryDirectory(prefix="mobd-demo-") as name:
        processes = Processes(Path(name))
        demo = Demo(Path(name), processes, options)
        work = asyncio.create_task(demo.run(text))
        try:
            either: list[asyncio.Future[Any]] = [work, processes.trouble]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if processes.trouble.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                processes.trouble.result()
            report = await work
        except (Failed, mobd.Error):
            print(processes.tails(), file=sys.stderr)
            raise
        finally:
            work.cancel()
            await processes.end_all()
    print(f"\n{report}\n\nservers: {', '.join(map(str, demo.servers))}")
    if demo.story.survivor is None:
        raise Failed("no run outlived the kill of the server")
    run_id, member_id, begun, settled = demo.story.survivor
    print(f"survived the kill: {run_id} of {member_id}, begun at event {begun}, settled at {settled}")
    print(f"took {time.monotonic() - began:.1f} s")


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description="A mob reads a log while its server is killed.")
    parser.add_argument("--log", type=Path, default=HERE / "release.log", help="the log to read")
    parser.add_argument("--without", choices=("analysts", "lead"), help="leave these agents out, and fail")
    parser.add_argument("--timeout", type=float, default=45.0, help="how long to wait for one answer, in seconds")
    parser.add_argument("--work", type=float, default=WORK_S, help="what all chunks take an analyst, in seconds")
    try:
        asyncio.run(show(parser.parse_args()))
    except (Failed, mobd.Error) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
