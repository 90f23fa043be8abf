"""Operations: one row each, written again with every change, and listed by name or by the order of their ends."""

import pytest
from tests.stores.conftest import Backend
from tests.support.authors import Author

from mobd_server.machines.records import Append, OperationRow

pytestmark = pytest.mark.asyncio


def operation(
    name: str, number: int, status: str = "running", completion_seq: int | None = None, **more: str | None
) -> OperationRow:
    known: dict[str, str | None] = {"kind": "background_tool", "member_id": None, "owner": "", **more}
    return OperationRow(
        operation_id=f"op-{number}",
        kind=str(known["kind"]),
        member_id=known["member_id"],
        owner=str(known["owner"]),
        status=status,
        display_name=name,
        created_seq=number,
        updated_seq=number,
        completion_seq=completion_seq,
        snapshot=f'{{"status":"{status}"}}',
    )


def with_operations(author: Author, input_id: str, *rows: OperationRow) -> Append:
    append = author.deliver("a", input_id)
    append.operations = list(rows)
    return append


async def _created(backend: Backend, author: Author) -> None:
    group = author.create("a")
    for append in group:
        # Without the operation that a member's life is.
        append.operations = []
    assert set(await backend.fates(*group)) == {"committed"}


async def test_an_operation_is_stored_with_its_event_or_not_at_all(backend: Backend) -> None:
    author = Author("m")
    await backend.fates(*author.create("a"))
    append = with_operations(author, "i1", operation("tool", 1))
    await backend.store.acquire("m")
    assert await backend.fates(append) == ["fenced"]
    assert await backend.store.read_operation("m", "op-1") is None
    append.epoch = 2
    assert await backend.fates(append) == ["committed"]
    assert await backend.store.read_operation("m", "op-1") == operation("tool", 1)
    assert await backend.store.read_operation("other", "op-1") is None


async def test_the_last_write_of_a_group_and_of_all_groups_counts(backend: Backend) -> None:
    author = Author("m")
    await _created(backend, author)
    first = with_operations(author, "i1", operation("tool", 1))
    second = with_operations(author, "i2", operation("tool", 1, "retiring"))
    assert set(await backend.fates(first, second)) == {"committed"}
    assert await backend.store.read_operation("m", "op-1") == operation("tool", 1, "retiring")
    ended = operation("tool", 1, "completed", 1, member_id="a")
    assert await backend.fates(with_operations(author, "i3", ended)) == ["committed"]
    assert await backend.store.read_operation("m", "op-1") == ended


async def test_operations_are_listed_by_name_and_id_in_pages(backend: Backend) -> None:
    author = Author("m")
    await _created(backend, author)
    # By code point: capitals first, and what is beyond ASCII last.
    names = ["é", "b", "a", "b", "B"]
    await backend.fates(with_operations(author, "i1", *[operation(name, at) for at, name in enumerate(names)]))
    found = [(row.display_name, row.operation_id) for row in await backend.store.list_operations("m", None, 10)]
    assert found == [("B", "op-4"), ("a", "op-2"), ("b", "op-1"), ("b", "op-3"), ("é", "op-0")]
    pages: list[list[str]] = []
    after: tuple[str, str] | None = None
    while page := await backend.store.list_operations("m", after, 2):
        pages.append([row.operation_id for row in page])
        after = (page[-1].display_name, page[-1].operation_id)
    assert pages == [["op-4", "op-2"], ["op-1", "op-3"], ["op-0"]]


async def test_operations_are_listed_by_what_they_are(backend: Backend) -> None:
    author = Author("m")
    await _created(backend, author)
    rows = [
        operation("a", 1, kind="mob_member_child", member_id="x"),
        operation("b", 2, owner="x"),
        operation("c", 3, "completed", 1),
    ]
    await backend.fates(with_operations(author, "i1", *rows))
    store = backend.store
    assert await store.list_operations("m", None, 10, member_id="x") == rows[:1]
    assert await store.list_operations("m", None, 10, owner="x") == rows[1:2]
    assert await store.list_operations("m", None, 10, owner="") == [rows[0], rows[2]]
    assert await store.list_operations("m", None, 10, kind="background_tool") == rows[1:]
    assert await store.list_operations("m", None, 10, kind="background_tool", status="completed") == rows[2:]


async def test_completions_come_in_the_order_in_which_operations_ended(backend: Backend) -> None:
    author = Author("m")
    await _created(backend, author)
    rows = [operation("a", 1, "completed", 3), operation("b", 2), operation("c", 3, "failed", 1)]
    await backend.fates(with_operations(author, "i1", *rows, operation("d", 4, "completed", 2)))

    async def seqs(after: int, limit: int) -> list[int | None]:
        return [row.completion_seq for row in await backend.store.list_completions("m", after, limit)]

    assert await seqs(0, 10) == [1, 2, 3]
    assert await seqs(1, 1) == [2]
    assert await seqs(3, 10) == []
