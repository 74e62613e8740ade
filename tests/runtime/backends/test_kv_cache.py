import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piston.core.bundle.interface import CacheSpec, cross_states
from piston.core.errors import HostMemoryError, MisuseError, PromptTooLongError
from piston.runtime.backends.cross_states import CrossStates, Sources
from piston.runtime.backends.kv_cache import KVCache, Move

SPEC = CacheSpec.of(num_layers=2, num_kv_heads=3, head_dim=4, dtype="float32")


@pytest.fixture
def cache():
    return KVCache(SPEC, num_slots=4, capacity=8)


def filled(cache, *lengths):
    for length in lengths:
        cache.advance(cache.admit(), length)
    return cache


def test_there_is_a_key_and_a_value_array_for_each_layer(cache):
    assert [array.shape for array in cache.arrays] == [(4, 3, 8, 4)] * 4


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_an_item_is_as_wide_as_the_cache_type(dtype, item):
    spec = CacheSpec.of(num_layers=1, num_kv_heads=1, head_dim=1, dtype=dtype)
    assert KVCache(spec, 1, 1).arrays[0].itemsize == item


def test_admit_gives_the_lowest_free_slot(cache):
    assert [cache.admit() for _ in range(3)] == [0, 1, 2]
    cache.release(2)
    cache.release(0)
    assert cache.admit() == 0


def test_admit_beyond_the_last_slot_names_their_number(cache):
    filled(cache, 0, 0, 0, 0)
    with pytest.raises(MisuseError, match="All 4 slots are taken"):
        cache.admit()


def test_num_free_counts_slots_that_admit_can_give(cache):
    cache.admit()
    slot = cache.admit()
    assert cache.num_free == 2
    cache.release(slot)
    assert cache.num_free == 3


def test_release_empties_its_slot_and_no_other(cache):
    filled(cache, 3, 5)
    cache.release(0)
    assert cache.lengths.tolist() == [0, 5, 0, 0]


def test_a_slot_is_not_released_twice(cache):
    slot = cache.admit()
    cache.release(slot)
    with pytest.raises(MisuseError, match="Slot 0 is not in use"):
        cache.release(slot)
    assert cache.num_free == 4


@pytest.mark.parametrize("slot", [-1, 4, 1])
def test_slots_that_are_not_admitted_cannot_be_used(cache, slot):
    cache.admit()
    for use in (
        cache.release,
        lambda s: cache.rewind(s, 0),
        lambda s: cache.reserve(s, 1),
        lambda s: cache.spans([s]),
        lambda s: cache.gather([s]),
    ):
        with pytest.raises(MisuseError, match=f"Slot {slot} is not in use"):
            use(slot)


def test_rewind_shortens_its_slot_and_no_other(cache):
    filled(cache, 6, 5)
    cache.rewind(0, 2)
    assert cache.lengths.tolist() == [2, 5, 0, 0]


@pytest.mark.parametrize("length", [-1, 7])
def test_rewind_refuses_to_go_forward_or_below_zero(cache, length):
    filled(cache, 6)
    with pytest.raises(MisuseError, match=f"holds 6 positions; it cannot be rewound to {length}"):
        cache.rewind(0, length)
    assert cache.lengths[0] == 6


def test_reserve_allows_exactly_the_capacity(cache):
    filled(cache, 5)
    cache.reserve(0, 3)
    with pytest.raises(PromptTooLongError, match="need 9 positions, but the cache holds 8"):
        cache.reserve(0, 4)


def test_spans_bridge_idle_rows(cache):
    filled(cache, 2, 3, 0, 1)
    assert cache.spans([0, 2]) == [(0, 3)]


def test_spans_never_include_a_full_idle_row(cache):
    filled(cache, 2, 8, 2, 2)
    assert cache.spans([0, 2, 3]) == [(0, 1), (2, 4)]


def test_spans_do_not_reach_beyond_the_rows_that_were_asked_for(cache):
    filled(cache, 1, 1, 1, 1)
    assert cache.spans([1, 2]) == [(1, 3)]


def test_spans_do_not_depend_on_the_order_of_slots(cache):
    filled(cache, 1, 8, 1, 1)
    assert cache.spans([3, 0, 2]) == cache.spans([0, 2, 3])


@pytest.mark.parametrize("full", range(16))
@pytest.mark.parametrize("asked", range(1, 16))
def test_spans_cover_what_was_asked_for_once_and_nothing_full_besides(cache, full, asked):
    filled(cache, *(8 if full >> slot & 1 and not asked >> slot & 1 else 4 for slot in range(4)))
    rows = [
        row for low, high in cache.spans([slot for slot in range(4) if asked >> slot & 1]) for row in range(low, high)
    ]
    assert len(rows) == len(set(rows))
    assert all(slot in rows for slot in range(4) if asked >> slot & 1)
    assert all(cache.lengths[row] < 8 for row in rows)


def test_address_is_that_of_the_slot_in_its_array(cache):
    cache.arrays[3][2, 0, 0, 0] = 7.0
    offset = cache.address(3, 2) - cache.arrays[3].ctypes.data
    assert np.ravel(cache.arrays[3])[offset // 4] == 7.0


def test_slots_lie_in_the_rows_of_their_numbers_until_they_are_gathered(cache):
    filled(cache, 1, 1, 1)
    assert [cache.row(slot) for slot in range(4)] == [0, 1, 2, 3]


def test_gather_brings_what_is_asked_for_into_the_first_rows(cache):
    filled(cache, 2, 3, 4, 5)
    placed, moves = cache.gather([3])
    assert (placed, moves) == ([3], [Move(3, 0, is_exchange=True)])
    assert [cache.row(slot) for slot in range(4)] == [3, 1, 2, 0]


def test_a_slot_that_holds_a_source_alone_is_moved_with_it():
    cache = KVCache(SPEC, 3, 8, device="cuda", bases=[0] * len(SPEC.states))
    cache.cross = Sources(3, 8)
    first, _, last = (cache.admit() for _ in range(3))
    cache.cross.hold(first, 5, "a source")
    assert cache.gather([last]) == ([last], [Move(0, 2, is_exchange=False)])
    cache.cross.hold(last, 4, "another")
    assert cache.gather([first]) == ([first], [Move(2, 0, is_exchange=True)])


def test_gather_moves_nothing_that_is_where_it_must_be(cache):
    filled(cache, 2, 3, 4, 5)
    assert cache.gather([0, 1]) == ([0, 1], [])
    assert cache.gather([0, 1, 2]) == ([0, 1, 2, 3], [])  # four rows: the last one idles


def test_a_row_goes_where_nothing_is_rather_than_where_something_idles(cache):
    filled(cache, 2, 3, 4, 5)
    cache.release(1)
    placed, moves = cache.gather([2, 3])
    assert moves == [Move(2, 1, is_exchange=False), Move(3, 0, is_exchange=True)]
    assert sorted(placed) == [2, 3]


def test_a_slot_is_admitted_into_the_lowest_free_row(cache):
    filled(cache, 2, 3, 4, 5)
    cache.gather([3])
    cache.release(1)
    cache.release(0)  # which lies in row 3
    assert cache.admit() == 0
    assert cache.row(0) == 1


@given(st.data())
def test_gathered_slots_keep_what_they_hold_in_few_numbers_of_rows(data):
    """Rows of tags stand for the memory; a step writes behind the last position of every row that it runs on."""
    num_slots, capacity = data.draw(st.integers(1, 9)), 5
    cache, memory, held = KVCache(SPEC, num_slots, capacity), [[None] * capacity for _ in range(num_slots)], {}
    counts = set()
    for turn in range(data.draw(st.integers(1, 25))):
        if held and data.draw(st.booleans()):
            slot = data.draw(st.sampled_from(sorted(held)))
            cache.release(slot)
            del held[slot]
        while cache.num_free and data.draw(st.booleans()):
            slot = cache.admit()
            held[slot] = [(slot, turn)] * data.draw(st.integers(1, capacity))
            memory[cache.row(slot)][: len(held[slot])] = held[slot]
            cache.advance(slot, len(held[slot]))
        if not (asked := [slot for slot in held if len(held[slot]) < capacity and data.draw(st.booleans())]):
            continue
        placed, moves = cache.gather(asked)
        for move in moves:
            old = list(memory[move.goal])
            memory[move.goal] = list(memory[move.source])
            if move.is_exchange:
                memory[move.source] = old
        assert [cache.row(slot) for slot in placed] == list(range(len(placed)))
        assert set(asked) <= set(placed)
        num_full = sum(len(tags) == capacity for tags in held.values())
        assert len(placed) == min(next(n for n in (1, 2, 4, 8, 16) if n >= len(asked)), num_slots - num_full)
        for row, slot in enumerate(placed):
            memory[row][int(cache.lengths[slot])] = (slot, turn)  # IndexError in a full row
            if slot in asked:
                held[slot].append((slot, turn))
                cache.advance(slot, 1)
        for slot, tags in held.items():
            assert memory[cache.row(slot)][: len(tags)] == tags
        counts.add(len(placed))
    assert len(counts) <= num_slots


def test_a_copy_holds_the_first_positions_of_another_slot_wherever_their_rows_lie(cache):
    one, other, goal = cache.admit(), cache.admit(), cache.admit()
    cache.gather([other])  # moved: slots and rows differ
    for number, array in enumerate(cache.arrays):
        array[:] = np.random.default_rng(number).random(array.shape)
    before = [array.copy() for array in cache.arrays]
    cache.advance(other, 5)
    cache.copy(other, goal, 3)
    assert (cache.lengths[other], cache.lengths[goal]) == (5, 3)
    for array, old in zip(cache.arrays, before, strict=True):
        assert (array[cache.row(goal), :, :3] == old[cache.row(other), :, :3]).all()
        assert (array[cache.row(goal), :, 3:] == old[cache.row(goal), :, 3:]).all()
        assert (array[cache.row(other)] == old[cache.row(other)]).all()
        assert (array[cache.row(one)] == old[cache.row(one)]).all()


def test_more_positions_than_a_slot_holds_are_not_copied(cache):
    source, goal = cache.admit(), cache.admit()
    with pytest.raises(MisuseError, match="prefill them instead"):
        cache.copy(source, goal, 1)


def test_entries_that_lie_on_a_device_are_not_copied_here():
    cache = KVCache(SPEC, 2, 8, device="cuda", bases=[0] * len(SPEC.states))
    assert not cache.can_copy
    with pytest.raises(MisuseError, match="cannot be copied"):
        cache.copy(cache.admit(), cache.admit(), 0)


def test_a_cache_beyond_the_machine_is_refused_with_its_size():
    positions = 10**12
    with pytest.raises(HostMemoryError, match=r"4 rows of 1,000,000,000,000 positions takes .* GB.*lower max_batch"):
        KVCache(SPEC, num_slots=4, capacity=positions)


def test_sources_beyond_the_machine_are_refused_with_their_size():
    spec = cross_states([((4, 8), (4, 8))])
    with pytest.raises(HostMemoryError, match=r"4 rows read of sources of 1,000,000,000,000 positions takes .* GB"):
        CrossStates(spec, 4, 10**12)
