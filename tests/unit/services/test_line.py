"""When those who were turned away may come back, by a clock that is set by hand."""

import pytest
from hand_clock import Clock
from hypothesis import given, strategies as st

from services.line import LEAST_S, LONGEST_S, MOST_STANDING, Drain, Line


def answer(drain, clock, items, times, seconds):
    for _ in range(times):
        clock.now += seconds
        drain.answered(items)


def test_nothing_is_known_before_anything_was_answered(clock):
    drain = Drain(clock)
    assert drain.rate is None
    drain.answered(5)
    assert drain.rate is None, "all at once says nothing about a second"


def test_nothing_is_known_by_a_first_item_that_took_its_time(clock):
    """A cold start's: a rate of two items a second would turn away calls that are answered at once."""
    drain = Drain(clock)
    answer(drain, clock, 1, 1, 0.5)
    assert drain.rate is None
    answer(drain, clock, 100, 6, 0.1)
    assert drain.rate > 500


def test_the_rate_is_what_a_steady_queue_shows(clock):
    drain = Drain(clock)
    answer(drain, clock, 20, 100, 0.1)
    assert drain.rate == pytest.approx(200, rel=0.02)


def test_the_rate_follows_what_is_so_now(clock):
    drain = Drain(clock)
    answer(drain, clock, 10, 100, 0.1)
    answer(drain, clock, 1, 300, 0.1)
    assert drain.rate == pytest.approx(10, rel=0.1)


def test_time_without_anything_to_do_does_not_count(clock):
    drain = Drain(clock)
    answer(drain, clock, 10, 20, 0.1)
    clock.now += 1000
    drain.begin()
    answer(drain, clock, 10, 1, 0.1)
    assert drain.rate == pytest.approx(100, rel=0.05)


def test_an_empty_line_lets_anybody(clock):
    assert Line(clock).lets("anybody")


def test_each_comes_after_those_before_it(clock):
    line = Line(clock)
    assert [line.stand(who, 2.0, 3.0) for who in "abc"] == [2.0, 5.0, 8.0]
    clock.now += 2.0
    assert [line.lets(who) for who in "abcd"] == [True, False, False, False]
    clock.now += 3.0
    assert [line.lets(who) for who in "abcd"] == [True, True, False, False]


def test_asking_again_neither_wins_nor_costs_a_place(clock):
    line = Line(clock)
    line.stand("a", 2.0, 3.0)
    line.stand("b", 2.0, 3.0)
    clock.now += 1.0
    assert [line.stand("b", 2.0, 3.0) for _ in range(9)] == [4.0] * 9
    assert line.stand("c", 2.0, 3.0) == 7.0


def test_whose_turn_has_come_and_finds_no_room_is_the_next(clock):
    line = Line(clock)
    line.stand("a", 1.0, 5.0)
    clock.now += 1.5
    assert line.stand("a", 0.7, 5.0) == 0.7
    assert line.lets("a")
    assert not line.lets("b")


def test_while_the_next_finds_no_room_nobody_behind_it_comes_nearer(clock):
    line = Line(clock)
    assert [line.stand(who, 1.0, 2.0) for who in "abc"] == [1.0, 3.0, 5.0]
    clock.now += 1.0
    assert line.stand("a", 0.5, 2.0) == 0.5
    assert [line.stand(who, 0.5, 2.0) for who in "bcd"] == [2.5, 4.5, 6.5]
    clock.now += 2.0
    assert [line.lets(who) for who in "abc"] == [True, False, False]
    clock.now += 0.5
    assert [line.lets(who) for who in "abc"] == [True, True, False]


def test_several_who_find_no_room_hold_up_the_line_once(clock):
    line = Line(clock)
    assert [line.stand(who, 1.0, 2.0) for who in "abc"] == [1.0, 3.0, 5.0]
    clock.now += 4.0
    for _ in range(9):
        assert [line.stand("a", 0.5, 2.0), line.stand("b", 0.7, 2.0)] == [0.5, 0.7]
    assert line.stand("c", 0.5, 2.0) == pytest.approx(1.7)


def test_nobody_holds_up_the_line_for_long(clock):
    line = Line(clock)
    assert [line.stand(who, 1.0, 2.0) for who in "ab"] == [1.0, 3.0]
    clock.now += 1.0
    assert line.stand("a", 1e9, 2.0) == LONGEST_S
    clock.now += LONGEST_S + 2.0
    assert line.lets("b")


def test_who_was_let_in_stands_at_the_end_next_time(clock):
    line = Line(clock)
    line.stand("a", 1.0, 5.0)
    line.stand("b", 1.0, 5.0)
    clock.now += 1.0
    line.leave("a")
    assert not line.lets("a")
    assert line.stand("a", 0.5, 5.0) == 10.0


def test_a_name_behind_which_many_stand_has_several_places(clock):
    line = Line(clock)
    assert [line.stand("many", 1.0, 2.0, most=3) for _ in range(5)] == [1.0, 3.0, 5.0, 5.0, 5.0]
    assert line.stand("one", 1.0, 2.0) == 7.0
    clock.now += 3.0
    line.leave("many")
    assert line.lets("many")
    line.leave("many")
    assert not line.lets("many")
    assert line.stand("many", 1.0, 2.0, most=3) == 6.0
    clock.now += 2.0
    assert [line.lets("many"), line.lets("one")] == [True, False]
    assert line.stand("many", 0.5, 2.0, most=3) == 0.5, "one's turn has come, and gives it no other place"
    line.leave("many")
    assert line.stand("many", 0.5, 2.0, most=3) == 6.5


def test_those_who_never_come_hold_up_nobody_for_long(clock):
    line = Line(clock)
    line.stand("gone", 1.0, 5.0)
    clock.now += 6.0
    assert line.lets("new")


def test_a_place_is_kept_by_asking_again_and_lost_by_staying_away(clock):
    line = Line(clock)
    line.stand("here", 1.0, 1.0)
    line.stand("away", 1.0, 1.0)
    for _ in range(3):
        clock.now += 0.9 * LONGEST_S
        line.stand("here", 1.0, 1.0)
    line.stand("new", 2.0, 9.0)
    assert line.lets("here")
    assert not line.lets("away")
    assert line.stand("away", 1.0, 1.0) == 11.0


def test_of_those_behind_a_name_who_give_up_the_places_are_lost_each_by_its_own_time(clock):
    """They would let in those who come later, before others."""
    line = Line(clock)
    assert [line.stand("many", 1.0, 20.0, most=3) for _ in range(3)] == [1.0, 21.0, 41.0]
    line.stand("bulk", 1.0, 1e6)
    for _ in range(5):
        clock.now += 20.0
        line.stand("many", 1.0, 20.0, most=3)
    # One still comes and keeps a place; the second's time was more than a minute ago, the third's wasn't.
    for _ in range(2):
        assert line.lets("many")
        line.leave("many")
    assert not line.lets("many")


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1e6), st.floats(0, 1e6)), max_size=60))
def test_nobody_is_told_never_or_at_once(calls):
    line = Line(Clock())
    for who, first, lasts in calls:
        assert LEAST_S <= line.stand(who, first, lasts) <= LONGEST_S


def test_names_that_are_made_up_take_no_memory_without_end(clock):
    line = Line(clock)
    for number in range(MOST_STANDING + 100):
        line.stand(number, 1.0, 1.0)
    assert len(line._places) == MOST_STANDING
