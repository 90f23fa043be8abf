"""Mobs that come and go: made, used, destroyed, deleted, and made again under their old names.

Their calls are no part of the history that is judged, for what became of them is in no final log. What is judged is
that a log that is gone is never seen again, and that nothing of them is left in the store.
"""

from typing import Final

import mobd

CALL_S: Final = 12.0
DEFINITION: Final = {"profiles": {"analyst": {"run_timeout_s": 20}, "lead": {}}}


class CameBack(Exception):
    """Somebody saw a mob that had been deleted before they asked."""


class Departed:
    """The logs of which everybody may know that they are gone."""

    def __init__(self) -> None:
        self._logs: set[str] = set()

    async def found(self, client: mobd.Client, name: str, text: str) -> None:
        """Make a mob, unless it is there, and give it something to do."""
        try:
            await client.create_mob(name, DEFINITION, timeout=CALL_S)
        except mobd.MobExists:
            await self.look(client, name)
        await client.ensure_member(name, "solo", "lead", timeout=CALL_S)
        await client.deliver(name, "solo", text, timeout=CALL_S)
        await self.look(client, name)

    async def remove(self, client: mobd.Client, name: str) -> None:
        """Destroy a mob and delete it, and look for it once more."""
        log_id = await self.look(client, name)
        if not log_id:
            return
        try:
            await client.destroy_mob(name, timeout=CALL_S)
            await client.delete_mob(name, timeout=CALL_S)
        except mobd.MobNotFound:
            # By another client, or by the first of two calls. It was there a moment ago.
            pass
        self._logs.add(log_id)
        await self.look(client, name)

    async def look(self, client: mobd.Client, name: str) -> str:
        """Return the log of a mob as everybody sees it; "" if there is none. Raises CameBack."""
        gone = set(self._logs)
        try:
            log_id = (await client.get_mob(name, timeout=CALL_S)).log_id
        except mobd.MobNotFound:
            return ""
        if log_id in gone:
            raise CameBack(f"mob {name} was deleted with its log {log_id}, and is there")
        return log_id

    async def remove_for_good(self, client: mobd.Client, name: str) -> None:
        """Remove a mob that nobody makes again."""
        while await self.look(client, name):
            await self.remove(client, name)
