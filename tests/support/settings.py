"""Settings of the tests themselves, taken out of the environment: a server that a test starts would not know them."""

import os
from typing import Final

_TAKEN: Final = {
    name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("MOBD_REQUIRE_", "MOBD_TEST_"))
}


def setting(name: str, default: str = "") -> str:
    """Return a setting of the tests."""
    return _TAKEN.get(name, default)
