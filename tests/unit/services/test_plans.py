"""Plans by length: partitions under the budget, and neighbours with little padding."""

from hypothesis import given, strategies as st

from services.plans import FREE_PADDING, MAX_PADDING, neighbours, plan_batches

LENGTHS = st.lists(st.integers(1, 50), max_size=40)
SORTED = st.lists(st.integers(1, 300), min_size=1, max_size=60).map(sorted)


@given(LENGTHS, st.integers(1, 100))
def test_a_plan_holds_every_item_once(lengths, budget):
    plan = plan_batches(lengths, budget)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    assert all(plan)


@given(LENGTHS, st.integers(1, 100))
def test_a_batch_keeps_the_budget_or_is_one_item(lengths, budget):
    for batch in plan_batches(lengths, budget):
        padded = max(lengths[index] for index in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 100))
def test_batches_are_neighbours_by_length(lengths, budget):
    flat = [lengths[index] for batch in plan_batches(lengths, budget) for index in batch]
    assert flat == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 100))
def test_no_batch_could_take_the_next_item(lengths, budget):
    plan = plan_batches(lengths, budget)
    for batch in plan[:-1]:
        assert lengths[batch[0]] * (len(batch) + 1) > budget


def test_a_plan_by_hand():
    # Sorted: 9 | 5 5 5 (15 of 16) | 4 4 2 1 (16 of 16) | 1
    assert plan_batches([5, 1, 9, 4, 5, 4, 2, 5, 1], 16) == [[2], [0, 4, 7], [3, 5, 6, 1], [8]]


def test_an_item_above_the_budget_is_a_batch_of_its_own():
    assert plan_batches([100, 3, 3], 10) == [[0], [1, 2]]


def padding(lengths):
    return lengths[-1] * len(lengths) - sum(lengths)


@given(SORTED, st.data(), st.integers(1, 2000))
def test_neighbours_hold_the_anchor_the_budget_and_little_padding(lengths, data, budget):
    anchor = data.draw(st.integers(0, len(lengths) - 1))
    places = neighbours(lengths, anchor, budget)
    batch = lengths[places.start : places.stop]
    assert anchor in places
    padded = batch[-1] * len(batch)
    assert padded <= budget or len(batch) == 1
    assert padding(batch) <= max(FREE_PADDING, MAX_PADDING * padded)


@given(SORTED, st.data(), st.integers(1, 2000))
def test_neighbours_could_not_grow_to_either_side(lengths, data, budget):
    anchor = data.draw(st.integers(0, len(lengths) - 1))
    places = neighbours(lengths, anchor, budget)
    for begin, end in ((places.start - 1, places.stop), (places.start, places.stop + 1)):
        if begin >= 0 and end <= len(lengths):
            wider = lengths[begin:end]
            padded = wider[-1] * len(wider)
            assert padded > budget or padding(wider) > max(FREE_PADDING, MAX_PADDING * padded)


def test_neighbours_by_hand():
    # Around the 50: the 52 pads by 2, then the 48 by 4 more than the 60 would (60 pads 10 + 8).
    lengths = [5, 48, 50, 52, 60, 300]
    assert neighbours(lengths, 2, 52 * 3) == range(1, 4)
    # 4 × 60 = 240; padding 12 + 10 + 8 = 30 is free. The 5 would pad by 55, the 300 by far more.
    assert neighbours(lengths, 2, 1000) == range(1, 5)


def test_short_items_share_though_they_pad():
    # 1 beside 9: 8 of 18 tokens are padding, and still cheaper than a second forward.
    assert neighbours([1, 9], 0, 100) == range(2)
