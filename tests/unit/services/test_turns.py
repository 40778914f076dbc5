"""Whose turn it is: callers by what they have had, a caller's calls likewise, and nothing is lost."""

import itertools

from hypothesis import given, strategies as st

from services.plans import neighbours
from services.turns import Entry, Turns

BUDGET = 32


class Queue:
    """Turns of entries that are named by their calls."""

    def __init__(self):
        self.turns = Turns()
        self._numbers, self._calls = itertools.count(), itertools.count()

    def _entries(self, call, lengths, caller, weight):
        number = next(self._calls)
        return [
            Entry(call, length, next(self._numbers), (caller, weight), number, None, 0.0, None)
            for length in lengths
        ]

    def put(self, call, lengths, caller="", weight=1.0):
        entries = self._entries(call, lengths, caller, weight)
        for entry in entries:
            self.turns.add(entry)
        return entries

    def put_batches(self, call, lengths, caller="", weight=1.0):
        """Each entry a batch of its own."""
        for entry in self._entries(call, lengths, caller, weight):
            self.turns.add_batch([entry])

    def next(self):
        """Names of the next batch."""
        batch = self.turns.next_planned()
        if batch is None:
            batch = self.turns.take(neighbours(*self.turns.next_shared(), BUDGET))
        return [entry.item for entry in batch]

    def all(self):
        found = []
        while self.turns:
            found.append(self.next())
        return found


def test_a_small_call_is_not_behind_a_large_one_of_the_same_caller():
    queue = Queue()
    queue.put("large", [30] * 5)
    assert queue.next() == ["large"]
    queue.put("small", [30])
    assert queue.all() == [["small"], *[["large"]] * 4]


def test_calls_of_a_caller_take_turns_in_the_order_in_which_they_came():
    queue = Queue()
    for call in "abc":
        queue.put(call, [30] * 3)
    assert [batch[0] for batch in queue.all()] == list("abcabcabc")


def test_a_call_has_no_more_turns_by_being_one_of_many():
    queue = Queue()
    for number in range(4):
        queue.put(f"many {number}", [30] * 2, caller="many")
    queue.put("one", [30] * 4, caller="one")
    assert [batch[0].split()[0] for batch in queue.all()][:8] == ["many", "one"] * 4


def test_batches_that_stay_as_they_are_take_turns_with_those_that_share():
    queue = Queue()
    queue.put_batches("alone", [30] * 3)
    queue.put("sharing", [30] * 3)
    assert [batch[0] for batch in queue.all()] == ["alone", "sharing"] * 3


def test_what_fills_up_another_batch_counts():
    queue = Queue()
    queue.put("first", [8, 20])
    queue.put("second", [8, 20])  # its 8 goes with the other's
    assert queue.next() == ["first", "second"]
    queue.put("third", [20])
    assert queue.all() == [["third"], ["first"], ["second"]]


def test_a_call_that_is_withdrawn_is_passed_over():
    queue = Queue()
    gone = queue.put("gone", [30, 30])
    queue.put("there", [30])
    for entry in gone:
        queue.turns.remove(entry)
        queue.turns.remove(entry)  # a second time: nothing
    assert queue.all() == [["there"]]


CALLS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([0.25, 1.0, 4.0]),
        st.lists(st.integers(1, 40), min_size=1, max_size=8),
        st.booleans(),  # whether it shares
        st.integers(0, 3),  # batches that run before the next call
        st.integers(0, 8),  # of its entries that are withdrawn
    ),
    max_size=25,
)


@given(CALLS)
def test_every_entry_has_its_turn_once(script):
    queue, wanted, seen = Queue(), 0, 0
    for caller, weight, lengths, shares, batches, withdrawn in script:
        if shares:
            entries = queue.put(caller, lengths, caller, weight)
            for entry in entries[:withdrawn]:
                queue.turns.remove(entry)
            wanted += len(entries[withdrawn:])
        else:
            queue.put_batches(caller, lengths, caller, weight)
            wanted += len(lengths)
        places = [(entry.length, entry.number) for entry in queue.turns._pool]
        assert places == sorted(places)
        assert queue.turns._lengths == [length for length, _ in places]
        for _ in range(batches):
            seen += len(queue.next()) if queue.turns else 0
    assert seen + sum(map(len, queue.all())) == wanted
    assert not queue.turns._flows
    assert not queue.turns._pool
