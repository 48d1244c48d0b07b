from __future__ import annotations

import pytest

from llmosd.system.kernel import Kernel, Limits
from llmosd.system.pages import UNUSED, PagePool, PageTable
from llmosd.system.policy.fcfs import Fcfs
from llmosd.system.prefix_cache import PrefixCache
from llmosd.types import PageCopy


def make_table(pages: int = 8, rows: int = 3, columns: int = 4, page_tokens: int = 4) -> PageTable:
    return PageTable(PagePool(pages, PrefixCache(page_tokens, b"")), rows, columns, page_tokens)


def row_of(table: PageTable, row: int) -> list[int]:
    return table.entries[row * table.columns : (row + 1) * table.columns].tolist()


def test_a_promise_keeps_pages_from_others() -> None:
    pool = PagePool(4, PrefixCache(4, b""))
    pool.reserve(3)
    assert (pool.free, pool.available) == (4, 1)
    with pytest.raises(AssertionError, match="2 pages promised of 1"):
        pool.reserve(2)
    pool.unreserve(3)
    assert pool.available == 4
    with pytest.raises(AssertionError):
        pool.unreserve(1)


def test_a_page_is_free_when_its_last_reference_goes() -> None:
    pool = PagePool(2, PrefixCache(4, b""))
    page = pool.draw()
    pool.share(page)
    assert (pool.used, pool.shared) == (1, 1)
    pool.drop(page)
    assert (pool.used, pool.shared) == (1, 0)
    pool.drop(page)
    assert (pool.used, pool.free) == (0, 2)
    pool.check()


def test_extend_draws_exactly_the_missing_pages() -> None:
    table = make_table()
    row = table.take_row()
    for past, end, drawn in [(0, 3, 1), (3, 4, 0), (4, 5, 1), (5, 16, 2)]:
        assert table.needed(row, past, end) == drawn
        assert table.extend(row, past, end) == []
        table.check()
    assert UNUSED not in row_of(table, row)
    table.release(row)
    assert row_of(table, row) == [UNUSED] * 4
    table.check()


def test_fork_shares_all_and_copies_only_the_partial_page() -> None:
    table = make_table()
    rows = [table.take_row() for _ in range(3)]
    table.extend(rows[0], 0, 6)
    full, partial = row_of(table, rows[0])[:2]
    for row in rows[1:]:
        table.fork(rows[0], row)
    assert (table.pool.used, table.pool.shared) == (2, 2)

    [first] = table.extend(rows[0], 6, 7)
    [second] = table.extend(rows[2], 6, 7)
    assert first.source == second.source == partial
    assert table.extend(rows[1], 6, 7) == [], "the last one to refer to a page writes in place"
    assert [row_of(table, row)[:2] for row in rows] == [[full, first.target], [full, partial], [full, second.target]]
    assert (table.pool.used, table.pool.shared) == (4, 1)
    table.check()

    for row, left in zip(rows, (3, 2, 0), strict=True):
        table.release(row)
        assert table.pool.used == left
    table.check()


def test_fork_at_a_page_border_copies_nothing() -> None:
    table = make_table()
    source, target = table.take_row(), table.take_row()
    table.extend(source, 0, 8)
    table.fork(source, target)
    assert table.needed(target, 8, 9) == 1
    assert table.extend(target, 8, 9) == []
    assert table.extend(source, 8, 9) == []
    assert row_of(table, source)[:2] == row_of(table, target)[:2]
    assert row_of(table, source)[2] != row_of(table, target)[2]
    table.check()


def test_a_copy_goes_before_the_pages_drawn_with_it() -> None:
    table = make_table()
    source, target = table.take_row(), table.take_row()
    table.extend(source, 0, 5)
    table.fork(source, target)
    assert table.needed(target, 5, 12) == 2
    [copy] = table.extend(target, 5, 12)
    assert copy == PageCopy(row_of(table, source)[1], row_of(table, target)[1])
    assert table.pages(target) == 3
    table.check()


def test_the_kernel_hands_out_one_flat_array_as_wide_as_the_context() -> None:
    kernel = Kernel(Limits(slots=3, token_budget=3, queue_limit=1, context=9, page_tokens=4, pages=5), Fcfs())
    assert (kernel.rows, kernel.columns) == (3, 3)
    assert list(memoryview(kernel.page_table)) == [UNUSED] * 9


@pytest.mark.parametrize("damage", ["leak", "stray entry", "double free", "lost row"])
def test_check_notices_damage(damage: str) -> None:
    table = make_table()
    row = table.take_row()
    table.extend(row, 0, 5)
    match damage:
        case "leak":
            table.pool.draw()
        case "stray entry":
            table.entries[row * table.columns + 3] = 0
        case "double free":
            table.pool.drop(table.entries[row * table.columns])
        case "lost row":
            table.release(row)
            table._free_rows.append(row)
    with pytest.raises(AssertionError):
        table.check()


def test_a_pool_that_shrinks_moves_what_it_can_and_gives_the_rest_back_when_its_users_leave() -> None:
    table = make_table(pages=8)
    gone, low, high = table.take_row(), table.take_row(), table.take_row()
    table.extend(gone, 0, 4)
    table.extend(low, 0, 8)
    table.extend(high, 0, 12)
    table.release(gone)
    pool = table.pool
    [copy] = table.resize(3)
    assert (copy.source, copy.target) == (5, 0), "from the end of the pool"
    assert row_of(table, high)[:3] == [3, 4, 0]
    assert (pool.total, pool.free, pool.used, pool.beyond, pool.extent) == (3, 0, 5, 2, 5)
    assert not pool.can_move
    table.check()
    table.release(high)
    assert (pool.free, pool.used, pool.beyond, pool.extent) == (1, 2, 0, 3)
    table.check()
    pool.resize(8)
    assert (pool.free, pool.used, pool.extent) == (6, 2, 8)
    table.check()


def test_a_shared_page_moves_once_and_all_that_refer_to_it_follow() -> None:
    table = make_table(pages=8)
    gone, source, target = table.take_row(), table.take_row(), table.take_row()
    table.extend(gone, 0, 12)
    table.extend(source, 0, 6)
    table.fork(source, target)
    table.release(gone)
    copies = table.resize(3)
    assert {copy.source for copy in copies} == {3, 4}
    assert row_of(table, source) == row_of(table, target)
    assert (table.pool.used, table.pool.shared, table.pool.extent) == (2, 2, 3)
    table.check()
    [copy] = table.extend(target, 6, 7)
    assert copy.source == row_of(table, source)[1], "it is copied when it is written to, as before"
    table.check()


def test_promised_and_pinned_pages_are_left_alone() -> None:
    table = make_table(pages=8)
    gone, row = table.take_row(), table.take_row()
    table.extend(gone, 0, 8)
    table.extend(row, 0, 8)
    table.release(gone)
    pool = table.pool
    pool.reserve(1)
    pool.pin(3)
    assert [(copy.source, copy.target) for copy in table.resize(2)] == [(2, 0)]
    assert (pool.available, pool.beyond) == (0, 1)
    pool.unreserve(1)
    assert not pool.can_move, "a transfer uses it"
    pool.unpin(3)
    assert pool.can_move
    assert [(copy.source, copy.target) for copy in table.resize(2)] == [(3, 1)]
    assert (pool.beyond, pool.extent) == (0, 2)
    table.check()


def test_a_pool_keeps_the_pages_that_are_promised() -> None:
    pool = make_table(pages=8).pool
    pool.reserve(5)
    pool.resize(2)
    assert (pool.total, pool.available) == (5, 0)
    pool.check()


def test_cached_pages_beyond_a_pools_size_are_forgotten_with_those_that_follow_them() -> None:
    cache = PrefixCache(4, b"")
    pool = PagePool(6, cache)
    first, second, third = (pool.draw() for _ in range(3))
    parent = cache.root("")
    for page in (second, third, first):  # the last one, of the lowest number, hangs on those before it
        parent = cache.insert(parent, bytes(16), page)
    for page in (first, second, third):
        pool.drop(page)
    assert (pool.free, cache.idle) == (6, 3)
    assert pool.resize(2) == {}, "there is no blank one"
    assert (pool.free, cache.idle) == (2, 1)
    assert pool.extent == 2
    pool.check()


def test_cached_pages_move_to_blank_ones_the_first_before_those_that_follow() -> None:
    cache = PrefixCache(4, b"")
    pool = PagePool(6, cache)
    drawn = [pool.draw() for _ in range(6)]
    parent, chain = cache.root(""), [5, 2, 4]
    for page in chain:
        parent = cache.insert(parent, bytes(16), page)
    for page in drawn:
        pool.drop(page)
    assert pool.resize(2) == {5: 0, 2: 1}
    assert (pool.free, cache.idle) == (2, 2), "what follows and found no place is gone"
    pool.check()
    assert pool.draw() != pool.draw()
    pool.check()


def test_a_cached_page_beyond_stays_while_one_that_follows_it_is_in_use() -> None:
    cache = PrefixCache(4, b"")
    pool = PagePool(4, cache)
    child, parent = pool.draw(), pool.draw()
    cache.insert(cache.insert(cache.root(""), bytes(16), parent), bytes(16), child)
    pool.drop(parent)
    pool.resize(1)
    assert (pool.free, pool.extent) == (0, 2)
    pool.check()
    pool.drop(child)
    pool.sweep()
    assert (pool.free, pool.extent) == (1, 1)
    pool.check()
