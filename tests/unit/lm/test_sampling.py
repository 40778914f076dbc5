"""Numbers worked by hand, the edges of the inverse distribution function, and frequencies."""

import math
import struct
from hashlib import blake2b

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lm.logprobs import logprobs_from_logits
from lm.sampling import BLOCK, NotFinite, _inverse_cdf, sample, uniform

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()  # probabilities of four tokens
U64 = st.integers(0, 2**64 - 1)


def draw(logits_BV, uniforms, temperature=1.0, top_k=0, top_p=1.0):
    uniforms_B = torch.tensor(uniforms, dtype=torch.float64)
    return sample(logits_BV, uniforms_B, temperature, top_k, top_p)


def drawn_ids(uniforms, **how):
    return draw(LOGITS.expand(len(uniforms), -1), uniforms, **how)[0].tolist()


class TestUniform:
    def test_known_values_for_other_languages(self):
        assert uniform(0, 0, 0) == 0.156742553465558
        assert uniform(1, 2, 3) == 0.7069603535111167
        assert uniform(2**64 - 1, 7, 1023) == 0.9543373454704346

    def test_is_what_its_docstring_says(self):
        digest = blake2b(struct.pack("<QQQ", 11, 22, 33), digest_size=8).digest()
        assert uniform(11, 22, 33) == (int.from_bytes(digest, "little") >> 11) * 2.0**-53

    @given(U64, U64, U64)
    def test_is_in_the_unit_interval(self, seed, index, position):
        assert 0 <= uniform(seed, index, position) < 1

    def test_each_coordinate_counts(self):
        values = {uniform(*key) for key in [(1, 2, 3), (1, 3, 2), (2, 1, 3), (3, 2, 1), (1, 2, 4), (0, 2, 3)]}
        assert len(values) == 6

    def test_is_spread_evenly(self):
        values = [uniform(5, 0, position) for position in range(4000)]
        assert sum(values) / 4000 == pytest.approx(0.5, abs=0.015)
        assert sum(value < 0.25 for value in values) / 4000 == pytest.approx(0.25, abs=0.02)

    @pytest.mark.parametrize("bad", [(-1, 0, 0), (2**64, 0, 0)])
    def test_refuses_what_is_no_u64(self, bad):
        with pytest.raises(struct.error):
            uniform(*bad)


class TestFullDistribution:
    def test_inverse_of_the_distribution_function(self):
        # Cumulative: 0.5, 0.8, 0.95, 1.
        assert drawn_ids([0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96, 0.999]) == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_logprobs_of_the_drawn_token(self):
        ids_B, logprobs_B, at_1_B = draw(LOGITS, [0.6])
        assert ids_B.tolist() == [1]
        assert logprobs_B.item() == pytest.approx(math.log(0.3), abs=1e-6)
        assert at_1_B.item() == pytest.approx(math.log(0.3), abs=1e-6)

    def test_temperature_flattens_and_both_logprobs_are_given(self):
        # At temperature 2 probabilities go as the square root.
        roots = [math.sqrt(p) for p in (0.5, 0.3, 0.15, 0.05)]
        ids_B, logprobs_B, at_1_B = draw(LOGITS, [0.999], temperature=2.0)
        assert ids_B.tolist() == [3]
        assert logprobs_B.item() == pytest.approx(math.log(roots[3] / sum(roots)), abs=1e-6)
        assert at_1_B.item() == pytest.approx(math.log(0.05), abs=1e-6)

    def test_is_bit_for_bit_the_shared_function(self):
        logits_BV = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 3
        ids_B, logprobs_B, at_1_B = draw(logits_BV, [0.1, 0.3, 0.5, 0.7, 0.9], temperature=0.7)
        assert torch.equal(logprobs_B, logprobs_from_logits(logits_BV, ids_B, 0.7))
        assert torch.equal(at_1_B, logprobs_from_logits(logits_BV, ids_B))

    @pytest.mark.parametrize(
        ("given_dtype", "result"),
        [
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ],
    )
    def test_computes_in_float32_at_least(self, given_dtype, result):
        _, logprobs_B, at_1_B = draw(LOGITS.to(given_dtype), [0.2])
        assert logprobs_B.dtype == at_1_B.dtype == result

    def test_frequencies(self):
        n = 4000
        ids_B = draw(LOGITS.expand(n, -1), [uniform(3, 0, position) for position in range(n)])[0]
        shares = torch.bincount(ids_B, minlength=4) / n
        assert shares.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.025)


class TestGreedy:
    def test_takes_the_likeliest_with_logprob_0(self):
        ids_B, logprobs_B, at_1_B = draw(LOGITS, [0.999], temperature=0.0)
        assert ids_B.tolist() == [0]
        assert logprobs_B.tolist() == [0]
        assert at_1_B.item() == pytest.approx(math.log(0.5), abs=1e-6)


class TestTruncation:
    def test_top_k_keeps_exactly_k_even_among_ties(self):
        logits_BV = torch.zeros(64, 6)
        ids_B, logprobs_B, at_1_B = draw(logits_BV, [b / 64 for b in range(64)], top_k=2)
        assert len(set(ids_B.tolist())) == 2
        assert logprobs_B.tolist() == pytest.approx([math.log(1 / 2)] * 64)
        assert at_1_B.tolist() == pytest.approx([math.log(1 / 6)] * 64)

    def test_top_k_renormalises(self):
        ids_B, logprobs_B, _ = draw(LOGITS, [0.999], top_k=2)
        assert ids_B.tolist() == [1]
        assert logprobs_B.item() == pytest.approx(math.log(0.3 / 0.8), abs=1e-6)

    @pytest.mark.parametrize(
        ("top_p", "kept"), [(0.01, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)]
    )
    def test_top_p_keeps_the_smallest_set_that_reaches_it(self, top_p, kept):
        assert set(drawn_ids([b / 256 for b in range(256)], top_p=top_p)) == set(range(kept))

    def test_top_p_stops_where_the_mass_is_reached_exactly(self):
        logits_BV = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
        ids_B, logprobs_B, _ = draw(logits_BV, [0.999], top_p=0.75)
        assert ids_B.tolist() == [1]
        assert logprobs_B.item() == pytest.approx(math.log(1 / 3), abs=1e-6)

    def test_top_p_counts_what_top_k_left(self):
        # Of the two kept, renormalised to 0.625 and 0.375, the first alone reaches 0.6.
        assert set(drawn_ids([b / 64 for b in range(64)], top_k=2, top_p=0.6)) == {0}

    def test_top_k_beyond_the_vocabulary_is_all(self):
        whole, cut = draw(LOGITS, [0.97]), draw(LOGITS, [0.97], top_k=99)
        assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))

    def test_order_of_tokens_does_not_matter(self):
        shuffled = LOGITS[:, [2, 0, 3, 1]]
        ids_B, logprobs_B, _ = draw(shuffled, [0.999], top_k=2)
        assert ids_B.tolist() == [3]  # cumulative in id order: token 1 (0.5) then token 3 (0.3)
        assert logprobs_B.item() == pytest.approx(math.log(0.375), abs=1e-6)

    def test_temperature_comes_before_the_cut(self):
        # At temperature 0.5 probabilities go as the square: 0.25 of 0.365 is 0.685.
        assert set(drawn_ids([b / 64 for b in range(64)], temperature=0.5, top_p=0.68)) == {0}


class TestEdges:
    @given(
        st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40),
        st.one_of(st.floats(0, 1, exclude_max=True), st.just(math.nextafter(1, 0))),
        st.sampled_from([0.1, 0.7, 1.0, 5.0]),
        st.integers(0, 45),
        st.floats(0.01, 1),
    )
    def test_never_a_token_without_probability(self, logits, u, temperature, top_k, top_p):
        ids_B, logprobs_B, _ = draw(torch.tensor([logits]), [u], temperature, top_k, top_p)
        assert 0 <= ids_B.item() < len(logits)
        assert math.isfinite(logprobs_B.item())

    @given(
        st.integers(1, 3 * BLOCK + 1),
        st.integers(0, 2**31),
        st.sampled_from([0.0, 0.5, 0.9, 0.999]),
        st.one_of(st.floats(0, 1, exclude_max=True), st.just(math.nextafter(1, 0))),
    )
    @settings(deadline=None)
    def test_blocks_give_what_one_long_sum_gives(self, vocabulary, seed, share_without, u):
        """Any size of vocabulary, some of it without probability; checked in exact order of magnitude."""
        generator = torch.Generator().manual_seed(seed)
        probabilities_V = torch.rand(vocabulary, generator=generator, dtype=torch.float64) + 1e-3
        probabilities_V[torch.rand(vocabulary, generator=generator) < share_without] = 0
        probabilities_V[int(u * vocabulary)] += 0.1
        probabilities_V /= probabilities_V.sum()
        id_ = _inverse_cdf(probabilities_V[None], torch.tensor([u], dtype=torch.float64)).item()
        cumulative_V = probabilities_V.cumsum(-1)
        assert 0 <= id_ < vocabulary
        assert probabilities_V[id_] > 0
        assert cumulative_V[id_] > u - 1e-12
        assert id_ == 0 or cumulative_V[id_ - 1] <= u + 1e-12

    def test_rows_of_several_blocks(self):
        probabilities_BV = torch.zeros(4, 2 * BLOCK + 7)
        for row, token in enumerate((0, BLOCK - 1, BLOCK, 2 * BLOCK + 6)):
            probabilities_BV[row, token] = 1
        assert _inverse_cdf(probabilities_BV, torch.full((4,), 0.7)).tolist() == [0, 255, 256, 518]

    def test_u_that_rounds_to_1_takes_the_last_token_with_probability(self):
        u = math.nextafter(1, 0)
        assert torch.tensor(u).item() == 1.0  # in float32
        logits_BV = torch.tensor([[0.0, 0.0, -200.0, -torch.inf]])
        assert draw(logits_BV, [u])[0].tolist() == [1]

    def test_u_of_0_skips_leading_tokens_without_probability(self):
        assert draw(torch.tensor([[-torch.inf, -300.0, 0.0, 0.0]]), [0.0])[0].tolist() == [2]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_broken_logits_are_an_error(self, bad, temperature):
        with pytest.raises(NotFinite, match="not finite"):
            draw(torch.tensor([[0.0, 1.0], [bad, 0.0]]), [0.5, 0.5], temperature=temperature)
