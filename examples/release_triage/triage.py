"""What an analyst and the lead do with a log: parse, group, count, find the first occurrence and its neighbourhood.

A part is what is known of some consecutive lines. Parts of neighbouring lines merge into one part, in any grouping, so
that a log may be cut anywhere and put together in any number of steps. Parts are plain JSON and stay small.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

Part = dict[str, Any]
Group = dict[str, Any]

AROUND = 3  # lines shown before and after a first occurrence
WIDTH = 300  # characters kept of one line
PART_BYTES = 48 * 1024  # a part that would be greater drops what matters least
RUN_BYTES = 900 * 1024  # all parts of one run together

SEVERITY = {"critical": 5, "error": 4, "warning": 3, "unknown": 2, "info": 1, "debug": 0}
_LEVELS = {
    "alert": "critical", "crit": "critical", "critical": "critical", "emerg": "critical", "fatal": "critical",
    "panic": "critical", "err": "error", "error": "error", "severe": "error", "exception": "error",
    "warn": "warning", "warning": "warning", "info": "info", "information": "info", "notice": "info",
    "debug": "debug", "trace": "debug", "verbose": "debug",
}  # fmt: skip
_LEVEL = "|".join(sorted(_LEVELS, key=len, reverse=True))
_TIME = (
    r"(?:\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:?\d\d)?"  # 2025-03-04T09:12:33.120Z
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d"  # Mar  4 09:12:33
    r"|\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}"  # 04/Mar/2025:09:12:33 +0000
    r"|\d\d:\d\d:\d\d(?:[.,]\d+)?)"
)
_STAMPED = re.compile(rf"\[?(?P<time>{_TIME})\]?[ \t]+(?P<rest>.*)")
_LEADING_LEVEL = re.compile(rf"[\[<(]?(?P<level>{_LEVEL})[\]>)]?(?::|(?=\s)|$)[ \t]*(?P<rest>.*)", re.IGNORECASE)
_COMPONENT = re.compile(r"(?:\[(?P<a>[\w./-]{1,40})\]:?|(?P<b>[A-Za-z][\w./-]{0,39})(?:\[\d+\])?:)[ \t]+(?P<rest>.*)")
_ANY_LEVEL = re.compile(rf"(?<![\w/.-])(?P<level>{_LEVEL})(?![\w/-])", re.IGNORECASE)

# What differs from one occurrence of a message to the next: ids, addresses, and every word with a digit in it.
_VARIABLE = re.compile(
    r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b|(?<!\w)(?=\w*\d)\w+(?:[.:,](?=\w*\d)\w+)*"
)


class Record(NamedTuple):
    """One log record: the line that it begins with, read."""

    time: str
    level: str
    component: str
    message: str


def signature(message: str) -> str:
    """Return the message without what differs from one occurrence to the next: numbers, ids, addresses."""
    return " ".join(_VARIABLE.sub("<*>", message[: 4 * WIDTH]).split())[:WIDTH]


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, as editors number them."""
    return text.removesuffix("\n").split("\n")


def is_stamped(lines: Iterable[str]) -> bool:
    """Tell whether most of these lines begin with a time; then the others continue the record before them."""
    seen = [bool(_STAMPED.match(line)) for line in lines if line.strip() and not line[0].isspace()]
    return bool(seen) and 2 * sum(seen) > len(seen)


def parse(line: str, *, stamped: bool) -> Record | None:
    """Read one line; None if it is blank or continues the record before it."""
    if not line.strip() or line[0].isspace():
        return None
    if line[0] == "{":
        record = _parse_json(line)
        if record is not None:
            return record
    found = _STAMPED.match(line)
    if found is None and stamped:
        return None
    time, rest = (found["time"], found["rest"]) if found else ("", line)
    level, component = "", ""
    # Level and component, in either order: `ERROR billing: …`, `[billing] ERROR …`, `host billing[7]: error: …`.
    for _ in range(3):
        if not level and (found := _LEADING_LEVEL.match(rest)):
            level, rest = _LEVELS[found["level"].lower()], found["rest"]
        elif not component and (found := _COMPONENT.match(rest)):
            component, rest = found["a"] or found["b"], found["rest"]
        elif not component and time and (found := re.match(r"[\w.-]+ (?=[\w./-]+(?:\[\d+\])?: )", rest)):
            rest = rest[found.end() :]  # a syslog line names its host first
    if not level and (found := _ANY_LEVEL.search(rest)):
        level = _LEVELS[found["level"].lower()]
    return Record(time, level or "unknown", component, rest)


def _parse_json(line: str) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None

    def first(*names: str) -> str:
        return next((str(value[name]) for name in names if value.get(name) not in (None, "")), "")

    message = first("message", "msg", "event") or line
    level = _LEVELS.get(first("level", "severity", "levelname", "lvl").lower(), "unknown")
    return Record(first("time", "timestamp", "ts", "@timestamp"), level, first("component", "logger", "name"), message)


def analyse(text: str, first_line: int, *, stamped: bool) -> Part:
    """Return the part of these lines; `first_line` is the number of the first one."""
    lines = lines_of(text)
    groups: dict[tuple[str, str, str], Group] = {}
    records = 0
    for index, line in enumerate(lines):
        record = parse(line, stamped=stamped)
        if record is None:
            continue
        records += 1
        key = (record.level, record.component, signature(record.message))
        if key in groups:
            groups[key]["count"] += 1
            groups[key]["last_time"] = record.time
        else:
            groups[key] = _group(record, key[2], lines, index, first_line)
    kept = [line[:WIDTH] for line in lines]
    part = {
        "first_line": first_line,
        "last_line": first_line + len(lines) - 1,
        "records": records,
        "head": kept[:AROUND],
        "tail": kept[-AROUND:],
        "groups": list(groups.values()),
        "left_out": {"groups": 0, "records": 0},
    }
    return _small(part)


def _group(record: Record, name: str, lines: list[str], index: int, first_line: int) -> Group:
    return {
        "level": record.level,
        "component": record.component,
        "signature": name,
        "count": 1,
        "line": first_line + index,
        "first_time": record.time,
        "last_time": record.time,
        "text": lines[index][:WIDTH],
        "before": [line[:WIDTH] for line in lines[max(0, index - AROUND) : index]],
        "after": [line[:WIDTH] for line in lines[index + 1 : index + 1 + AROUND]],
    }


def merge(parts: Iterable[Part]) -> Part:
    """Return the part of all lines of these parts. The same part given twice counts once."""
    by_line = {part["first_line"]: part for part in parts}
    whole: Part | None = None
    for _, part in sorted(by_line.items()):
        whole = part if whole is None else _join(whole, part)
    if whole is None:
        raise ValueError("nothing to merge")
    return _small(whole)


def _join(left: Part, right: Part) -> Part:
    """Join two parts, the lines of `left` being before those of `right`."""
    touching = left["last_line"] + 1 == right["first_line"]
    groups = {_key(one): dict(one) for one in left["groups"]}
    if touching:
        # What came first at the very end of one part has its neighbourhood at the beginning of the next.
        for one in groups.values():
            if len(one["after"]) == left["last_line"] - one["line"] < AROUND:
                one["after"] = (one["after"] + right["head"])[:AROUND]
    for one in right["groups"]:
        known = groups.get(_key(one))
        if known is not None:
            known["count"] += one["count"]
            known["last_time"] = one["last_time"]
            continue
        one = dict(one)
        if touching and len(one["before"]) == one["line"] - right["first_line"] < AROUND:
            one["before"] = (left["tail"] + one["before"])[-AROUND:]
        groups[_key(one)] = one
    out = {name: left["left_out"][name] + right["left_out"][name] for name in ("groups", "records")}
    return {
        "first_line": left["first_line"],
        "last_line": right["last_line"],
        "records": left["records"] + right["records"],
        "head": (left["head"] + right["head"])[:AROUND] if touching else left["head"],
        "tail": (left["tail"] + right["tail"])[-AROUND:] if touching else right["tail"],
        "groups": list(groups.values()),
        "left_out": out,
    }


def _key(group: Group) -> tuple[str, str, str]:
    return group["level"], group["component"], group["signature"]


def ranked(groups: Iterable[Group]) -> list[Group]:
    """Return the groups, what matters most first: by severity, then by count, then by first occurrence."""
    return sorted(groups, key=lambda one: (-SEVERITY[one["level"]], -one["count"], one["line"]))


def size(value: object) -> int:
    """Return how many bytes a value takes as JSON."""
    return len(json.dumps(value, ensure_ascii=False).encode())


def _small(part: Part, limit: int = PART_BYTES) -> Part:
    """Drop neighbourhoods, then whole groups, from the last in rank, until the part fits; say what was left out."""
    over = size(part) - limit
    if over <= 0:
        return part
    groups = ranked(part["groups"])
    for one in reversed(groups):
        if over <= 0:
            break
        bare = {**one, "before": [], "after": []}
        over -= size(one) - size(bare)
        groups[groups.index(one)] = bare
    left_out = dict(part["left_out"])
    while over > 0 and len(groups) > 1:
        gone = groups.pop()
        over -= size(gone) + 2
        left_out["groups"] += 1
        left_out["records"] += gone["count"]
    return {**part, "groups": groups, "left_out": left_out}


def shrink(parts: list[Part]) -> list[Part]:
    """Return the parts, smaller if need be, so that they fit one output together."""
    return [_small(part, min(PART_BYTES, RUN_BYTES // len(parts))) for part in parts]


def split(text: str, limit: int) -> Iterator[tuple[int, str]]:
    """Cut a log at ends of lines into chunks of at most `limit` bytes; yield (number of the first line, chunk).

    A line that is longer than that is cut short.
    """
    chunk: list[str] = []
    held, first = 0, 1
    for number, line in enumerate(lines_of(text), 1):
        raw = line.encode()
        if len(raw) >= limit:
            line = raw[: limit - 1].decode(errors="ignore")
        width = len(line.encode()) + 1
        if chunk and held + width > limit:
            yield first, "".join(chunk)
            chunk, held, first = [], 0, number
        chunk.append(line + "\n")
        held += width
    if chunk:
        yield first, "".join(chunk)


def report(part: Part, top: int = 10) -> str:
    """Write a merged part for people."""
    groups = ranked(part["groups"])
    levels = {level: sum(g["count"] for g in groups if g["level"] == level) for level in SEVERITY}
    counts = ", ".join(f"{count} {level}" for level, count in levels.items() if count)
    out = [f"{part['last_line'] - part['first_line'] + 1} lines, {part['records']} records: {counts or 'nothing'}"]
    shown = [one for one in groups if SEVERITY[one["level"]] >= SEVERITY["unknown"]][:top] or groups[:top]
    for rank, one in enumerate(shown, 1):
        where = f" {one['component']}" if one["component"] else ""
        out += ["", f"{rank:>2}. {one['level'].upper()}{where} x{one['count']}: {one['signature'][:160]}"]
        when = f", {one['first_time']}" + (f" to {one['last_time']}" if one["count"] > 1 else "")
        out.append(f"    first at line {one['line']}" + (when if one["first_time"] else ""))
        out += [f"      {line}" for line in one["before"]]
        out.append(f"    > {one['text']}")
        out += [f"      {line}" for line in one["after"]]
    rest = len(groups) - len(shown)
    if rest:
        out += [
            "",
            f"and {rest} more kinds of message, {sum(one['count'] for one in groups if one not in shown)} records",
        ]
    if part["left_out"]["groups"]:
        out.append(f"left out as rare: {part['left_out']['groups']} kinds, {part['left_out']['records']} records")
    return "\n".join(out)
