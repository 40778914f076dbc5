"""verl's custom reward functions: called as verl 0.9.1 calls them, and by its own code where it is installed.

verl needs other versions than ours, so it has a Python of its own (`make trainers`). Without that only the
published signatures hold: compute_score(data_source=, solution_str=, ground_truth=, extra_info=, and
reward_kwargs) from any thread or as a coroutine, and the same with plural names for a batch.
"""

import asyncio
import inspect
import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import trainers_python
from adapter_cases import rewards, serving
from trainers_python import needs_trainers

from plaudit import Chat, InvalidArgument, Unreachable
from plaudit.adapters.verl import compute_score, compute_score_async, compute_score_batch

PAGE = Path(__file__).parents[2] / "docs/adapters/verl.md"
TURNS = [{"role": "user", "content": "how is the film"}]
CHAT = Chat([*TURNS, {"role": "assistant", "content": "good"}])


@pytest.fixture(scope="module")
def address(tiny_reward):
    with serving(tiny_reward) as address:
        yield address


def sync(solution_str, extra_info, **options):
    return compute_score(
        data_source="films", solution_str=solution_str, ground_truth="", extra_info=extra_info, **options
    )


def awaited(solution_str, extra_info, **options):
    return asyncio.run(
        compute_score_async(
            data_source="films", solution_str=solution_str, ground_truth="", extra_info=extra_info, **options
        )
    )


def batch(solution_str, extra_info, **options):
    (answer,) = compute_score_batch(
        data_sources=np.array(["films"]),
        solution_strs=[solution_str],
        ground_truths=[None],
        extra_infos=np.array([extra_info]),
        **options,
    )
    return answer


@pytest.fixture(params=[sync, awaited, batch])
def score(request, address):
    """score(response, extra_info, **reward_kwargs) in each of the three ways, at the running service."""
    return lambda *arguments, **options: request.param(*arguments, **{"address": address, **options})


# --- by the published signatures ---


def test_a_text_and_its_response_are_a_pair(score, address):
    answer = score(" is good", {"prompt": "the film", "index": 3})
    assert answer == {
        "score": pytest.approx(rewards(address, [("the film", " is good")])[0], abs=1e-6),
        "empty_response": 0.0,
    }


@pytest.mark.parametrize("turns", [TURNS, tuple(TURNS), np.array(TURNS, dtype=object)], ids=type)
def test_turns_are_a_conversation(score, address, turns):
    assert score("good", {"prompt": turns})["score"] == pytest.approx(rewards(address, [CHAT])[0], abs=1e-6)


def test_the_prompt_may_have_another_key(score, address):
    answer = score(" is good", {"question": "the film", "prompt": 1}, prompt_key="question")
    assert answer["score"] == pytest.approx(rewards(address, [("the film", " is good")])[0], abs=1e-6)


@pytest.mark.parametrize("extra_info", [None, {}, {"question": "the film"}, {"prompt": None}])
def test_without_a_prompt_it_says_where_to_put_it(score, extra_info):
    with pytest.raises(
        InvalidArgument, match="is missing, and verl hands the prompt over nowhere else"
    ) as caught:
        score(" is good", extra_info)
    assert caught.value.violations[0].field == "extra_info.prompt"


def test_a_response_without_text_has_the_reward_that_was_declared(score):
    assert score("", {"prompt": "the film"}, empty_reward=-2.5) == {"score": -2.5, "empty_response": 1.0}


def test_or_it_is_an_error(score):
    with pytest.raises(InvalidArgument, match=r"a response of 'films' can't be scored: .*is empty"):
        score("", {"prompt": "the film"})


def test_what_is_too_long_is_cut_if_that_is_wanted(score):
    with pytest.raises(InvalidArgument, match="can't be scored"):
        score(" is good", {"prompt": "the film " * 100})
    assert score(" is good", {"prompt": "the film " * 100}, truncation="left")["score"]


def test_a_misspelt_setting_is_refused(score):
    with pytest.raises(TypeError, match="truncate"):
        score(" is good", {"prompt": "the film"}, truncate="left")


def test_the_environment_has_the_address(monkeypatch, address):
    monkeypatch.setenv("PLAUDIT_REWARD", address)
    expected = rewards(address, [("the film", " is good")])[0]
    assert sync(" is good", {"prompt": "the film"})["score"] == pytest.approx(expected, abs=1e-6)


def test_a_service_that_is_nowhere_is_an_error(tiny_reward, score):
    with serving(tiny_reward) as gone:
        pass
    with pytest.raises(Unreachable, match=gone):
        score(" is good", {"prompt": "the film"}, address=gone, timeout=0.3, patience=0)


async def test_a_thousand_tasks_at_once(address):
    infos = [{"prompt": f"film {number}"} for number in range(1000)]
    answers = await asyncio.gather(
        *(compute_score_async("films", " is good", "", info, address=address, calls=2) for info in infos)
    )
    expected = await asyncio.to_thread(rewards, address, [(info["prompt"], " is good") for info in infos])
    assert [answer["score"] for answer in answers] == pytest.approx(expected, abs=1e-5)


async def test_a_task_that_is_cancelled_leaves_the_others_alone(address):
    tasks = [
        asyncio.create_task(compute_score_async("films", f" {number}", "", {"prompt": "x"}, address=address))
        for number in range(50)
    ]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    expected = await asyncio.to_thread(rewards, address, [("x", f" {number}") for number in range(1, 50, 2)])
    assert [answer["score"] for answer in answers[1::2]] == pytest.approx(expected, abs=1e-5)


def test_threads_and_tasks_may_mix(address):
    infos = [{"prompt": f"film {number}"} for number in range(60)]
    with ThreadPoolExecutor(12) as threads:
        ways = [sync, awaited, batch] * 20
        answers = list(threads.map(lambda way, info: way(" x", info, address=address)["score"], ways, infos))
    assert answers == pytest.approx(rewards(address, [(info["prompt"], " x") for info in infos]), abs=1e-5)


def test_a_batch_keeps_its_order_and_must_be_aligned(address):
    infos = [{"prompt": f"film {number}"} for number in range(100)]
    answers = compute_score_batch(["films"] * 100, [" x"] * 100, [""] * 100, infos, address=address)
    expected = rewards(address, [(info["prompt"], " x") for info in infos])
    assert [answer["score"] for answer in answers] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="zip"):
        compute_score_batch(["films"], [" x"] * 2, [""], infos[:1], address=address)


def test_verl_can_tell_which_is_async_and_ray_can_ship_them():
    assert inspect.iscoroutinefunction(compute_score_async)
    assert not inspect.iscoroutinefunction(compute_score)
    for function in (compute_score, compute_score_async, compute_score_batch):
        assert pickle.loads(pickle.dumps(function)) is function


def test_the_pages_row_has_its_prompt_where_it_is_looked_for(address):
    (block,) = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    names = {}
    exec(block, names)
    row = names["row"]
    chat = Chat([*row["prompt"], {"role": "assistant", "content": "good"}])
    answer = sync("good", row["extra_info"], address=address)
    assert answer["score"] == pytest.approx(rewards(address, [chat])[0], abs=1e-6)


# --- by verl's own code ---

TEXTS = [{"response": f" {number}", "extra_info": {"prompt": "x", "index": number}} for number in range(20)]
CASES = [
    *TEXTS,
    {"response": "good", "extra_info": {"prompt": TURNS}},
    {"response": "", "extra_info": {"prompt": "x"}},
]


FAILING = ("no empty_reward", "rate_limited")
NAME, SETTINGS = "reward.custom_reward_function.name=", "+reward.custom_reward_function.reward_kwargs."


def overrides_of_the_page(address):
    """The page's command line, at the address where the service is."""
    (command,) = re.findall(
        r"^```bash\n.*?main_ppo \\\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [word.replace("127.0.0.1:50052", address) for word in command.replace("\\\n", " ").split()]


def ways_of(address):
    """Name → what calls the reward function, and verl's overrides."""
    page = overrides_of_the_page(address)

    def like_page(function, manager="naive", *more, without="nothing"):
        kept = [word for word in page if not word.startswith((NAME, SETTINGS + without))]
        return [*kept, NAME + function, f"reward.reward_manager.name={manager}", *more]

    both = f"{SETTINGS}address=[{address},{address}]"
    return {
        "the page": ("workers", [*page, "reward.num_workers=2"]),
        "remote, sync": ("workers", like_page("compute_score", "remote", "reward.num_workers=1")),
        "naive, sync": ("manager", like_page("compute_score")),
        "naive, async": ("manager", like_page("compute_score_async")),
        "dapo, async": ("manager", like_page("compute_score_async", "dapo")),
        "gdpo, sync": ("manager", like_page("compute_score", "gdpo")),
        "batch": ("batch", like_page("compute_score_batch")),
        "two replicas": ("manager", like_page("compute_score", "naive", both, without="address")),
        "no empty_reward": ("manager", like_page("compute_score_async", without="empty_reward")),
        "rate_limited": ("manager", like_page("compute_score", "rate_limited", without="empty_reward")),
    }


@pytest.fixture(scope="module")
def outcomes(address, tiny_policy, tmp_path_factory):
    """Name → what verl made of the cases."""
    folder = tmp_path_factory.mktemp("verl")
    cases, ways = folder / "cases.json", folder / "ways.json"
    cases.write_text(json.dumps(CASES))
    ways.write_text(json.dumps(ways_of(address)))
    return trainers_python.run("verl_loop.py", tiny_policy, cases, ways)


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_trainers
@pytest.mark.parametrize("name", [name for name in ways_of("") if name not in FAILING])
def test_verl_has_the_services_rewards(outcomes, address, name):
    expected = [*rewards(address, [*(("x", text["response"]) for text in TEXTS), CHAT]), -3.0]
    assert outcomes[name].get("rewards") == pytest.approx(expected, abs=1e-5), outcomes[name]
    assert outcomes[name]["empty"] == [0.0] * 21 + [1.0]


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_trainers
def test_what_cant_be_scored_ends_the_run_with_its_cause(outcomes):
    assert "a response of 'films' can't be scored" in outcomes["no empty_reward"]["error"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_trainers
def test_the_page_is_right_about_rate_limited(outcomes):
    """If this fails, verl has mended it, and the page should no longer warn."""
    assert outcomes["rate_limited"]["rewards"][-1] == 0.0
