"""What a definition may say, in three notations, and what is said of one that says more."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobd_server.errors import DefinitionInvalid
from mobd_server.machines.state import Definition
from mobd_server.services.definitions import MAX_DIAGNOSTICS, Checked, check, schema
from mobd_server.services.documents import MAX_SHOWN, Notation

GOOD = {
    "json": """{"id": "triage", "description": "reads logs", "labels": {"team": "qa"},
        "profiles": {"lead": {"instructions": "merge", "context": {"n": 12345678901234567890123, "x": [1.5, null]}},
                     "analyst": {"role": "analyst", "instructions": "count", "labels": {"k": "v"},
                                 "silent_intents": ["status.ping"], "run_timeout_s": 90}}}""",
    "yaml": """
id: triage
description: reads logs
labels: {team: qa}
profiles:
  analyst: {role: analyst, instructions: count, labels: {k: v}, silent_intents: [status.ping], run_timeout_s: 90}
  lead:
    instructions: merge
    context: {n: 12345678901234567890123, x: [1.5, null]}
""",
    "toml": """
id = "triage"
description = "reads logs"
[labels]
team = "qa"
[profiles.lead]
instructions = "merge"
[profiles.lead.context]
n = 12345678901234567890123
x = [1.5]
[profiles.analyst]
role = "analyst"
instructions = "count"
labels = {k = "v"}
silent_intents = ["status.ping"]
run_timeout_s = 90
""",
}


def only(checked: Checked) -> tuple[str, str]:
    (diagnostic,) = checked.diagnostics
    assert checked.definition is None
    assert diagnostic.severity == "error"
    return diagnostic.code, diagnostic.location


@pytest.mark.parametrize("notation", ["json", "yaml", "toml"])
def test_the_same_definition_in_each_notation(notation: Notation) -> None:
    checked = check(notation, GOOD[notation])
    assert checked.diagnostics == []
    expected = check("json", GOOD["json"]).canonical
    assert checked.canonical == (expected if notation != "toml" else expected.replace("[1.5,null]", "[1.5]"))


def test_what_is_stored_is_read_back_the_same() -> None:
    checked = check("json", GOOD["json"])
    assert checked.definition is not None
    again = msgspec.json.decode(checked.canonical, type=Definition)
    assert msgspec.json.encode(again, order="deterministic").decode() == checked.canonical
    assert check("json", checked.canonical).canonical == checked.canonical
    assert again.profiles["lead"].role == "lead"
    assert (again.profiles["lead"].silent_intents, again.profiles["lead"].run_timeout_s) == ([], 0)
    assert again.profiles["analyst"].silent_intents == ["status.ping"]
    assert again.profiles["analyst"].run_timeout_s == 90


@pytest.mark.parametrize(
    ("document", "code", "location", "says"),
    [
        ("{}", "missing_key", "profiles", "must be given"),
        ('{"profiles": {}}', "no_profiles", "profiles", "at least one"),
        ("[]", "wrong_type", "", "mapping"),
        ('{"profiles": {"a": {"instructions": "i", "rol": 1}}}', "unknown_key", "profiles.a.rol", "role, instructions"),
        ('{"profiles": {"a": {}}, "flows": {}}', "unknown_key", "flows", "id, description, labels, profiles"),
        ('{"profiles": {"a b": {}}}', "bad_name", 'profiles["a b"]', "A-Z"),
        ('{"profiles": {"a": {"silent_intents": "x"}}}', "wrong_type", "profiles.a.silent_intents", "a list"),
        ('{"profiles": {"a": {"silent_intents": ["a b"]}}}', "bad_name", "profiles.a.silent_intents[0]", "A-Z"),
        (
            '{"profiles": {"a": {"silent_intents": [' + ", ".join(['"i"'] * 65) + "]}}}",
            "too_many_intents",
            "profiles.a.silent_intents",
            "at most 64",
        ),
        ('{"profiles": {"a": {"run_timeout_s": "9"}}}', "wrong_type", "profiles.a.run_timeout_s", "whole number"),
        ('{"profiles": {"a": {"run_timeout_s": true}}}', "wrong_type", "profiles.a.run_timeout_s", "whole number"),
        ('{"profiles": {"a": {"run_timeout_s": -1}}}', "out_of_range", "profiles.a.run_timeout_s", "604800"),
        ('{"profiles": {"a": {"run_timeout_s": 604801}}}', "out_of_range", "profiles.a.run_timeout_s", "604800"),
        (
            '{"profiles": {"a": {"run_timeout_s": ' + "9" * 30 + "}}}",
            "out_of_range",
            "profiles.a.run_timeout_s",
            "604800",
        ),
        ('{"profiles": {"__flow_a": {}}}', "bad_name", "profiles.__flow_a", "__flow_"),
        ('{"profiles": {"a": {"role": "b"}}}', "role_mismatch", "profiles.a.role", "'a'"),
        ('{"profiles": {"a": 1}}', "wrong_type", "profiles.a", "mapping"),
        ('{"profiles": {"a": {"instructions": 1}}}', "wrong_type", "profiles.a.instructions", "text"),
        ('{"profiles": {"a": {}}, "id": "a b"}', "bad_name", "id", "A-Z"),
        ('{"profiles": {"a": {"labels": {"k": 1}}}}', "wrong_type", "profiles.a.labels.k", "text"),
        ('{"profiles": {"a": {"labels": {"": "v"}}}}', "bad_label", 'profiles.a.labels[""]', "empty"),
        ('{"profiles": {"a": {}}, "labels": {"k": "%s"}}' % ("é" * 129), "bad_label", "labels.k", "256 bytes"),
        ('{"profiles": {"a": {"context": ["\\u0000"]}}}', "bad_text", "profiles.a.context[0]", "U+0000"),
        ('{"profiles": {"a": {"context": "\\ud800"}}}', "bad_text", "profiles.a.context", "surrogates"),
        ('{"profiles": {"a": {"context": 1e999}}}', "not_json", "profiles.a.context", "no form in JSON"),
        ('{"profiles": {"a": {}, "a": {}}}', "duplicate_key", "a", "'a'"),
        ('{"profiles": {"a": {"context": NaN}}}', "syntax", "", "NaN"),
        ('{"profiles": ', "syntax", "line 1, column 14", "not JSON"),
        ('{"profiles": {"a": {"context": ' + "[" * 130 + "]" * 130 + "}}}", "too_deep", "profiles.a.context…", "128"),
        ("[" * 100_000, "too_deep", "", "128"),
        ("1" * 5_000, "syntax", "", "digits"),
    ],
)
def test_json_that_is_refused(document: str, code: str, location: str, says: str) -> None:
    checked = check("json", document)
    assert only(checked) == (code, location.rstrip("…"))
    assert says in checked.diagnostics[0].message


@pytest.mark.parametrize(
    ("document", "code", "location"),
    [
        ("a: &x 1", "yaml_alias", "line 1, column 4"),
        ("a: *x", "yaml_alias", "line 1, column 4"),
        ("a: !!python/object:os.system 1", "yaml_tag", "line 1, column 4"),
        ("a: !!binary aGk=", "yaml_tag", "line 1, column 4"),
        ("a: 1\na: 2", "duplicate_key", "line 2, column 1"),
        ("{[a]: 1}", "bad_key", "line 1, column 2"),
        ("profiles: {1: {}}", "bad_key", "profiles"),
        ("<<: {profiles: {a: {}}}\nprofiles: {a: {}}", "unknown_key", '["<<"]'),
        ("--- {}\n--- {}", "syntax", "line 2, column 1"),
        ("a: [", "syntax", "line 2, column 1"),
        ("a: \0", "syntax", ""),
        ("[" * 100_000, "too_deep", "line 1, column 129"),
        ("a: " + "1" * 5_000, "syntax", ""),
        ("", "wrong_type", ""),
    ],
)
def test_yaml_that_is_refused(document: str, code: str, location: str) -> None:
    assert only(check("yaml", document)) == (code, location)


@pytest.mark.parametrize("word", ["no", "yes", "on", "2024-01-01", "1:30", "010", "0x1F", "1_000", ".5", ".inf"])
def test_yaml_words_stay_what_they_seem(word: str) -> None:
    checked = check("yaml", f"profiles: {{a: {{instructions: {word}}}}}")
    assert checked.definition is not None
    assert checked.definition.profiles["a"].instructions == word


@pytest.mark.parametrize(
    ("document", "code", "location"),
    [
        ("[profiles.a]\ncontext = 1979-05-27", "not_json", "profiles.a.context"),
        ("[profiles.a]\ncontext = inf", "not_json", "profiles.a.context"),
        ("a = 1\na = 2", "syntax", ""),
        ("x = " + "[" * 10_000, "too_deep", ""),
        ("x = " + "[" * 200, "too_deep", ""),
        ("x = " + "{a=" * 10_000, "too_deep", ""),
        ("a." * 5_000 + "a = 1", "too_deep", ""),
        ("a = 1\n[" + "a . " * 5_000 + "a]", "too_deep", ""),
        ("[[" + "'a'.\"a\"." * 2_500 + "a]]", "too_deep", ""),
        ("x = [{" + "a." * 5_000 + "a = 1}]", "too_deep", ""),
        ('profiles.a.instructions = "\\""\n' + "a." * 5_000 + "a = 1", "too_deep", ""),
        ('profiles.a.instructions = """\\""" """""\n' + "a." * 5_000 + "a = 1", "too_deep", ""),
        ("profiles.a.instructions = '\\'\n" + "a." * 5_000 + "a = 1", "too_deep", ""),
        ("profiles.a.context = " + "[" * 127 + "]" * 127, "too_deep", "profiles.a.context"),
        ("profiles.a.context." + "a." * 125 + "a = 1", "too_deep", "profiles.a.context"),
    ],
)
def test_toml_that_is_refused(document: str, code: str, location: str) -> None:
    assert only(check("toml", document)) == (code, location)


DEEP = "[{." * 200


@pytest.mark.parametrize(
    "document",
    [
        f"a.instructions = '{DEEP}'",
        f'a.instructions = "{DEEP}\\"{DEEP}"',
        f"a.instructions = '''{DEEP}''\n'{DEEP}'''",
        f"a.instructions = '''{DEEP}'''''  # {DEEP}",
        f'a.instructions = """{DEEP}\\"""{DEEP}""\\\n{DEEP}"""""',
        f"# {DEEP}\na.instructions = ''",
        f"a.context = {[[[1.5, 2.5], {}, []]] * 200}",
        "a.context = " + "[" * 126 + "]" * 126,
        "a.context." + "a." * 124 + "a = 1",
        "a.context = {" + ", ".join(f"k{i}.a.b.c = 1.5" for i in range(200)) + "}",
        "\n".join(f"a.context.k{i}.a.b.c = 1.5" for i in range(200)),
        "a.context.k = [" + "1.5, " * 200 + "\n" + "1.5,\n" * 200 + "]",
    ],
)
def test_toml_that_only_looks_deep(document: str) -> None:
    assert {one.code for one in check("toml", f"[profiles]\n{document}").diagnostics} <= {"empty_instructions"}


@pytest.mark.parametrize("end", ['"""', "'''", '"', "'", '"""\\', '"""\\"', "#", "["])
def test_toml_that_breaks_off_is_read_once(end: str) -> None:
    assert only(check("toml", f"a = {end}" + '\\"""\\' * 100_000)) == ("syntax", "")


def test_all_errors_are_said_at_once_and_become_violations() -> None:
    checked = check("json", '{"extra": 1, "profiles": {"a": {"x": 1}, "b c": {}}}')
    assert [d.code for d in checked.diagnostics] == ["unknown_key", "bad_name", "unknown_key"]
    with pytest.raises(DefinitionInvalid) as refused:
        checked.require()
    assert [(v.field, v.code) for v in refused.value.violations] == [
        ("profiles.a.x", "UNKNOWN_KEY"),
        ('profiles["b c"]', "BAD_NAME"),
        ("extra", "UNKNOWN_KEY"),
    ]


def test_a_profile_without_instructions_is_worth_a_warning() -> None:
    checked = check("json", '{"profiles": {"a": {}}}')
    assert checked.definition is not None
    assert [(d.code, d.location, d.severity) for d in checked.diagnostics] == [
        ("empty_instructions", "profiles.a.instructions", "warning")
    ]


def test_what_is_said_is_bounded() -> None:
    checked = check("json", json.dumps({"profiles": {"a": {("k" * 10_000 + str(i)): 1 for i in range(2_000)}}}))
    assert len(checked.diagnostics) == MAX_DIAGNOSTICS
    assert all(len(d.message) + len(d.location) < 4 * MAX_SHOWN for d in checked.diagnostics)


@given(st.sampled_from(["json", "yaml", "toml"]), st.text())
def test_no_text_is_a_bug(notation: Notation, text: str) -> None:
    checked = check(notation, text)
    assert checked.definition is not None or checked.diagnostics


def test_the_schema_names_every_key() -> None:
    found = schema()
    assert set(found["properties"]) == {"id", "description", "labels", "profiles"}
    assert found["additionalProperties"] is False
    json.dumps(found)
