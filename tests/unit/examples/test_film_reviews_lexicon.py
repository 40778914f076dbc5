import pytest
from lexicon import Lexicon


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon()


def test_praise_scores_above_blame(lexicon: Lexicon):
    good, bad = lexicon(["The film is", "The film is"], [" a wonderful triumph.", " dull and awful."])
    assert -1 < bad < 0 < good < 1


def test_without_a_known_word_the_score_is_0(lexicon: Lexicon):
    assert lexicon(["The film", ""], [" has two parts.", ""]) == [0, 0]


def test_prompt_and_response_count_together(lexicon: Lexicon):
    whole, negated, alone = lexicon(["A good", "It is not", ""], [" film.", " good.", " good."])
    assert whole > 0
    assert negated < 0 < alone


def test_one_score_for_each_pair(lexicon: Lexicon):
    assert lexicon([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        lexicon(["The film", "The plot"], [" is good."])
