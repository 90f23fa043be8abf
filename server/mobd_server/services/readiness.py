"""Whether a server takes work: what its health says on gRPC and over HTTP."""

from mobd_server.actors.journal import Journal
from mobd_server.actors.registry import Registry


class Readiness:
    """Why a server does not take work now, or that it does. Use it on the loop."""

    def __init__(self, journal: Journal, registry: Registry) -> None:
        self._journal = journal
        self._registry = registry
        # Whether what the mobs owe was taken up; set by whoever did it.
        self.recovered = False
        # Whether the server is about to end.
        self.leaving = False

    def refusal(self) -> str:
        """Return why the server does not take work, in a line, or "" if it does."""
        if self.leaving or self._registry.draining:
            return "the server shuts down"
        if self._journal.down:
            return "the store does not answer"
        if not self.recovered:
            return "the mobs that owe something are being read"
        return ""
