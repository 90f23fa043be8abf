"""What to do about what a database says when a server starts on it."""

from typing import Final

# By words of the driver's message, the first that are in it.
REMEDIES: Final = {
    # SQLite
    "is locked": "end the other program that has it open, such as a sqlite3 shell",
    "not a database": "restore a backup, or set MOBD_DATA_DIR to another directory",
    "malformed": "restore a backup",
    "unable to open": "set MOBD_DATA_DIR to a directory to write in",
    "readonly": "make it writable for the user of mobd, or set MOBD_DATA_DIR to a directory to write in",
    "is full": "make room on its disk",
    # PostgreSQL
    "Connection refused": "start it, or set MOBD_DATABASE_URL to where it listens",
    "failed to resolve host": "set MOBD_DATABASE_URL to where it is",
    "timeout expired": "set MOBD_DATABASE_URL to where it is, and look whether a firewall lets mobd reach it",
    "no password supplied": "set MOBD_DATABASE_PASSWORD, or give the secret mobd_database_password",
    "password authentication failed": "correct MOBD_DATABASE_PASSWORD, the secret mobd_database_password, or the URL",
    "no pg_hba.conf entry": "let this user come from this machine in its pg_hba.conf",
    "permission denied for": "grant it to the user of MOBD_DATABASE_URL, or make that the owner of the database",
    "read-only transaction": "set MOBD_DATABASE_URL to the primary: this one is a standby, or read-only",
    "too many clients": "raise its max_connections, or end what holds them",
    "remaining connection slots": "raise its max_connections, or end what holds them",
    "starting up": "wait until it has started",
}
_MISSING: Final = {
    "database": "create it with createdb, or name another in MOBD_DATABASE_URL",
    "role": "create it with createuser, or name another user in MOBD_DATABASE_URL",
}


def remedy(said: str) -> str:
    """Return what to do about a message of a driver, to be put behind it; "" if that is not known."""
    for words, what in REMEDIES.items():
        if words in said:
            return f"; {what}"
    if "does not exist" in said:
        for kind, what in _MISSING.items():
            if f'{kind} "' in said:
                return f"; {what}"
    return ""
