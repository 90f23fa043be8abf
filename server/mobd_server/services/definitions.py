"""Definitions: from a document in JSON, YAML or TOML to what is stored, with everything that is wrong with it.

A document is read into plain values, then checked value by value for what JSON can't hold, then against the models
below. Each step reports all that it finds, and the next is made only if there was nothing.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Raw, Struct
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from mobd_server.errors import DefinitionInvalid, Violation
from mobd_server.ids import ID_PATTERN, RESERVED_PREFIX
from mobd_server.machines.state import NOTHING, Definition, Profile
from mobd_server.services.documents import Notation, SyntaxFault, place, read, shown
from mobd_server.services.json_text import MAX_NESTING

MAX_LABELS: Final = 32
MAX_LABEL_BYTES: Final = 256
MAX_INTENTS: Final = 64
# A week.
MAX_RUN_TIMEOUT_S: Final = 604_800
# What nobody reads to the end need not be made.
MAX_DIAGNOSTICS: Final = 1_000

_ID_RULE: Final = (
    "must be 1 to 128 characters of A-Z a-z 0-9 . _ - that begin with a letter or a digit,"
    f" and must not begin with {RESERVED_PREFIX}"
)


class Diagnostic(Struct, frozen=True):
    """One finding: a stable code, what is wrong and what would be legal, a path into the document."""

    code: str
    message: str
    location: str
    severity: Literal["error", "warning"] = "error"


class Checked(Struct, frozen=True):
    """What became of a document: a definition unless there are errors among the diagnostics, errors first."""

    definition: Definition | None
    diagnostics: list[Diagnostic]

    @property
    def canonical(self) -> str:
        """The definition as it is stored; empty if there is none."""
        if self.definition is None:
            return ""
        return msgspec.json.encode(self.definition, order="deterministic").decode()

    def require(self) -> Definition:
        """Return the definition, or raise DefinitionInvalid with every error."""
        if self.definition is None:
            raise DefinitionInvalid(
                [Violation(d.location or "definition", d.message, d.code.upper()) for d in self.diagnostics]
            )
        return self.definition


def _not_reserved(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(RESERVED_PREFIX):
        raise ValueError(_ID_RULE)
    return value


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value.encode()) > MAX_LABEL_BYTES:
        raise ValueError(f"must be at most {MAX_LABEL_BYTES} bytes")
    return value


Name = Annotated[str, StringConstraints(pattern=ID_PATTERN), BeforeValidator(_not_reserved)]
LabelKey = Annotated[str, StringConstraints(min_length=1), BeforeValidator(_short)]
LabelValue = Annotated[str, BeforeValidator(_short)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=MAX_LABELS)]

_STRICT: Final = ConfigDict(extra="forbid", strict=True)


class ProfileDocument(BaseModel):
    """What a role is."""

    model_config = _STRICT

    role: Name | None = Field(None, description="The role; if it is given it must equal the profile's key.")
    instructions: str = Field("", description="What the agents that serve the role are told.")
    labels: Labels = Field({}, description="Labels of the profile.")
    context: Any = Field(None, description="Free JSON for the agents that serve the role.")
    silent_intents: Annotated[list[Name], Field(max_length=MAX_INTENTS)] = Field(
        [], description="Intents of peer requests that start no run by themselves: another input carries them along."
    )
    run_timeout_s: Annotated[int, Field(ge=0, le=MAX_RUN_TIMEOUT_S)] = Field(
        0,
        description="How long a run may take, in seconds, before it is cancelled and counts as failed; 0: no limit.",
    )


class DefinitionDocument(BaseModel):
    """A definition of a mob, version 1."""

    model_config = ConfigDict(**_STRICT, title="mobd definition")

    id: Name | None = Field(None, description="The name of the definition.")
    description: str = Field("", description="What the mob is for.")
    labels: Labels = Field({}, description="Labels that every mob of this definition carries.")
    profiles: Annotated[dict[Name, ProfileDocument], Field(min_length=1)] = Field(
        description="The roles, by name: at least one."
    )


def schema() -> dict[str, Any]:
    """Return the JSON Schema of definitions."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **DefinitionDocument.model_json_schema()}


def check(notation: Notation, text: str) -> Checked:
    """Check a document. It may take a while for a large one: call it in a thread."""
    try:
        value = read(notation, text)
    except SyntaxFault as fault:
        return Checked(None, [Diagnostic(fault.code, fault.message, fault.location)])
    errors = list(_not_json(value))[:MAX_DIAGNOSTICS]
    if errors:
        return Checked(None, errors)
    try:
        document = DefinitionDocument.model_validate(value)
    except ValidationError as invalid:
        found = [_diagnostic(error) for error in invalid.errors(include_url=False, include_context=True)]
        return Checked(None, found[:MAX_DIAGNOSTICS])
    errors = list(_other_roles(document))
    if errors:
        return Checked(None, errors)
    return Checked(_definition(document), list(_warnings(document)))


def _not_json(value: Any) -> Iterator[Diagnostic]:
    """Find what can't be stored as JSON, wherever it is."""
    pending: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while pending:
        value, path = pending.pop()
        if isinstance(value, str):
            if (wrong := _bad_text(value)) is not None:
                yield Diagnostic("bad_text", wrong, place(path))
        elif isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    yield Diagnostic("bad_key", f"the key {shown(key)!r} must be text: quote it", place(path))
                elif (wrong := _bad_text(key)) is not None:
                    yield Diagnostic("bad_key", f"a key {wrong}", place(path))
            pending += [(value[key], (*path, key)) for key in reversed(value)]
        elif isinstance(value, list):
            pending += [(value[index], (*path, index)) for index in reversed(range(len(value)))]
        elif value is not None and (not isinstance(value, bool | int | float) or value - value != 0):
            yield Diagnostic("not_json", f"{shown(value)} has no form in JSON: write it as text in quotes", place(path))
        if len(path) > MAX_NESTING:
            yield Diagnostic("too_deep", f"must nest at most {MAX_NESTING} levels deep", place(path[:3]))
            return


def _bad_text(text: str) -> str | None:
    if "\0" in text:
        return "must not contain U+0000"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "must not contain lone surrogates"
    return None


_LEGAL_KEYS: Final = {
    "definition": ", ".join(DefinitionDocument.model_fields),
    "profile": ", ".join(ProfileDocument.model_fields),
}
_MESSAGES: Final = {
    "missing": ("missing_key", "must be given"),
    "string_pattern_mismatch": ("bad_name", _ID_RULE),
    "string_type": ("wrong_type", "must be text; quote what only looks like a number or a truth value"),
    "dict_type": ("wrong_type", "must be a mapping of keys to values"),
    "model_type": ("wrong_type", "must be a mapping of keys to values"),
    "list_type": ("wrong_type", "must be a list"),
    "int_type": ("wrong_type", "must be a whole number"),
    "greater_than_equal": ("out_of_range", f"must be from 0 to {MAX_RUN_TIMEOUT_S}"),
    "less_than_equal": ("out_of_range", f"must be from 0 to {MAX_RUN_TIMEOUT_S}"),
    "string_too_short": ("bad_label", "must not be empty"),
}


def _diagnostic(error: ErrorDetails) -> Diagnostic:
    path = tuple(part for part in error["loc"] if part != "[key]")
    location, kind = place(path), error["type"]
    if kind == "extra_forbidden":
        legal = _LEGAL_KEYS["profile" if len(path) == 3 else "definition"]
        return Diagnostic("unknown_key", f"unknown key {shown(path[-1])!r}: legal are {legal}", location)
    if kind == "too_short":
        return Diagnostic("no_profiles", "must have at least one profile", location)
    if kind == "too_long" and path[-1] == "silent_intents":
        return Diagnostic("too_many_intents", f"must have at most {MAX_INTENTS} intents", location)
    if kind == "too_long":
        return Diagnostic("too_many_labels", f"must have at most {MAX_LABELS} labels", location)
    if kind == "value_error":
        code = "bad_name" if _ID_RULE in error["msg"] else "bad_label"
        return Diagnostic(code, error["msg"].removeprefix("Value error, "), location)
    code, message = _MESSAGES.get(kind, ("invalid", error["msg"]))
    return Diagnostic(code, message, location)


def _other_roles(document: DefinitionDocument) -> Iterator[Diagnostic]:
    for name, profile in document.profiles.items():
        if profile.role is not None and profile.role != name:
            yield Diagnostic(
                "role_mismatch",
                f"must be {name!r}, the key of the profile, or be left out",
                place(("profiles", name, "role")),
            )


def _warnings(document: DefinitionDocument) -> Iterator[Diagnostic]:
    for name, profile in document.profiles.items():
        if not profile.instructions.strip():
            yield Diagnostic(
                "empty_instructions",
                "the profile has no instructions: its agents are told nothing about their role",
                place(("profiles", name, "instructions")),
                "warning",
            )


def _definition(document: DefinitionDocument) -> Definition:
    return Definition(
        id=document.id or "",
        description=document.description,
        labels=document.labels,
        profiles={name: _profile(name, profile) for name, profile in sorted(document.profiles.items())},
    )


def _profile(name: str, profile: ProfileDocument) -> Profile:
    context = NOTHING
    if profile.context is not None:
        context = Raw(msgspec.json.encode(profile.context, order="deterministic"))
    return Profile(name, profile.instructions, profile.labels, context, profile.silent_intents, profile.run_timeout_s)
