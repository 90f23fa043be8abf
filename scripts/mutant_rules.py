"""The rules that `mutants.py` breaks one at a time, and the tests that hold them."""

from typing import Final

MACHINES: Final = "server/mobd_server/machines"
ACTOR: Final = "server/mobd_server/actors/actor.py"
MEMORY: Final = "server/mobd_server/adapters/memory/store.py"
LANES: Final = "server/mobd_server/adapters/sql/lanes.py"

T: Final = "tests/machines"
INBOX: Final = (f"{T}/test_inbox.py",)
ATTEMPTS: Final = (f"{T}/test_attempts.py",)
AGENTS: Final = (f"{T}/test_agents.py", f"{T}/test_mob.py")
DECISION: Final = (f"{T}/test_decision.py",)
ASKED: Final = (f"{T}/test_validate_only.py",)
POLICY: Final = (f"{T}/test_policy.py",)
SELECTION: Final = (f"{T}/test_lanes.py",)
STEERS: Final = (f"{T}/test_steering.py",)
CANCELS: Final = (f"{T}/test_cancel.py", f"{T}/test_deadlines.py")
RETIRES: Final = (f"{T}/test_retirement.py", f"{T}/test_departures.py", f"{T}/test_respawn.py")
SLICES: Final = (f"{T}/test_slices.py",)
ACTORS: Final = ("tests/actors/test_actor.py",)
STORES: Final = ("tests/stores/test_appending.py", "tests/actors/test_actor.py", "tests/actors/test_registry.py")

# file, name of the table -> the tests that walk it.
TABLES: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    (f"{MACHINES}/lifecycle.py", "TABLE"): (f"{T}/test_lifecycle.py",),
    (f"{MACHINES}/lifecycle.py", "NAMED"): (f"{T}/test_lifecycle.py",),
    (f"{MACHINES}/lifecycle.py", "EFFECTS"): (f"{T}/test_lifecycle.py",),
    (f"{MACHINES}/admission.py", "ADMITTED"): (f"{T}/test_admission.py",),
    (f"{MACHINES}/admission.py", "BESIDE"): (f"{T}/test_admission.py",),
    (f"{MACHINES}/member.py", "TABLE"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/run.py", "SETTLED"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/run.py", "FIXED"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/run.py", "OUTCOMES"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/run.py", "RETURNED"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/run.py", "LEGAL"): (f"{T}/test_tables.py",),
    (f"{MACHINES}/policy.py", "BY_KIND"): (f"{T}/test_policy.py",),
    (f"{MACHINES}/policy.py", "BY_MODE"): (f"{T}/test_policy.py",),
    (f"{MACHINES}/operation_table.py", "TABLE"): (f"{T}/test_operations.py",),
}

RELEASED: Final = "while waiting and waiting[0][0] <= confirmed:"
HELD: Final = "if len(self._waiting) == 1 and self.mob.head == self.confirmed and not self._due:"
LOST: Final = " or not d.is_connected(attachment.attachment_id):\n        return\n    while"
WON: Final = "AND log_id = ? AND epoch = ? AND head = ?"

# The rules that are no rows of a table: the tests that hold them, the file, and name, text, text without the rule.
CHECKS: Final[list[tuple[tuple[str, ...], str, list[tuple[str, str, str]]]]] = [
    (
        INBOX,
        f"{MACHINES}/inbox.py",
        [
            ("dedupe: look-up", "        if seen is not None:\n", "        if False:\n"),
            ("dedupe: content", "if seen.content_hash == content_hash(", "if True or bool("),
            ("dedupe: what was forgotten", "if member.forgotten_at and ", "if False and "),
            ("fence: member, token", "command.fence_token != member.fence_token", "False"),
            ("fence: member, generation", "command.generation != member.generation", "False"),
        ],
    ),
    (
        ATTEMPTS,
        f"{MACHINES}/run.py",
        [
            ("fence: run, fence", " or run.fence != fence", ""),
            ("fence: run, agent", " or run.attachment_id != attachment_id", ""),
            ("fence: receipt", " or receipt.fence != command.fence", ""),
            ("fence: receipt, content", "if receipt.result_hash != command.result_hash:", "if False:"),
        ],
    ),
    (
        AGENTS,
        f"{MACHINES}/attachment.py",
        [
            ("fence: executor, fence", " and executor.fence == fence", ""),
            ("fence: executor, agent", "executor.attachment_id == attachment_id and ", ""),
        ],
    ),
    (
        AGENTS + ATTEMPTS,
        f"{MACHINES}/placement.py",
        [
            ("dispatch: phase", 'return mob.phase == "running" and mob', "return mob"),
            ("dispatch: connected", LOST, LOST.removeprefix(" or not d.is_connected(attachment.attachment_id)")),
            ("dispatch: capacity", "len(attachment.runs) < attachment.capacity and ", ""),
            ("dispatch: alone", " and attachment.exclusive is None:", ":"),
        ],
    ),
    (
        AGENTS,
        f"{MACHINES}/member.py",
        [("dispatch: confirmed", '"ready" if member.executor.confirmed else "none"', '"ready"')],
    ),
    (
        DECISION,
        f"{MACHINES}/decision.py",
        [
            ("ledger: look-up", "        if seq:\n", "        if False:\n"),
            ("ledger: content", "if known.request_hash != context.request_hash:", "if False:"),
            ("replay: order", "if record.seq != state.head + 1:", "if False:"),
        ],
    ),
    (
        DECISION,
        f"{MACHINES}/draft.py",
        [
            ("rollback: state", "        self.undo.rollback()\n", ""),
            ("rollback: head", "        self.mob.head = self.base\n", ""),
        ],
    ),
    (
        (f"{T}/test_admission.py",),
        f"{MACHINES}/admission.py",
        [
            ("beside: completion", '"complete": _ENDING', '"complete": frozenset()'),
            ("beside: retirement of all", '"retire_all": _ENDING', '"retire_all": frozenset()'),
            ("beside: reset", "frozenset({c.Attach})", "frozenset()"),
            ("beside: interrupt", "{c.Interrupt, c.HardCancel, c", "{c.HardCancel, c"),
            ("beside: hard cancel", "{c.Interrupt, c.HardCancel, c", "{c.Interrupt, c"),
            ("beside: destroy", "c.DestroyRuntime, c.MoveOperation, c.Attach}", "c.MoveOperation, c.Attach}"),
            ("beside: spawn", "c.DestroyRuntime, c.MoveOperation", "c.DestroyRuntime, c.SpawnMember, c.MoveOperation"),
        ],
    ),
    (
        POLICY,
        f"{MACHINES}/policy.py",
        [
            ("mode: of progress", '{"peer_response_progress", "operation"}', '{"operation"}'),
            ("mode: of an operation", '{"peer_response_progress", "operation"}', '{"peer_response_progress"}'),
            ("wake: its sender", "return wake and not silent", "return not silent"),
            ("wake: silent intents", "return wake and not silent", "return wake"),
            ("stamp: execution", 'if kind == "continuation" else "content_turn"', 'if False else "content_turn"'),
            ("stamp: intent", 'if kind == "peer_response_terminal" else "none"', 'if False else "none"'),
            ("stamp: boundary", 'if policy.apply == "run_boundary" else', "if False else"),
        ],
    ),
    (
        INBOX + POLICY + SELECTION + RETIRES,
        f"{MACHINES}/inbox.py",
        [
            ("input: handling mode", "if mode_invalid(", "if False and mode_invalid("),
            ("dedupe: former members", "else mob.former.get(command.member_id)", "else None"),
            ("supersession: kind", " and one.kind == kind:", ":"),
            ("supersession: coalesced", 'if policy.queue == "coalesce" else', "if False else"),
            (
                "supersession: room",
                "    if replaced is not None:\n        count, size",
                "    if False:\n        count, size",
            ),
            ("supersession: bytes", "count - 1, size - replaced.size", "count - 1, size"),
            ("input: over at once", 'consumed=policy.consume == "on_accept"', "consumed=False"),
        ],
    ),
    (
        SELECTION + RETIRES,
        f"{MACHINES}/lanes.py",
        [
            ("batch: ends with a prompt", "        if is_prompt:\n            break\n", ""),
            ("batch: ends before a prompt", 'if is_prompt and count and driver.kind != "prompt":', "if False:"),
            ("batch: stamp, queue", "(stamp.execution, stamp.intent) != (head.execution, head.intent)", "False"),
            ("batch: stamp, steer", "one.stamp != stamp", "False"),
            ("batch: alone after a failure", "    if head.attempts:\n", "    if False:\n"),
            ("batch: passive", "return any(one.drives for one in inputs)", "return True"),
            ("batch: draining", '    if member.state == "retired":\n        return True\n', ""),
            ("batch: pause, steer", "not (paused and steer[0].attempts)", "True"),
            ("batch: pause, queue", "not (paused and queue[0].attempts)", "True"),
            ("batch: woken by the queue", "_driven(member, steer) or _driven(member, queue)", "_driven(member, steer)"),
        ],
    ),
    (
        STEERS,
        f"{MACHINES}/lanes.py",
        [
            ("steer: inputs", "held + len(steer) > BATCH_INPUTS or ", ""),
            ("steer: bytes", " or held_bytes + sum(one.size for one in steer) > BATCH_BYTES", ""),
            ("steer: failed before", 'if one.attempts or one.stamp.boundary != "run', 'if one.stamp.boundary != "run'),
            ("steer: boundary", 'one.stamp.boundary != "run_checkpoint" or ', ""),
            ("steer: execution", ' or one.stamp.execution != "content_turn":', ":"),
            ("steer: passive", "return len(steer) if _driven(member, steer) else 0", "return len(steer)"),
        ],
    ),
    (
        STEERS,
        f"{MACHINES}/steering.py",
        [
            ("steer: capability", "if not attachment.steers or ", "if "),
            ("steer: cancelled run", ' or run.cancel != "none" or', " or"),
            ("steer: phase", ' or mob.phase != "running":', ":"),
            ("steer: connected", "    if not d.is_connected(attachment.attachment_id):\n        return\n", ""),
            ("steer: sent again", "    if run.steered:\n", "    if False:\n"),
        ],
    ),
    (
        STEERS + CANCELS + ATTEMPTS,
        f"{MACHINES}/run.py",
        [
            ("steer: taken in", "        if name not in taken and ", "        if False and "),
            ("steer: order", "            sequence += 1\n", ""),
            ("steer: no attempt", ' or result.outcome == "returned"', ""),
            ("cancel: never again", 'return "cancelled" if asked and cause', 'return "cancelled" if False and cause'),
            (
                "cancel: by whom",
                'asked = run.cancel != "none" and run.cancelled_by == "caller"',
                'asked = run.cancel != "none"',
            ),
            ("cancel: unasked", '        cause = "error"\n        run =', '        cause = "cancelled"\n        run ='),
            ("cancel: not sent again", '    if run.cancel != "none":\n        settle', "    if False:\n        settle"),
            ("deadline: over", '    set_timer(mob, undo, "deadline", event.run_id, run.deadline)\n', ""),
        ],
    ),
    (
        CANCELS + RETIRES,
        f"{MACHINES}/cancel.py",
        [
            ("fence: caller, generation", "generation is not None and generation != member.generation", "False"),
            ("fence: caller, token", "fence_token is not None and fence_token != member.fence_token", "False"),
            ("cancel: run", "if command.run_id is not None and command.run_id != member.run_id:", "if False:"),
            ("cancel: run, hard", "    if command.run_id != member.run_id:\n", "    if member.run_id is None:\n"),
            ("cancel: once", 'if by == "caller" and asked and run.cancelled_by == "caller":', "if False:"),
            ("cancel: stays the callers", 'if run.cancel != "none" and run.cancelled_by == "caller":', "if False:"),
            ("cancel: control id", "run.control_id if asked else d", "run.control_id if run.control_id else d"),
            ("cancel: sent once", "    if not asked:\n        d.react", "    if True:\n        d.react"),
            ("fence off: hard", 'run.cancel != "hard" or run.control_id', "run.control_id"),
            ("fence off: request", " or run.control_id != command.control_id:", ":"),
            ("fence off: elsewhere", "place(d, member, avoid=attachment.attachment_id)", "place(d, member)"),
            ("deadline: hard", 'hard=run.cancel == "boundary", reason=DEADLINE', "hard=False, reason=DEADLINE"),
            (
                "deadline: fence off",
                '    if run.cancel == "hard":\n        _fence_off',
                "    if False:\n        _fence_off",
            ),
            ("deadline: next step", "    run.deadline = event.deadline\n", ""),
        ],
    ),
    (
        STEERS + CANCELS,
        f"{MACHINES}/attachment.py",
        [
            ("resume: steers", "    steer_again(d, run)\n", ""),
            ("resume: cancels", '    if run.cancel != "none":\n        d.react(cancel_again(run))\n', ""),
            (
                "resume: what waited",
                "        d.react(cancel_again(run))\n    steer_waiting(d, run)\n",
                "        d.react(cancel_again(run))\n",
            ),
        ],
    ),
    (
        RETIRES,
        f"{MACHINES}/retirement.py",
        [
            (
                "retire: phase",
                'drains = executor is not None and d.mob.phase == "running"',
                "drains = executor is not None",
            ),
            ("retire: agent", "drains = executor is not None and d", "drains = d"),
            ("retire: given up", '    else:\n        abandon_waiting(d, member, "retired")\n', ""),
            ("retire: rides along", "        serve_work(d, member)\n    else:", "        pass\n    else:"),
            ("retire: pending in a stopped mob", '    if mob.phase != "running":\n', "    if False:\n"),
            ("retire: interrupt", "if command.interrupt_first and member.run_id is not None:", "if False:"),
            ("retire: again", '    if member.state == "retired":\n', "    if False:\n"),
            (
                "retire: leaves",
                '    if member.lifecycle == "retiring":\n        _leave',
                "    if True:\n        _leave",
            ),
            (
                "retire: no agent",
                "    if not place(d, member, avoid=_lost_by(d, member.member_id)):\n",
                "    if False:\n",
            ),
            ("retire: not the same agent", "avoid=_lost_by(d, member.member_id)", "avoid=None"),
            (
                "retire: after a stop",
                "        if isinstance(record.event, e.MobStarted | e.MobResumed):\n",
                "        if False:\n",
            ),
            ("retire: remembered", "        member.ended,\n", '        b"",\n'),
            ("retire: forgotten", "if mob.former[member_id].left_at >= horizon:", "if False:"),
            ("retire: operation", "    operation.retiring(mob, undo, record, member)\n", ""),
            (
                "destroy: again",
                '    if member.state == "destroyed":\n        return Destroyed',
                "    if False:\n        return Destroyed",
            ),
            (
                "destroy: run",
                "settle(d, mob.runs[member.run_id], reason)",
                "settle(d, mob.runs[member.run_id], 'released')",
            ),
            ("respawn: generation", "member.member_id, generation + 1, mob", "member.member_id, generation, mob"),
            ("respawn: fence", "mob.fences + 1, session_id", "fence_token, session_id"),
            ("respawn: remembered", "        ended=old.ended,\n", ""),
            ("respawn: receipts", "        receipts=old.receipts,\n", ""),
            (
                "respawn: operation",
                '    operation.ended(mob, undo, record, old, "retired", "the member was respawned")\n',
                "",
            ),
        ],
    ),
    (
        RETIRES,
        f"{MACHINES}/roster.py",
        [
            ("spawn: generation", "former.generation + 1 if former is not None else 0", "0"),
            ("spawn: remembered", 'ended=former.ended if former is not None else b""', 'ended=b""'),
            (
                "spawn: retiring",
                "    if there is not None:\n",
                '    if there is not None and there.lifecycle == "active":\n',
            ),
        ],
    ),
    (
        SLICES,
        f"{MACHINES}/slices.py",
        [
            ("complete: joined", '    if mob.pending != "complete":\n', "    if True:\n"),
            ("reset: joined", '    if mob.pending != "reset":\n', "    if True:\n"),
            ("retire all: joined", '    if mob.pending != "retire_all":\n', "    if True:\n"),
            ("complete: empty", 'if mob.pending == "complete" and not mob.members:', 'if mob.pending == "complete":'),
            ("slices: go on", "    d.react(Again())\n    return True\n", "    return True\n"),
            ("slices: events", "len(d.records) < SLICE_EVENTS and ", ""),
            ("reset: stopped first", '        if mob.phase == "running":\n            d.emit(e.MobStopped())\n', ""),
        ],
    ),
    (
        SLICES,
        f"{MACHINES}/mob.py",
        [("report: of the last command", "        mob.reports = {}\n", "        pass\n")],
    ),
    (
        ASKED,
        f"{MACHINES}/decision.py",
        [
            ("asked only: no trace", "        if context.validate_only:\n", "        if False:\n"),
            (
                "asked only: ledger",
                "if context.request_id is not None and not context.validate_only:",
                "if context.request_id is not None:",
            ),
            ("acting: run", "if held is None or held.fence != fence:", "if held is None:"),
            (
                "acting: fence",
                "if held is None or held.fence != fence:",
                "if held is not None and held.fence != fence:",
            ),
        ],
    ),
    (
        ACTORS,
        ACTOR,
        [
            ("barrier: answers", RELEASED, "while waiting:"),
            ("barrier: reads", "if self.mob.head > self.confirmed:", "if False:"),
        ],
    ),
    (
        STORES,
        MEMORY,
        [
            ("append: log, memory", "(append.log_id, append.epoch,", "(log.row.log_id, append.epoch,"),
            ("append: epoch, memory", "append.epoch, append.base):", "log.epoch, append.base):"),
            ("append: head, memory", "append.epoch, append.base):", "append.epoch, log.head):"),
        ],
    ),
    (
        STORES,
        LANES,
        [
            ("append: log, SQLite", WON, "AND (log_id = ? OR 1) AND epoch = ? AND head = ?"),
            ("append: epoch, SQLite", WON, "AND log_id = ? AND (epoch = ? OR 1) AND head = ?"),
            ("append: head, SQLite", WON, "AND log_id = ? AND epoch = ? AND (head = ? OR 1)"),
            ("append: log, PostgreSQL", " AND mobs.log_id = v.log_id AND mobs.epoch", " AND mobs.epoch"),
            ("append: epoch, PostgreSQL", " AND mobs.epoch = v.epoch AND mobs.head", " AND mobs.head"),
            ("append: head, PostgreSQL", ' AND mobs.head = v.base"', '"'),
        ],
    ),
]
