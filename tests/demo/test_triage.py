"""The work of the demo's agents, without any server: what is counted, and that no cut changes it."""

import json
import random
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make_log
import triage


def analyse_in_chunks(text: str, limit: int) -> list[triage.Part]:
    stamped = triage.is_stamped(triage.lines_of(text)[:200])
    return [triage.analyse(chunk, first, stamped=stamped) for first, chunk in triage.split(text, limit)]


def facts(part: triage.Part) -> list[tuple[Any, ...]]:
    return sorted((one["level"], one["component"], one["count"], one["line"]) for one in part["groups"])


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_equal_those_that_were_drawn(seed: int) -> None:
    log, truth = make_log.make(seed, 3_000)
    whole = triage.merge(analyse_in_chunks(log, 20_000))
    assert whole["last_line"] == truth["lines"]
    assert whole["records"] == truth["records"]
    assert facts(whole) == sorted((g["level"], g["component"], g["count"], g["first_line"]) for g in truth["groups"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), limit=st.integers(300, 20_000), order=st.randoms(use_true_random=False))
def test_no_cut_and_no_order_of_merging_changes_the_report(seed: int, limit: int, order: random.Random) -> None:
    log, _ = make_log.make(seed, 200)
    parts = analyse_in_chunks(log, limit)
    uncut = triage.analyse(log, 1, stamped=True)
    at = order.randint(1, len(parts))
    halves = [half + half[-1:] for half in (parts[at:], parts[:at]) if half]
    for half in halves:
        order.shuffle(half)
    assert triage.report(triage.merge(triage.merge(half) for half in halves)) == triage.report(uncut)


@pytest.mark.parametrize(
    ("line", "stamped", "expected"),
    [
        ("2025-03-04T09:12:33.120Z ERROR billing: charge 7 failed", True, ("error", "billing", "charge 7 failed")),
        ("2025-03-04 09:12:33,120 [billing] WARNING: slow", True, ("warning", "billing", "slow")),
        ("Mar  4 09:12:33 web-1 sshd[412]: error: no key", True, ("error", "sshd", "no key")),
        ("[04/Mar/2025:09:12:33 +0000] fatal disk full", True, ("critical", "", "disk full")),
        ('{"time": "t", "level": "warn", "logger": "db", "msg": "slow"}', False, ("warning", "db", "slow")),
        ("WARN disk almost full", False, ("warning", "", "disk almost full")),
        ("nothing that we know", False, ("unknown", "", "nothing that we know")),
        ("2025-03-04 09:12:33 status libgpg-error-dev:amd64", True, ("unknown", "", "status libgpg-error-dev:amd64")),
    ],
)
def test_lines_of_many_kinds_are_read(line: str, stamped: bool, expected: tuple[str, str, str]) -> None:
    record = triage.parse(line, stamped=stamped)
    assert record is not None
    assert (record.level, record.component, record.message) == expected


@pytest.mark.parametrize("line", ["", "   at org.example.Main(Main.java:7)", "ValueError: no"])
def test_a_line_without_a_time_continues_the_record_before_it(line: str) -> None:
    assert triage.parse(line, stamped=True) is None


def test_numbers_ids_and_addresses_do_not_part_messages() -> None:
    one = triage.signature("order 17 for 8f3a21bb-1234-4abc-9def-aaaaaaaaaaaa at 10.0.0.1:80 took 3.5ms (0xbeef1)")
    two = triage.signature("order 9 for beadfeed-face-4abc-9def-bbbbbbbbbbbb at 10.2.0.14:8080 took 12ms (0x77)")
    assert one == two == "order <*> for <*> at <*> took <*> (<*>)"


def test_a_log_in_which_no_line_is_like_another_stays_small_and_says_what_it_left_out() -> None:
    draw = random.Random(1)
    text = "\n".join("".join(draw.choices(string.ascii_letters, k=60)) for _ in range(6_000)) + "\n"
    parts = [part for part in triage.shrink(analyse_in_chunks(text, 4_096)) if part]
    assert triage.size(parts) <= 1 << 20
    whole = triage.merge(parts)
    assert triage.size(whole) <= triage.PART_BYTES
    assert sum(one["count"] for one in whole["groups"]) + whole["left_out"]["records"] == whole["records"] == 6_000
    assert "left out" in triage.report(whole)


def test_a_chunk_never_exceeds_its_limit_and_an_endless_line_is_cut() -> None:
    text = "a\n" + "é" * 5_000 + "\nb\r\u2028\n\nlast"
    chunks = list(triage.split(text, 1_000))
    assert all(len(chunk.encode()) <= 1_000 for _, chunk in chunks)
    assert sum(len(triage.lines_of(chunk)) for _, chunk in chunks) == 5
    assert json.loads(json.dumps(chunks))[-1][1].endswith("last\n")
