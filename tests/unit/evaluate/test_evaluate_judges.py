"""Judges: plug-ins asked with texts, reward models in ids or text; none is believed blindly."""

import re

import pytest
import torch
from tiny_reward_models import save_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lm.errors import ModelLoadError
from lm.loading import load_reward_model
from lm.placement import choose_placement
from lm.tokenizer import tokenizer_sha256
from trainer.__main__ import report
from trainer.data import Context
from trainer.evaluate.config import JudgeSection
from trainer.evaluate.judges import judge_all, load_judges, model_judge, plugin_judge
from trainer.evaluate.plugins import JudgeError
from trainer.evaluate.samples import Sample

CPU = choose_placement("cpu", "float32", 1)


def sample(text, prompt="the film", ids=(5, 6), digest="other", messages=()):
    context = Context("here", text="" if messages else prompt, messages=messages)
    return Sample(context, (9, 8), tuple(ids), text, (-1.0,) * len(ids), True, digest)


@pytest.fixture
def plugin(tmp_path):
    def write(body):
        path = tmp_path / f"judge{abs(hash(body))}.py"
        path.write_text(f"def judge(prompts, responses):\n    {body}\n")
        return plugin_judge(f"{path}:judge", {})

    return write


def test_a_plugin_is_asked_with_texts(plugin):
    judge = plugin("return [len(p) + 100 * len(r) for p, r in zip(prompts, responses)]")
    chat = sample("abc", messages=(("user", "hi"),))
    assert judge_all("mine", judge, [sample("a", prompt="the"), chat]) == [103.0, 308.0]
    assert chat.prompt == "user: hi"
    assert chat.turns == (("user", "hi"), ("assistant", "abc"))


def test_a_plugin_may_say_that_it_cannot_judge(plugin):
    assert judge_all("mine", plugin("return [None, 1]"), [sample("a"), sample("b")]) == [None, 1.0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return [1.0]", "gave 1 numbers for 2"),
        ("return [1.0, float('nan')]", "gave nan for response 1"),
        ("return [1.0, 'much']", "failed"),
        ("return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_answers_that_are_not_one_finite_number_each_are_refused(plugin, body, says):
    with pytest.raises(JudgeError, match=says):
        judge_all("mine", plugin(body), [sample("a"), sample("b")])


def test_what_a_plugin_says_when_it_fails_is_left_to_debug(plugin, capsys, caplog):
    judge = plugin("raise ValueError('can not read ' + responses[0])")
    with pytest.raises(JudgeError) as caught:
        judge([sample("kestrel")])
    for debug in (False, True):
        assert report(caught.value, debug) == 64
        assert ("ValueError: can not read kestrel" in caplog.text) is debug
    told = capsys.readouterr().err
    assert "kestrel" not in told
    assert re.search(r"judge '.*/judge\d+\.py:judge' failed: ValueError at .*/judge\d+\.py:2 \(--debug", told)


def hf_score(folder, ids):
    """transformers' own forward on the unpadded ids, normalised as the configuration says."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        raw = float(model(torch.tensor([ids])).logits[0, 0])
    return (raw - getattr(model.config, "reward_mean", 0.0)) / getattr(model.config, "reward_std", 1.0)


def test_a_reward_model_with_the_samples_tokenizer_scores_their_ids(tiny_reward):
    loaded = load_reward_model(str(tiny_reward), CPU)
    digest = tokenizer_sha256(loaded.tokenizer)
    samples = [sample("x", ids=ids, digest=digest) for ids in ((5, 6, 2), (7,), (5, 6, 7, 8, 2))]
    scores = judge_all("rm", model_judge(loaded), samples)
    assert scores == pytest.approx([hf_score(tiny_reward, each.ids) for each in samples], abs=1e-5)


def test_a_foreign_reward_model_scores_their_text_and_has_none_for_an_empty_one(foreign_reward):
    loaded = load_reward_model(str(foreign_reward), CPU)
    samples = [sample(" is good"), sample(""), sample(" is dull and long")]
    scores = judge_all("rm", model_judge(loaded), samples)
    tokenizer = AutoTokenizer.from_pretrained(foreign_reward)
    expected = [
        hf_score(foreign_reward, tokenizer("the film")["input_ids"] + tokenizer(each.text)["input_ids"])
        for each in samples
        if each.text
    ]
    assert scores[1] is None
    assert [scores[0], scores[2]] == pytest.approx(expected, abs=1e-5)


def test_a_reward_model_has_no_score_for_what_exceeds_its_context(foreign_reward):
    loaded = load_reward_model(str(foreign_reward), CPU)
    assert judge_all("rm", model_judge(loaded), [sample("z" * 200), sample("z")])[0] is None


def test_a_judge_from_a_folder_is_a_decoder_with_one_output(tmp_path):
    for name, labels, words in (
        ("Bert", 1, "serve it .* in evaluation.judges.rm.reward"),
        ("Llama", 3, "has 1"),
    ):
        save_reward_model(name, tmp_path, labels)
        with pytest.raises(ModelLoadError, match=words):
            load_judges({"rm": JudgeSection(path=str(tmp_path))}, CPU, "evaluation.judges")


def test_judges_load_by_name_whatever_they_are(tiny_reward, tmp_path):
    (tmp_path / "j.py").write_text("class J:\n    def __call__(self, p, r):\n        return [0.5] * len(r)\n")
    sections = {
        "people": JudgeSection(plugin=f"{tmp_path}/j.py:J"),
        "model": JudgeSection(path=str(tiny_reward)),
    }
    judges = load_judges(sections, CPU, "judges")
    assert list(judges) == ["people", "model"]
    assert judge_all("people", judges["people"], [sample("a")]) == [0.5]


@pytest.mark.parametrize("values", [{}, {"plugin": "a:b", "path": "c"}, {"path": "c", "options": {"x": 1}}])
def test_a_judge_is_exactly_one_thing(values):
    with pytest.raises(ValueError, match=r"exactly one|options go to a plugin"):
        JudgeSection(**values)
