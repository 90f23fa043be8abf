"""Answering a request that was made before with the answer that is stored beside its events."""

import logging
from typing import Final

import msgspec

from mobd_server.actors.links import Receiver, Reply
from mobd_server.actors.loss import internal
from mobd_server.errors import MobdError
from mobd_server.machines.answers import Answer
from mobd_server.machines.commands import Ids
from mobd_server.ports import Store

log: Final = logging.getLogger(__name__)


async def replay(store: Store, ids: Ids, mob_id: str, seq: int, kind: type[Answer], reply: Receiver) -> None:
    """Give `reply` the answer in the durable row `seq`."""
    try:
        record = await store.read_event(mob_id, seq)
        if record is None or record.answer is None:
            raise ValueError(f"event {seq} has no answer")
        outcome = Reply(msgspec.json.decode(record.answer, type=kind), cursor=seq, replayed=True)
    except MobdError as refused:
        outcome = Reply(error=refused)
    except Exception:
        error = internal(ids)
        log.exception("replay_failed", extra={"mob_id": mob_id, "seq": seq, **error.details})
        outcome = Reply(error=error)
    reply(outcome)
