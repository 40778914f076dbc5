"""A second judge that no model was trained on: the VADER lexicon with its rules.

Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text. ICWSM-14. Its word list was rated by people of its own, word by word.

    plugin = "examples/film-reviews/lexicon.py:Lexicon"
"""

from collections.abc import Sequence

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


class Lexicon:
    """The plug-in: (prompts, responses) → VADER's compound score of prompt and response, from −1 to 1."""

    def __init__(self) -> None:
        """Reads the word list that comes with the package."""
        self._analyser = SentimentIntensityAnalyzer()

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One score each; 0 where no word is in the lexicon."""
        return [
            float(self._analyser.polarity_scores(prompt + response)["compound"])
            for prompt, response in zip(prompts, responses, strict=True)
        ]
