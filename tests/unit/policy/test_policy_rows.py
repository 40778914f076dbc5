from hypothesis import given, strategies as st
from policy_bench import asked, version

from lm.generation import Finish
from services.policy.interface import Generation
from services.policy.rows import BatchLimits, cut, rows_of

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def rows_with(lengths, new_tokens=8):
    prompts = [tuple(range(length)) for length in lengths]
    return rows_of(Generation(asked(*prompts, max_new_tokens=new_tokens)))


def test_one_row_for_each_prompt_and_sample():
    how = {"samples_per_prompt": 2, "stop_token_ids": frozenset({9}), "stop_strings": ("x",)}
    generation = Generation(asked((1, 2), (3,), seeds=(70, 71), **how))
    rows = rows_of(generation)
    assert [(row.prompt_ids, row.seed, row.prompt_index, row.sample_index) for row in rows] == [
        ((1, 2), 70, 0, 0),
        ((1, 2), 70, 0, 1),
        ((3,), 71, 1, 0),
        ((3,), 71, 1, 1),
    ]
    assert all(row.owner is generation for row in rows)
    assert (rows[0].stop.max_new_tokens, rows[0].stop.token_ids, rows[0].stop.strings) == (8, {9}, ("x",))


@given(LENGTHS, st.integers(1, 9), st.integers(1, 300))
def test_cut_keeps_every_row_once_and_the_limits(lengths, rows, tokens):
    batches = list(cut(rows_with(lengths), BatchLimits(rows, tokens)))
    sizes = [len(row.prompt_ids) for batch in batches for row in batch]
    assert sizes == sorted(lengths)
    for batch in batches:
        widest = max(row.most_tokens for row in batch)
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * widest <= tokens


@given(LENGTHS, st.integers(1, 9))
def test_cut_depends_on_the_request_only(lengths, rows):
    first, second = (
        [[row.prompt_index for row in batch] for batch in cut(rows_with(lengths), BatchLimits(rows, 200))]
        for _ in range(2)
    )
    assert first == second


def test_samples_of_a_prompt_stay_together():
    rows = rows_of(Generation(asked((1, 2), (3,), (4, 5), samples_per_prompt=2)))
    order = [[(row.prompt_index, row.sample_index) for row in batch] for batch in cut(rows, BatchLimits(4))]
    assert order == [[(1, 0), (1, 1), (0, 0), (0, 1)], [(2, 0), (2, 1)]]


def test_version_spans_cover_the_response():
    (row,) = rows_with([3])
    row.note_step(version(4, ""))
    row.note_step(version(5, ""))  # before anything was drawn
    row.token_ids += [1, 2, 3]
    row.note_step(version(6, ""))
    row.token_ids += [4]
    assert row.version_spans == ((5, 0, 3), (6, 3, 4))
    row.note_step(version(7, ""))  # after the last token
    assert row.version_spans == ((5, 0, 3), (6, 3, 4))


def test_the_finished_response():
    (row,) = rows_with([3])
    row.note_step(version(4, ""))
    row.token_ids, row.logprobs, row.logprobs_temperature_1 = [7, 8], [-1.0, -2.0], [-1.5, -2.5]
    row.finish = Finish.EOS
    generated = row.generated("text")
    assert (generated.token_ids, generated.logprobs) == ((7, 8), (-1.0, -2.0))
    assert generated.logprobs_temperature_1 == (-1.5, -2.5)
    assert (generated.text, generated.finish, generated.seed) == ("text", "eos", 0)
    assert generated.version_spans == ((4, 0, 2),)
