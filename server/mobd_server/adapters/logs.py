"""Log lines: one event name and its facts, JSON for machines and text for people."""

import logging
import sys
from typing import Any, Final, Literal

import structlog

from mobd_server.actors.calling import calling

Format = Literal["auto", "json", "text"]

_HANDLER_NAME: Final = "mobd"
_CORE: Final = "grpc._cython.cygrpc"
_FOUND_NOBODY: Final = "ExecuteBatchError raised in core by servicer method"


def add_calling(_: object, __: str, line: Any) -> Any:
    """Add the call within which a line is logged; what the line says itself goes before it."""
    found = calling()
    if found is not None:
        for name, value in found.facts().items():
            line.setdefault(name, value)
    return line


def set_up(level: str, form: Format) -> None:
    """Send everything that is logged in this process to standard error."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        add_calling,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if text:
        # Plain tracebacks: the pretty ones show the values of variables, and with them what callers send.
        last: list[Any] = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    else:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if one.get_name() != _HANDLER_NAME] + [handler]
    root.setLevel(level.upper())
    # Libraries say much that is of no use to who runs mobd.
    for name in ("grpc", "asyncio", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.getLogger(_CORE).addFilter(of_use)


def of_use(record: logging.LogRecord) -> bool:
    """Leave out that an answer found nobody: its caller left, or its deadline passed, while it was being sent.

    gRPC leaves it out itself if it knows by then that the caller has left, and else tells it as an error.
    """
    return not str(record.msg).startswith(_FOUND_NOBODY)
