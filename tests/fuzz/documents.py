"""Free texts of a request: JSON, definitions in each notation, and what looks like them."""

import json
from random import Random
from typing import Any, Final

import yaml
from tests.fuzz.words import INTENTS, ROLES

TEXTS: Final = (
    "",
    "a",
    "hello",
    "é",
    "日本語",
    "\N{PILE OF POO}",
    "a\nb",
    "\t",
    "\x7f",
    "\u200e\u202e",
    "\ufeff",
    "\ufffe",
    "\U0010ffff",
    "'; DROP TABLE mobs; --",
    "%s%n{0}",
    "../../etc/passwd",
    "nan",
    "{",
    "\x01",
    "\u2028",
    "E\u0301",
)
BAD_TEXTS: Final = ("\0", "a\0b", "a\0")
JSON_SCALARS: Final = (
    "null",
    "true",
    "0",
    "-0",
    "-0.0",
    "1e308",
    "5e-324",
    "1E+2",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
    "0.1234567890123456789012345",
    '""',
    '"\\u0001"',
    '"\\ud83d\\ude00"',
    '"\\/"',
    "[]",
    "{}",
    '{"":{"":[]}}',
    " 1 ",
    "1" * 300,
)
BAD_JSON: Final = (
    "",
    " ",
    "{",
    "nul",
    "NaN",
    "Infinity",
    "1e999",
    '"\\ud800"',
    '"\\u0000"',
    '{"\\u0000":1}',
    "01",
    "[1,]",
    "{'a':1}",
    '{"a":1}x',
    "\ufeff1",
    '"a\0"',
    '"\n"',
    "[" * 129 + "]" * 129,
    "[" * 20_000,
    '{"a":' * 129 + "1" + "}" * 129,
    "1" * 5_000,
    "-",
    "/**/1",
)
BAD_DEFINITIONS: Final[dict[str, tuple[str, ...]]] = {
    "json": (
        *BAD_JSON,
        '{"profiles":{}}',
        '{"profiles":{"a":{},"a":{}}}',
        '{"profiles":[]}',
        "[]",
        '{"profiles":null}',
    ),
    "yaml": (
        "",
        "- ",
        "a: b: c",
        "profiles: {worker: &a {}, lead: *a}",
        "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]",
        "profiles: !!python/object/apply:os.system ['true']",
        "? [a]\n: b",
        "{{a: b}: c}",
        "profiles:\n  worker: {}\n  worker: {}",
        "profiles: {worker: {context: 0x1f}}",
        "profiles: {worker: {context: 2001-01-01}}",
        "profiles: {worker: {context: .nan}}",
        "profiles: {worker: {context: " + "1" * 5_000 + "}}",
        "profiles: {worker: {run_timeout_s: 1e3}}",
        "profiles: {worker: {context: 1e999}}",
        "a\0b",
        "\t",
        "%YAML 9.9\n---\na",
        "--- a\n--- b",
        "[" * 5_000,
        "- " * 5_000,
        "<<: {a: b}",
        '"\\ud800"',
        '{"a": "\\xd8"}',
        "profiles: {worker: {instructions: \ud7ff\ue000}}",
        "? ? ? a",
        "!",
        "*",
        "&",
        "|",
        "@",
    ),
    "toml": (
        "",
        "a",
        "a = ",
        "a = 1\na = 2",
        "[a]\n[a]",
        "a = 1979-05-27T07:32:00Z",
        "a = nan",
        "a = inf",
        "a = " + "1" * 5_000,
        ".".join("a" * 2_000) + " = 1",
        "a = " + "[" * 5_000,
        'a = """',
        "[[a]]\n[a.b]\n[[a.b]]",
        "a = 0xffffffffffffffffffffffff",
        "[profiles.worker]\ncontext = 07:32:00",
        '"" = 1',
        "profiles = 1\n[profiles.worker]",
        "a = '\x00'",
        "\ufeffa = 1",
    ),
}


def text(rng: Random, limit: int) -> str:
    """Return a text without U+0000 of at most `limit` bytes."""
    chosen = rng.choice(TEXTS)
    if rng.random() < 0.03:
        chosen = chosen * rng.choice((10, 1_000, 20_000)) or "a"
    if rng.random() < 0.004:
        # To the last byte.
        return "x" * limit
    return fit(chosen, limit)


def fit(chosen: str, limit: int) -> str:
    """Cut a text to a number of bytes."""
    return chosen.encode()[:limit].decode(errors="ignore")


def json_text(rng: Random, limit: int, depth: int = 3) -> str:
    """Return JSON of at most `limit` bytes."""
    chosen = _json(rng, depth)
    if rng.random() < 0.01:
        deep = rng.choice((60, 127))
        chosen = "[" * deep + chosen + "]" * deep if depth == 0 else "[" * deep + "1" + "]" * deep
    return chosen if len(chosen.encode()) <= limit else "{}"


def _json(rng: Random, depth: int) -> str:
    way = rng.random()
    if depth == 0 or way < 0.4:
        return rng.choice(JSON_SCALARS)
    if way < 0.6:
        return json.dumps(rng.choice(TEXTS), ensure_ascii=rng.random() < 0.5)
    parts = [_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if way < 0.8:
        return f"[{','.join(parts)}]"
    keys = (json.dumps(rng.choice(TEXTS)) for _ in parts)
    return f"{{{','.join(f'{key}:{part}' for key, part in zip(keys, parts, strict=True))}}}"


def definition(rng: Random, notation: str) -> str:
    """Return a definition that is legal, in most cases, and has the run's roles."""
    if rng.random() < 0.25:
        return rng.choice(BAD_DEFINITIONS[notation])
    if rng.random() < 0.01:
        return _large(rng, notation)
    profiles: dict[str, Any] = {role: _profile(rng, role) for role in ROLES}
    if rng.random() < 0.1:
        profiles[rng.choice(("-bad", "__flow_x", "a b", ""))] = {}
    document: dict[str, Any] = {"profiles": profiles}
    if rng.random() < 0.2:
        document["labels"] = {rng.choice(TEXTS): rng.choice(TEXTS)}
    if rng.random() < 0.1:
        document[rng.choice(("id", "description", "flows", "topology"))] = rng.choice(("x", 1, None, [], {"a": 1}))
    return write(document, notation)


def _profile(rng: Random, role: str) -> dict[str, Any]:
    options = {
        "role": role,
        "instructions": rng.choice(TEXTS),
        "labels": {"team": "red"},
        "context": rng.choice((1, 1.5, "x", [1, {"a": []}], {"deep": {"er": True}})),
        "silent_intents": [rng.choice(INTENTS)],
        "run_timeout_s": rng.choice((0, 1, 604_800, -1, 604_801, 1.5, "1")),
    }
    return {key: value for key, value in options.items() if rng.random() < 0.2}


def _large(rng: Random, notation: str) -> str:
    """Return much of one thing, legal or not."""
    limit = 250_000 if notation == "toml" else 1_000_000
    piece = rng.choice(
        ("a = 1\n", "a: 1\n", "[", "{a: ", "- x\n", '"', "#\n", "a.b.c = 1\n", "? ", "[[a]]\n", "'", "{}, ")
    )
    return piece * (limit // len(piece) // rng.choice((1, 10)))


def write(document: Any, notation: str) -> str:
    """Write a document in one of the notations."""
    if notation == "json":
        return json.dumps(document)
    if notation == "yaml":
        return str(yaml.safe_dump(document, allow_unicode=True))
    return "\n".join(_toml(document, ()))


def _toml(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(map(json.dumps, path))}]"] if path else []
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines += [f"{json.dumps(key)} = {_inline(value)}" for key, value in table.items() if key not in tables]
    for key, value in tables.items():
        lines += _toml(value, (*path, key))
    return lines


def _inline(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {_inline(one)}' for key, one in value.items())}}}"
    return json.dumps(value)
