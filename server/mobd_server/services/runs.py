"""Showing runs: those in flight from the state, settled ones from their rows."""

from typing import cast

import msgspec
from msgspec import Raw, Struct

from mobd_server.actors.loading import unless_deleted
from mobd_server.actors.registry import Registry
from mobd_server.errors import Internal, RunNotFound
from mobd_server.machines.events import RunSettled
from mobd_server.machines.records import RunRow
from mobd_server.machines.state import Cancel, Mob, Run, Usage
from mobd_server.ports import Store
from mobd_server.services.paging import DEFAULT_PAGE, PAGE_BYTES, page_start, page_token


class RunView(Struct):
    """A run; see Run in runs.proto."""

    mob_id: str
    member_id: str
    run_id: str
    state: str
    inputs: list[str]
    attempts: list[int]
    host_id: str
    executor_fence: int
    started_at: int
    resent: int
    settled_at: int = 0
    output: Raw | None = None
    usage: Usage | None = None
    error: str = ""
    message_count: int = 0
    digest: str = ""
    boundary: str = "run_start"
    # Inputs that were steered into it, with their attempts; of a committed run, those that it took in, in order.
    steered: list[str] = []
    steered_attempts: list[int] = []
    taken: list[str] = []
    cancel: Cancel = "none"
    cancel_reason: str = ""
    deadline: int = 0


class Runs:
    """The use cases of RunService."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self._registry = registry
        self._store = store

    async def get(self, mob_id: str, run_id: str) -> RunView:
        """Return one run."""
        actor = await self._registry.load(mob_id)

        def view(mob: Mob) -> RunView | None:
            run = mob.runs.get(run_id)
            return _in_flight(mob_id, run) if run is not None else None

        live = await actor.read(view)
        if live is not None:
            return live
        row = await self._store.read_run(mob_id, run_id)
        if row is None:
            raise RunNotFound(f"mob '{mob_id}' has no run '{run_id}'", {"mob_id": mob_id, "run_id": run_id})
        return await unless_deleted(self._store, mob_id, actor.log_id, self._settled(mob_id, row))

    async def page(
        self, mob_id: str, member_id: str, state: str | None, page_size: int, token: str
    ) -> tuple[list[RunView], str]:
        """Return a page of runs in the order in which they started, and the token of the next."""
        question = ("runs", mob_id, member_id, state)
        after = page_start(question, token)
        limit = page_size or DEFAULT_PAGE
        log_id = (await self._registry.load(mob_id)).log_id
        live = await self._live(mob_id, after, member_id, state)
        rows, beyond = await self._rows(mob_id, after, limit, member_id, state)
        settled = {row.run_id: row for row in rows}
        # What lies behind the last row that was looked at belongs to a later page. Where both know a run its row wins:
        # it settled in between.
        known = sorted({*settled, *(run_id for run_id in live if not beyond or run_id <= beyond)})
        page: list[RunView] = []
        room = PAGE_BYTES
        for run_id in known[:limit]:
            if run_id in settled:
                view = await unless_deleted(self._store, mob_id, log_id, self._settled(mob_id, settled[run_id]))
            else:
                view = live[run_id]
            room -= _size(view)
            if page and room < 0:
                break
            page.append(view)
        return page, page_token(question, page[-1].run_id if len(page) < len(known) else beyond)

    async def _live(self, mob_id: str, after: str, member_id: str, state: str | None) -> dict[str, RunView]:
        def view(mob: Mob) -> dict[str, RunView]:
            if state not in (None, "running"):
                return {}
            return {
                run_id: _in_flight(mob_id, run)
                for run_id, run in mob.runs.items()
                if run_id > after and (not member_id or run.member_id == member_id)
            }

        return await (await self._registry.load(mob_id)).read(view)

    async def _rows(
        self, mob_id: str, after: str, limit: int, member_id: str, state: str | None
    ) -> tuple[list[RunRow], str]:
        if state == "running":
            return [], ""
        return await self._store.list_runs(mob_id, after, limit, member_id or None, state)

    async def _settled(self, mob_id: str, row: RunRow) -> RunView:
        record = await self._store.read_event(mob_id, row.settled_seq)
        if record is None or not isinstance(record.event, RunSettled):
            raise Internal(f"the log of mob '{mob_id}' does not tell of the end of run '{row.run_id}'")
        settled = record.event
        inputs = cast("list[str]", msgspec.json.decode(row.inputs))
        # The outcomes of the inputs that it was started with come first.
        steered = settled.outcomes[len(inputs) :]
        return RunView(
            mob_id=mob_id,
            member_id=row.member_id,
            run_id=row.run_id,
            state=row.state,
            inputs=inputs,
            attempts=cast("list[int]", msgspec.json.decode(row.attempts)),
            host_id=row.host_id,
            executor_fence=row.executor_fence,
            started_at=row.started_at,
            resent=row.resent,
            settled_at=row.settled_at,
            output=settled.output,
            usage=settled.usage,
            error=settled.error,
            message_count=row.message_count,
            digest=row.digest,
            boundary=settled.boundary,
            steered=[one.canonical_input_id for one in steered],
            steered_attempts=[one.attempt for one in steered],
            taken=[one.canonical_input_id for one in steered if one.outcome == "consumed"],
        )


def _in_flight(mob_id: str, run: Run) -> RunView:
    return RunView(
        mob_id=mob_id,
        member_id=run.member_id,
        run_id=run.run_id,
        state="running",
        inputs=[one.canonical_input_id for one in run.inputs],
        attempts=list(run.attempts),
        host_id=run.host_id,
        executor_fence=run.fence,
        started_at=run.at,
        resent=run.resent,
        steered=[one.canonical_input_id for one in run.steered or ()],
        steered_attempts=list(run.steered_attempts or ()),
        cancel=run.cancel,
        cancel_reason=run.cancel_reason,
        deadline=run.deadline,
    )


def _size(view: RunView) -> int:
    output = memoryview(view.output).nbytes if view.output is not None else 0
    return 1024 + output + 4 * len(view.error) + 64 * (len(view.inputs) + 2 * len(view.steered))
