"""Room: what is taken in is bounded in each of its three measures, and comes back when it is released."""

import asyncio
import heapq
import random
from collections import deque

import pytest
from hand_clock import Clock
from hypothesis import given, strategies as st

from services.errors import Overloaded
from services.room import Room, shares

FULL = {"items": (4, 1, 1), "tokens": (1, 31, 1), "bytes": (1, 1, 301)}
"""What a room of 3, 30 and 300 can't take in, by the measure that is too small."""


def room():
    return Room(3, 30, 300)


def held(room):
    return room.items, room.tokens, room.bytes


@pytest.mark.parametrize("amount", FULL.values(), ids=FULL)
def test_each_measure_is_a_bound_of_its_own(amount):
    whole = room()
    with pytest.raises(Overloaded, match="try again later") as caught:
        whole.take(*amount)
    assert caught.value.retry_after > 0
    assert held(whole) == (0, 0, 0), "what is refused takes no room"
    whole.take(3, 30, 300)
    with pytest.raises(Overloaded, match="3 items of 30 tokens wait already, in 300 bytes"):
        whole.take(0, 1, 0)
    whole.release(3, 30, 300)
    whole.take(3, 30, 300)


def test_what_is_reserved_counts_until_the_block_ends_however_it_does():
    small = room()
    with pytest.raises(ZeroDivisionError), small.reserve(2, 200):
        assert held(small) == (2, 0, 200)
        with pytest.raises(Overloaded), small.reserve(1, 101):
            pytest.fail("there is no room")
        raise ZeroDivisionError
    assert held(small) == (0, 0, 0)


@pytest.mark.parametrize("taken", [(3, 1, 1), (1, 30, 1), (1, 1, 300)])
async def test_who_waits_goes_on_when_there_is_room_for_all_of_it(taken):
    full = room()
    full.take(*taken)
    waiting = asyncio.create_task(full.wait(1, 10))
    await asyncio.sleep(0)
    full.release(0, 0, 0)  # something ended, and it wasn't enough
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    full.release(*taken)
    await asyncio.wait_for(waiting, 5)


# --- who is let in ---


def named(name, weight=1.0):
    return name, weight


class Crowded:
    """A room of 1000 items in which each item is of 10 tokens in 100 bytes; one second answers 100 items."""

    def __init__(self):
        self.clock = Clock()
        self.room = Room(1000, 100_000, 1_000_000, self.clock)

    def admit(self, items, name, seconds=None, weight=1.0):
        """Seconds to come back in; None where it was let in."""
        deadline = None if seconds is None else self.clock.now + seconds
        try:
            self.room.admit(items, 100 * items, named(name, weight), deadline)
        except Overloaded as refused:
            return refused.retry_after
        self.room.take(items, 10 * items, 100 * items, named(name, weight))
        return None

    def answer(self, items, name, seconds=None, of=100):
        self.clock.now += items / 100 if seconds is None else seconds
        self.room.release(items, 10 * items, 100 * items, named(name), of=of)


@pytest.fixture
def crowded():
    """Full of ten callers with a hundred items each."""
    crowd = Crowded()
    for number in range(10):
        assert crowd.admit(100, f"bulk {number}") is None
    for of in (100, 10):
        for number in range(10):
            crowd.answer(10, f"bulk {number}", of=of)
            assert crowd.admit(10, f"bulk {number}") is None
    return crowd


def test_a_light_caller_finds_room_where_a_heavy_one_does_not(crowded):
    assert crowded.admit(100, "another") > 0
    assert crowded.admit(9, "bulk 3") > 0, "more of somebody who has a hundred"
    assert crowded.admit(9, "light") is None


def test_the_spare_room_is_an_eighth_and_goes_to_the_lighter_the_fuller_it_is(crowded):
    assert crowded.admit(16, "sixteen of 125") > 0
    assert crowded.admit(15, "fifteen of 125") is None
    assert crowded.admit(15, "fifteen of 110") > 0
    singles = [n for n in range(200) if crowded.admit(1, f"single {n}") is None]
    assert crowded.room.items == 1000 + 15 + len(singles)
    assert 1110 < crowded.room.items <= 1125


def test_small_calls_find_room_whoever_makes_them_and_leave_half_of_it_to_light_callers(crowded):
    let_in = [crowded.admit(1, "bulk 3") is None for _ in range(100)]
    assert 50 < sum(let_in) <= 125 - 62
    assert let_in == sorted(let_in, reverse=True)
    assert crowded.admit(5, "light") is None


def test_who_is_turned_away_hears_when_there_is_room_for_it(crowded):
    assert crowded.admit(100, "a") == pytest.approx(1, rel=0.05)  # a hundred items too many, at 100 a second
    assert crowded.admit(100, "b") == pytest.approx(2, rel=0.05)
    assert crowded.admit(50, "c") == pytest.approx(3, rel=0.05)
    assert crowded.admit(100, "d") == pytest.approx(3.5, rel=0.05)


def test_who_was_told_to_come_is_let_in_before_one_who_was_not(crowded):
    assert crowded.admit(100, "first") > 0
    crowded.answer(100, "bulk 0", 1.1)
    assert crowded.admit(100, "bulk 0") > 0, "the room is another's"
    assert crowded.admit(100, "first") is None


def test_a_queue_that_empties_lets_anybody_in(crowded):
    """Else it would have nothing to do while those who were told to come don't."""
    for number in range(20):
        assert crowded.admit(100, f"never comes {number}") > 0
    for number in range(6):
        crowded.answer(100, f"bulk {number}", 0.1)
    assert crowded.admit(100, "new") is None


def test_a_call_that_would_end_after_its_deadline_is_not_begun(crowded):
    # Ten others, 15 items each, at a hundred a second: 1.5 s.
    assert crowded.admit(15, "hurried", 1.75) == pytest.approx(0.5, abs=0.1)
    assert crowded.admit(15, "patient", 2.5) is None


def test_what_is_before_a_call_follows_from_the_weights(crowded):
    assert crowded.admit(8, "quarter of theirs", 3.5, weight=0.25) == pytest.approx(2.0, abs=0.1)
    assert crowded.admit(8, "four times theirs", 0.5, weight=4.0) is None


def test_who_comes_back_when_it_was_told_is_in_time():
    crowd = Crowded()
    for number in range(9):
        assert crowd.admit(100, f"bulk {number}") is None
    crowd.answer(100, "bulk 8")
    end = crowd.clock.now + 9.0
    assert crowd.admit(100, "hurried", 9.0) == pytest.approx(4.0)  # 8 s of eight others
    for number in range(8):
        crowd.answer(51, f"bulk {number}")
    assert crowd.admit(100, "hurried", end - crowd.clock.now) is None


def test_where_others_stand_in_line_what_ends_is_followed_by_its_like(crowded):
    """Twenty items are left of each of ten callers; but what they make room for takes its turns, too."""
    for number in range(10):
        crowded.answer(80, f"bulk {number}")
    assert crowded.admit(950, "stands in line") > 0
    assert crowded.admit(90, "hurried", 10.0) == pytest.approx(5.0, rel=0.05)  # 9 s of ten others
    crowded.clock.now += 11.5
    assert crowded.admit(90, "hurried", 10.0) is None


def test_of_the_callers_own_calls_only_so_much_is_before_it_as_has_its_turn():
    crowd = Crowded()
    for _ in range(9):
        assert crowd.admit(100, "one") is None
    crowd.answer(100, "one")
    assert crowd.admit(100, "one", 9.0) == pytest.approx(4.0)  # eight calls like this one: 8 s
    assert crowd.admit(1, "one", 0.3) is None  # one item of each of the eight


def test_with_nothing_before_it_any_deadline_will_do():
    alone = Crowded()
    assert alone.admit(100, "a") is None
    alone.answer(100, "a")
    assert alone.admit(1000, "a", 0.01) is None


def test_a_call_too_many_by_its_tokens_is_seen_by_its_bytes():
    """Before it is tokenised: what is here tells how many tokens a byte makes."""
    long = Room(1000, 1000, 1_000_000)
    long.take(9, 900, 9000, named("a"))
    with pytest.raises(Overloaded):
        long.admit(4, 3000, named("b"))
    long.admit(1, 900, named("b"))


def test_what_was_cancelled_is_not_taken_for_speed():
    crowd = Crowded()
    assert crowd.admit(1000, "a") is None
    crowd.answer(100, "a", of=1000)
    crowd.room.release(500, 5000, 50_000, named("a"), of=1000, answered=False)
    assert crowd.admit(600, "b") is None
    assert crowd.admit(100, "c") == pytest.approx(1, rel=0.05)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 400), st.integers(0, 3)), max_size=80))
def test_the_bound_holds_whoever_comes_and_goes(script):
    crowd, waiting = Crowded(), []
    for name, items, answered in script:
        if crowd.admit(items, name) is None:
            waiting.append((name, items))
        while answered and waiting:
            name, items = waiting.pop()
            crowd.answer(items - 1, name, of=items)
            crowd.answer(1, name, of=items)
            answered -= 1
        assert crowd.room.items == sum(items for _, items in waiting) <= 1125
    for name, items in waiting:
        crowd.answer(items, name, of=items)
    assert (crowd.room.items, crowd.room.tokens, crowd.room.bytes) == (0, 0, 0)
    assert not crowd.room._held
    assert not crowd.room._by_size


class Day:
    """Forty callers, room for ten: each calls again once it is answered, or about when it was told."""

    def __init__(self, seed, names):
        """Caller n goes by `names`[n]."""
        self.names = names
        self.random, self.crowd, self.waiting = random.Random(seed), Crowded(), deque()
        self.first_asked, self.refused, self.waits = {}, 0, []
        self.coming = [(self.crowd.clock.now + 0.01 * number, number) for number in range(40)]

    def run(self, seconds):
        """One second answers a hundred items: a call."""
        over = self.crowd.clock.now + seconds
        while (now := self.crowd.clock.now) < over:
            while self.coming and self.coming[0][0] <= now:
                self.come(*heapq.heappop(self.coming))
            if self.waiting:
                self.serve(self.waiting.popleft())
            else:
                self.crowd.clock.now += 0.1
        return self

    def come(self, at, caller):
        self.first_asked.setdefault(caller, at)
        again = self.crowd.admit(100, self.names[caller])
        if again is None:
            self.waiting.append([caller, 100])
        else:
            self.refused += 1
            again += self.random.uniform(0, min(again, 4.0))
            heapq.heappush(self.coming, (self.crowd.clock.now + again, caller))

    def serve(self, call):
        """Ten of its items; the callers take turns."""
        caller, left = call
        self.crowd.answer(10, self.names[caller], self.random.uniform(0.05, 0.15))
        if left > 10:
            self.waiting.append([caller, left - 10])
        else:
            self.waits.append(self.crowd.clock.now - self.first_asked.pop(caller))
            heapq.heappush(self.coming, (self.crowd.clock.now, caller))


@pytest.mark.parametrize("seed", range(5))
def test_a_crowd_is_turned_away_little_and_nobody_waits_much_longer_than_others(seed):
    day = Day(seed, [f"bulk {number}" for number in range(40)]).run(1000)
    assert len(day.waits) == pytest.approx(1000, rel=0.05), "it always had something to do"
    assert day.refused < 1.6 * len(day.waits)
    later = sorted(day.waits[100:])
    assert later[-1] < 1.6 * later[len(later) // 2]


@pytest.mark.parametrize("names", [["gateway"], ["gateway", "team"]], ids=len)
@pytest.mark.parametrize("seed", range(5))
def test_a_crowd_behind_one_name_or_two_is_turned_away_little(seed, names):
    """Which of its calls has waited for how long isn't seen; but not all come for the same room."""
    day = Day(seed, names * (40 // len(names))).run(1000)
    assert len(day.waits) == pytest.approx(1000, rel=0.05)
    assert day.refused < 1.6 * len(day.waits)


@given(st.integers(0, 10_000), st.integers(1, 100))
def test_shares_are_even_and_lose_nothing(size, count):
    found = shares(size, count)
    assert (len(found), sum(found)) == (count, size)
    assert max(found) - min(found) <= 1
