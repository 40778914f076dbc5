"""Whole comparisons of tiny models: every number held to its definition, and the file to its seed."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.loading import save_model
from lm.placement import choose_placement
from trainer.config import RunOptions, load_config
from trainer.data import Context
from trainer.errors import ConfigError, DataError
from trainer.evaluate import statistics
from trainer.evaluate.candidates import load_candidate
from trainer.evaluate.config import CandidateSection, EvaluateConfig, ResponsesSection
from trainer.evaluate.plugins import JudgeError
from trainer.evaluate.run import run, show
from trainer.ppo.collect import prompt_seeds

PROMPTS = ["the film", "a dull", "what a", "not worth", "the story", "lifeless"] * 2
CPU = choose_placement("cpu", "float32", 1)
JUDGES = """
def length(prompts, responses):
    return [len(r) for r in responses]

def vowels(prompts, responses):
    return [sum(c in "aeiou" for c in r) for r in responses]

def picky(prompts, responses):
    return [None if p == "a dull" else float(len(r)) for p, r in zip(prompts, responses)]

def blind(prompts, responses):
    return [None] * len(responses)
"""


@pytest.fixture(scope="module")
def other_policy(tiny_policy, tmp_path_factory):
    """The tiny policy with its layers disturbed: the same tokenizer, another distribution."""
    folder = tmp_path_factory.mktemp("other")
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_model(model, AutoTokenizer.from_pretrained(tiny_policy), folder)
    return folder


@pytest.fixture
def compare(tmp_path, tiny_policy, other_policy, capsys):
    """Runs a comparison from a TOML file with overrides; returns evaluation.json."""

    def run_it(*overrides, name="c", options=RunOptions()):  # noqa: B008  (frozen)
        (tmp_path / "judges.py").write_text(JUDGES)
        (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in PROMPTS))
        (tmp_path / "c.toml").write_text(f"""
            [run]
            name = "{name}"
            directory = "{tmp_path}"
            seed = 3
            threads = 1
            [a]
            path = "{tiny_policy}"
            label = "old"
            [b]
            path = "{other_policy}"
            [data]
            prompts = "{tmp_path}/prompts.jsonl"
            [sampling]
            response_length = 8
            batch_size = 5
            [judges.length]
            plugin = "{tmp_path}/judges.py:length"
            [judges.vowels]
            plugin = "{tmp_path}/judges.py:vowels"
            [best_of_n]
            judge = "vowels"
            n = 3
            prompts = 7
            [placement]
            dtype = "float32"
            """)
        run(load_config(EvaluateConfig, tmp_path / "c.toml", overrides, environ={}), options)
        path = tmp_path / name / "evaluation.json"
        return json.loads(path.read_text()) if path.exists() else None

    return run_it


def test_a_comparison_says_who_won_by_how_much_and_on_what(compare, tmp_path):
    evaluation = compare()
    assert (evaluation["a"]["label"], evaluation["prompts"]["count"]) == ("old", 12)
    assert evaluation["a"]["weights_sha256"] != evaluation["b"]["weights_sha256"]
    assert evaluation["a"]["tokenizer_sha256"] == evaluation["b"]["tokenizer_sha256"]
    shown = evaluation["samples"]
    assert [row["prompt"] for row in shown] == PROMPTS
    a = np.array([row["scores"]["length"][0] for row in shown])
    b = np.array([row["scores"]["length"][1] for row in shown])
    assert [len(row["a"]) for row in shown] == a.tolist()
    judge = evaluation["judges"]["length"]
    assert judge["a"]["mean"] == pytest.approx(a.mean())
    assert judge["b"]["mean"] == pytest.approx(b.mean())
    assert judge["win_rate"]["mean"] == statistics.win_rate(statistics.outcomes(a, b), 3).mean
    assert judge["unscored"] == 0
    assert (tmp_path / "c" / "report.html").read_text().count("<svg") == 1


def test_the_same_configuration_gives_the_same_file_and_another_seed_other_responses(compare):
    first, second, third = compare(name="x"), compare(name="y"), compare("run.seed=4", name="z")
    assert first == second
    assert [row["a"] for row in first["samples"]] != [row["a"] for row in third["samples"]]


def test_kl_is_the_mean_difference_of_log_probabilities_on_samples_of_b(tiny_policy, other_policy, compare):
    evaluation = compare()
    sampling = ResponsesSection(response_length=8, batch_size=5)
    a, b = (load_candidate(CandidateSection(path=str(p)), sampling, CPU) for p in (tiny_policy, other_policy))
    samples = b.sample([Context("", text=p) for p in PROMPTS], prompt_seeds(3, 1, 12), "b")
    assert [each.text for each in samples] == [row["b"] for row in evaluation["samples"]]
    difference = np.array([sum(each.logprobs) for each in samples]) - np.array(a.logprob_sums(samples))
    assert evaluation["kl"]["mean"] == pytest.approx(difference.mean(), abs=1e-4)
    assert evaluation["kl"]["mean"] > 0.1


def test_a_candidate_scores_its_own_samples_as_it_sampled_them(tiny_policy):
    sampling = ResponsesSection(response_length=8, batch_size=5, temperature=0.7)
    policy = load_candidate(CandidateSection(path=str(tiny_policy)), sampling, CPU)
    samples = policy.sample([Context("", text=p) for p in PROMPTS], range(12), "x")
    assert policy.logprob_sums(samples) == pytest.approx([sum(s.logprobs) for s in samples], abs=1e-4)


def test_a_policy_against_itself_has_no_kl_and_ties_with_its_control(compare, tiny_policy):
    evaluation = compare(f"b.path={tiny_policy}")
    assert abs(evaluation["kl"]["mean"]) < 1e-5
    control = evaluation["judges"]["length"]["control"]
    assert control["low"] <= 0.5 <= control["high"]


def test_best_of_n_beats_one_sample_by_the_judge_that_picks(compare):
    evaluation = compare()
    assert evaluation["best_of_n"] == {
        "n": 3, "judge": "vowels", "prompts": 7,
        "kl_bound": pytest.approx(0.431946, abs=1e-6), "win_bound": 0.75,
    }  # fmt: skip
    judge = evaluation["judges"]["vowels"]
    assert judge["best_of_n"]["n"] == 7
    assert judge["best_of_n_mean"] > judge["a"]["mean"]


def test_prompts_a_judge_cannot_judge_are_left_out_and_counted(compare, tmp_path):
    evaluation = compare(f'judges.length.plugin="{tmp_path}/judges.py:picky"')
    judge = evaluation["judges"]["length"]
    assert (judge["unscored"], judge["a"]["n"], judge["win_rate"]["n"]) == (2, 10, 10)
    assert evaluation["samples"][1]["scores"]["length"] == [None, None]
    with pytest.raises(JudgeError, match="could judge no prompt"):
        compare(f'judges.length.plugin="{tmp_path}/judges.py:blind"')


def test_greedy_responses_have_neither_kl_nor_control_nor_best_of_n(compare):
    evaluation = compare("sampling.temperature=0.0")
    assert (evaluation["kl"], evaluation["best_of_n"]) == (None, None)
    assert evaluation["judges"]["length"]["control"] is None
    assert "temperature 0" in evaluation["kl_reason"]


def test_policies_of_different_tokenizers_are_compared_without_kl(compare, tiny_policy, tmp_path):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_policy),
        AutoTokenizer.from_pretrained(tiny_policy),
    )
    tokenizer.add_tokens(["dulldull"])
    model.resize_token_embeddings(len(tokenizer))
    save_model(model, tokenizer, tmp_path / "foreign")
    evaluation = compare(f"b.path={tmp_path}/foreign")
    assert evaluation["kl"] is None
    assert "different tokenizers" in evaluation["kl_reason"]


def test_control_and_samples_can_be_left_out(compare):
    evaluation = compare("control=false", "samples=0", "data.limit=2")
    assert (evaluation["samples"], evaluation["prompts"]["count"]) == ([], 2)
    assert evaluation["judges"]["length"]["control"] is None


def test_without_a_judge_no_empty_table_is_shown_and_the_title_stays(compare, capsys):
    evaluation = compare("data.limit=2")
    assert "vowels" in capsys.readouterr().out
    show(evaluation | {"judges": {}})
    shown = capsys.readouterr().out
    assert "vowels" not in shown
    assert "against A: old" in " ".join(shown.split())


def test_a_dry_run_checks_and_writes_nothing(compare, capsys, tiny_policy):
    assert compare(options=RunOptions(dry_run=True)) is None
    shown = capsys.readouterr().out
    assert "12 prompts" in shown
    lengths = sorted(map(len, AutoTokenizer.from_pretrained(tiny_policy)(PROMPTS).input_ids))
    numbers = [str(n) for n in (12, lengths[0], lengths[6], lengths[11], lengths[-1], sum(lengths))]
    rows = [line.replace("│", " ").split() for line in shown.splitlines() if "prompts of" in line]
    assert rows[:2] == [["prompts", "of", "A", *numbers], ["prompts", "of", "B", *numbers]]


def test_a_dry_run_finds_a_prompt_that_does_not_fit(compare):
    with pytest.raises(DataError, match=r"line 1: prompt has .* leaves room for 3"):
        compare("sampling.response_length=125", options=RunOptions(dry_run=True))


def test_what_does_not_fit_is_refused_before_anything_is_generated(compare):
    with pytest.raises(ConfigError, match=r"best_of_n.judge 'nobody' is not one of the judges"):
        compare('best_of_n.judge="nobody"')
    with pytest.raises(ConfigError, match="serves nothing"):
        compare(options=RunOptions(address="127.0.0.1:0"))
    with pytest.raises(ConfigError, match=r"exactly one of path and address"):
        compare('a.address="127.0.0.1:1"')
    with pytest.raises(DataError, match=r"line 1: prompt has .* leaves room for 3"):
        compare("sampling.response_length=125")
