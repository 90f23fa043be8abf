"""Ids that clients make."""

from mobd import system


def uuid7() -> str:
    """Return a new UUID of version 7 (RFC 9562): its first 48 bits are the time in milliseconds.

    The time in it lets the server tell a retry that is older than what it remembers from a new input.
    """
    machine = system.current()
    raw = bytearray(machine.time_ms().to_bytes(6, "big") + machine.random_bytes(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
