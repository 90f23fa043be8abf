"""The ports without a database, for tests and simulation."""

from mobd_server.adapters.memory.rebuilder import InlineRebuilder
from mobd_server.adapters.memory.store import Fault, MemoryStore, MemoryWriter

__all__ = ["Fault", "InlineRebuilder", "MemoryStore", "MemoryWriter"]
