"""Reads a document in JSON, YAML or TOML into plain values.

All three are held to what JSON can say. Of YAML that leaves out what makes a document mean something else than it
seems to: anchors and aliases, tags, merge keys, several documents, and words such as `no` that would be truth values.
"""

import json
import re
import tomllib
from collections.abc import Hashable, Sequence
from typing import Any, Final, Literal, NoReturn

import yaml

from mobd_server.services.json_text import MAX_NESTING

Notation = Literal["json", "yaml", "toml"]

_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+").fullmatch
# Texts and comments of TOML, whole, and every character that nests or ends a key. Nothing is ever tried a second time.
_TOML_MARK: Final = re.compile(
    r'''"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5}|\\?\Z)|"(?:[^"\\\n]|\\[^\n])*+"?|'''
    r"""'''(?:[^']|'(?!''))*+(?:'{3,5}|\Z)|'[^'\n]*+'?|#[^\n]*+|[\[{\]}.=,\n]""",
    re.DOTALL,
)

# Keys and values of YAML. It is built in one go by code that lets nothing else run in the meantime.
MAX_YAML_VALUES: Final = 50_000
MAX_PLACE: Final = 1_000
MAX_SHOWN: Final = 128


def shown(text: object) -> str:
    """Return a text as a message may show it: nobody needs to see all of a megabyte."""
    text = str(text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


class SyntaxFault(Exception):
    """The document can't be read; `location` says where, if that is known."""

    def __init__(self, code: str, message: str, location: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.location = location


def place(path: Sequence[Any]) -> str:
    """Return a path into a document: profiles.analyst.labels["a b"][0]."""
    text = ""
    for part in path:
        part = shown(part) if isinstance(part, str) else part
        if len(text) > MAX_PLACE:
            return text.removeprefix(".") + "…"
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY(str(part)):
            text += f".{part}"
        else:
            text += f"[{json.dumps(str(part), ensure_ascii=False)}]"
    return text.removeprefix(".")


def read(notation: Notation, text: str) -> Any:
    """Return the values of a document. Raises SyntaxFault."""
    readers = {"json": _json, "yaml": _yaml, "toml": _toml}
    try:
        return readers[notation](text)
    except RecursionError:
        raise SyntaxFault("too_deep", f"must nest at most {MAX_NESTING} levels deep") from None
    except ValueError as error:
        # A number with more digits than anybody can mean.
        raise SyntaxFault("syntax", f"can't be read: {str(error).partition(';')[0]}") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise SyntaxFault("syntax", f"not JSON: {error.msg}", _line(error.lineno, error.colno)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SyntaxFault("duplicate_key", f"the key {shown(key)!r} is given twice in one mapping", place((key,)))
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise SyntaxFault("syntax", f"not JSON: {name} is no number of JSON")


def _toml(text: str) -> Any:
    _refuse_deep_toml(text)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SyntaxFault("syntax", f"not TOML: {error}") from None


def _refuse_deep_toml(text: str) -> None:
    """Count brackets, and the dots of the key at hand, before tomllib does more with them.

    Its stack grows with the ones, and what comes of that is up to the interpreter. Its memory grows with the square of
    the others: a hundred kilobytes of `a.a.a` take more than a machine has.
    """
    brackets = dots = 0
    for mark in _TOML_MARK.finditer(text):
        match mark[0]:
            case ".":
                dots += 1
            case "[" | "{":
                brackets, dots = brackets + 1, 0
            case "]" | "}":
                brackets, dots = max(brackets - 1, 0), 0
            case "=" | "," | "\n":
                dots = 0
        if brackets + dots > MAX_NESTING:
            raise SyntaxFault("too_deep", f"must nest at most {MAX_NESTING} levels deep")


def _yaml(text: str) -> Any:
    try:
        _refuse_yaml(text)
        loader = YamlLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = _line(mark.line + 1, mark.column + 1) if mark is not None else ""
        raise SyntaxFault("syntax", f"not YAML: {error.problem or error.context}", location) from None
    except yaml.YAMLError as error:
        raise SyntaxFault("syntax", f"not YAML: {str(error).partition(chr(10))[0]}") from None


def _refuse_yaml(text: str) -> None:
    """Look at the events alone: what is refused here is never built, however deep or large it would become."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark = event.start_mark
        at = _line(mark.line + 1, mark.column + 1) if mark is not None else ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise SyntaxFault("yaml_alias", "anchors and aliases are not allowed: write the value out", at)
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise SyntaxFault("yaml_tag", f"tags such as {shown(tag)} are not allowed", at)
        values += isinstance(event, yaml.NodeEvent)
        if values > MAX_YAML_VALUES:
            raise SyntaxFault(
                "too_large", f"must have at most {MAX_YAML_VALUES} keys and values: use JSON for more", at
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_NESTING:
                raise SyntaxFault("too_deep", f"must nest at most {MAX_NESTING} levels deep", at)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class YamlLoader(_Loader):  # type: ignore[misc]  # C if it is there, Python otherwise
    """YAML with the scalars of JSON and without duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 what PyYAML expects

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that is given twice."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            mark = key_node.start_mark
            if not isinstance(key, Hashable):
                raise SyntaxFault("bad_key", "a key must be text", _line(mark.line + 1, mark.column + 1))
            if key in seen:
                message = f"the key {shown(key)!r} is given twice in one mapping"
                raise SyntaxFault("duplicate_key", message, _line(mark.line + 1, mark.column + 1))
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", list("-+0123456789")),
):
    YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _line(line: int, column: int) -> str:
    return f"line {line}, column {column}"
