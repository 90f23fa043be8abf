"""A whole server whose metrics are read over HTTP, as Prometheus would."""

from tests.rpc.conftest import no_settings_of_others

__all__ = ["no_settings_of_others"]
