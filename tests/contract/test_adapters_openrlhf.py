"""The reward file of OpenRLHF: loaded and called as OpenRLHF 0.11.2 does, and by its own code.

Its dependencies (deepspeed, flash-attn, vLLM) can't be installed without a GPU. Where `make trainers` was
run, openrlhf_rollout.py runs the released executor and what makes experiences of its rewards, without vLLM;
elsewhere only the published signature holds: `reward_func(queries, prompts, labels)` of a module that is
loaded by its path, called in threads with lists of one.
"""

import asyncio
import importlib.util
import json
import pickle
import re
from pathlib import Path

import pytest
import trainers_python
from adapter_cases import rewards, serving
from free_ports import free_address
from gateway_server import gateway_in_background
from trainers_python import needs_trainers
from transformers import AutoTokenizer

from plaudit import Chat, InvalidArgument
from plaudit.adapters import openrlhf
from plaudit.adapters.openrlhf import END_TOKENS, PlauditReward

PAGE = Path(__file__).parents[2] / "docs/adapters/openrlhf.md"
TURNS = [{"role": "user", "content": "how is the film"}]


@pytest.fixture(scope="module")
def address(tiny_reward):
    with serving(tiny_reward) as address:
        yield address


def load(path):
    """As OpenRLHF's SingleTurnAgentExecutor loads it."""
    spec = importlib.util.spec_from_file_location("reward_func", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reward_func


def call(reward_func, *cases):
    """As OpenRLHF calls it: for each (query, prompt, label) in a thread."""

    async def run():
        calls = (asyncio.to_thread(reward_func, *([value] for value in case)) for case in cases)
        return await asyncio.gather(*calls)

    return asyncio.run(run())


@pytest.fixture
def page_file(address, tmp_path):
    """The page's reward.py, at the address where the service is."""
    (block,) = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    path = tmp_path / "reward.py"
    path.write_text(block.replace("127.0.0.1:50052", address))
    return path


# --- by the published signature ---


def test_the_module_itself_is_a_reward_file(address, monkeypatch):
    monkeypatch.setenv("PLAUDIT_REWARD", address)
    (answer,) = call(load(openrlhf.__file__), ("the film is good", "the film", ""))
    expected = pytest.approx(rewards(address, [("the film", " is good")]), abs=1e-6)
    assert answer["rewards"] == answer["scores"] == expected
    assert answer["extra_logs"] == {"empty_response": [0.0]}


def test_the_pages_reward_file(page_file, address):
    cases = [(f"the film {number}</s>", "the film", "") for number in range(100)] + [
        ("the film</s>", "the film", "")
    ]
    answers = call(load(page_file), *cases)
    expected = [*rewards(address, [("the film", f" {number}") for number in range(100)]), -3.0]
    assert [answer["rewards"][0] for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert [answer["extra_logs"]["empty_response"] for answer in answers] == [[0.0]] * 100 + [[1.0]]


def test_several_at_once_keep_their_order(address):
    answer = PlauditReward(address)(["a b", "a c", "a d"], ["a"] * 3, ["", "", ""], other=1)
    assert answer["rewards"] == pytest.approx(
        rewards(address, [("a", " b"), ("a", " c"), ("a", " d")]), abs=1e-6
    )


def test_a_conversation_as_the_label_is_scored_with_the_reward_models_template(address):
    prompt = "<|im_start|>user\nhow is the film<|im_end|>\n<|im_start|>assistant\n"
    answer = PlauditReward(address)([f"{prompt}good<|im_end|>"], [prompt], [TURNS])
    chat = Chat([*TURNS, {"role": "assistant", "content": "good"}])
    assert answer["rewards"] == pytest.approx(rewards(address, [chat]), abs=1e-6)


@pytest.mark.parametrize("label", ["", "42", None, [], ["a", "b"], 7])
def test_any_other_label_leaves_the_prompt_as_it_is(address, label):
    answer = PlauditReward(address)(["the film is good"], ["the film"], [label])
    assert answer["rewards"] == pytest.approx(rewards(address, [("the film", " is good")]), abs=1e-6)


@pytest.mark.parametrize("ending", [*END_TOKENS, "<|im_end|><|endoftext|>", ""])
def test_the_policys_end_token_is_no_text(address, ending):
    answer = PlauditReward(address)([f"the film is good{ending}"], ["the film"], [""])
    assert answer["rewards"] == pytest.approx(rewards(address, [("the film", " is good")]), abs=1e-6)


@pytest.mark.parametrize("end_tokens", ["[END]", ["[END]"], ["", "[END]"]])
def test_other_end_tokens_may_be_named(address, end_tokens):
    reward = PlauditReward(address, end_tokens=end_tokens)
    with_end = reward(["the film is good[END]"], ["the film"], [""])["rewards"]
    assert with_end == pytest.approx(rewards(address, [("the film", " is good")]), abs=1e-6)
    kept = reward(["the film is good</s>"], ["the film"], [""])["rewards"]
    assert kept == pytest.approx(rewards(address, [("the film", " is good</s>")]), abs=1e-6)


def test_a_query_that_isnt_its_prompt_and_more_is_refused(address):
    with pytest.raises(InvalidArgument, match=r"'film is good' doesn't begin with its prompt 'the film'"):
        PlauditReward(address)(["film is good"], ["the film"], [""])


def test_what_cant_be_scored_is_raised_and_logged(address, caplog):
    with pytest.raises(InvalidArgument, match=r"a response can't be scored: .*is empty"):
        PlauditReward(address)(["the film</s>"], ["the film"], [""])
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "is empty" in caplog.text


def test_no_address_anywhere_says_what_to_do(monkeypatch):
    monkeypatch.delenv("PLAUDIT_REWARD", raising=False)
    with pytest.raises(InvalidArgument, match="set PLAUDIT_REWARD to it"):
        openrlhf.reward_func(["a b"], ["a"], [""])


def test_it_may_be_pickled(address):
    copy = pickle.loads(pickle.dumps(PlauditReward(address, empty_reward=-1.0)))
    assert copy(["a"], ["a"], [""])["rewards"] == [-1.0]


# --- by OpenRLHF's own code ---


@pytest.fixture
def cases(tiny_policy, tmp_path):
    """Prompts, labels and the policy's responses; what they are to the reward model."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    rendered = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    texts = [{"prompt": "the film", "label": "", "response": f" {number}"} for number in range(20)]
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([*texts, {"prompt": rendered, "label": TURNS, "response": "good"}]))
    chat = Chat([*TURNS, {"role": "assistant", "content": "good"}])
    return path, [*(("the film", text["response"]) for text in texts), chat]


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_trainers
def test_the_released_executor_asks_and_training_sees_the_rewards(page_file, address, cases, tiny_policy):
    path, items = cases
    seen = trainers_python.run("openrlhf_rollout.py", page_file, tiny_policy, path)
    expected = rewards(address, items)
    assert [each["reward"] for each in seen] == pytest.approx(expected, abs=1e-5)
    assert [each["score"] for each in seen] == pytest.approx(expected, abs=1e-5)
    assert all(each["logged"] == {"reward": each["reward"], "score": each["score"]} for each in seen)
    assert {each["empty"] for each in seen} == {0.0}


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_trainers
def test_over_http_it_is_the_same(address, cases, tiny_policy):
    path, items = cases
    with gateway_in_background(address) as gateway:
        url = f"http://{gateway.address}/get_reward?truncation=left&empty_reward=-3"
        seen = trainers_python.run("openrlhf_rollout.py", url, tiny_policy, path)
    assert [each["reward"] for each in seen] == pytest.approx(rewards(address, items), abs=1e-5)
    assert {each["empty"] for each in seen} == {0.0}


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_trainers
def test_without_a_service_the_released_executor_has_no_rewards_rather_than_zeros(
    tiny_policy, tmp_path, cases
):
    file = tmp_path / "reward.py"
    file.write_text(
        "from plaudit.adapters.openrlhf import PlauditReward\n"
        f"reward_func = PlauditReward('{free_address()}', timeout=0.3, patience=0)\n"
    )
    assert trainers_python.run("openrlhf_rollout.py", file, tiny_policy, cases[0]) == [None] * 21
