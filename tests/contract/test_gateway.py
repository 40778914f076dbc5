"""The gateway's own endpoints: what they answer is what the gRPC client answers, said in JSON."""

import math

import pytest
from gateway_server import client_of, fields, options

from plaudit import Chat, RewardClient
from services.reward.service import reward_service
from services.rpc.background import serve_in_background

PROMPT, GOOD, DULL = "the film is", " good", " a dull and lifeless story"
TURNS = [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": "not worth seeing"}]

MODELS = """
[[models]]
name = "first"
path = "{first}"

[[models]]
name = "second"
path = "{second}"

[[models]]
name = "both"
ensemble = ["first", "second"]
combine = "mean"
"""


@pytest.fixture(scope="module")
def reward(tiny_reward):
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as server:
        yield server.address


@pytest.fixture(scope="module")
def http(reward):
    with client_of(reward) as client:
        yield client


@pytest.fixture(scope="module")
def grpc_client(reward):
    with RewardClient(reward) as client:
        yield client


def as_json(reward):
    return {
        "reward": pytest.approx(reward.reward, abs=1e-5),
        "raw_reward": pytest.approx(reward.raw_reward, abs=1e-5),
        "token_count": reward.token_count,
        "truncated_tokens": reward.truncated_tokens,
        "truncation": reward.truncation,
        "components": None,
    }


# ---- /v1/score ----


def test_each_form_of_an_item_scores_as_over_grpc(http, grpc_client):
    digest = grpc_client.get_model().model.tokenizer_sha256
    chat = Chat([(turn["role"], turn["content"]) for turn in TURNS])
    expected = grpc_client.score([(PROMPT, GOOD), chat, [5, 6, 7]], tokenizer_sha256=digest)
    items = [{"prompt": PROMPT, "response": GOOD}, {"messages": TURNS}, {"token_ids": [5, 6, 7]}]
    answer = http.post("/v1/score", json={"items": items, "tokenizer_sha256": digest})
    assert answer.status_code == 200
    assert answer.json()["results"] == [as_json(result) for result in expected]
    assert answer.json()["model"] == {
        "model_id": expected.model.model_id,
        "run_id": "",
        "step": 0,
        "weights_sha256": expected.model.weights_sha256,
        "tokenizer_sha256": digest,
    }
    assert answer.json()["timing"].keys() == {"tokenize_seconds", "queue_seconds", "compute_seconds"}
    assert answer.json()["timing"]["compute_seconds"] > 0


BAD = {
    7: ({"prompt": PROMPT, "response": "é" * 500}, "items[7]", "the model reads at most 128"),
    20: ({"prompt": PROMPT, "response": ""}, "items[20].response", "is empty"),
    41: ({"messages": [{"role": "user", "content": "<|end|>"}]}, "items[41].messages[0].content", "special"),
}


def sixty_four():
    items = [{"prompt": PROMPT, "response": GOOD * (1 + index % 5)} for index in range(64)]
    for index, (item, _, _) in BAD.items():
        items[index] = item
    return items


def test_of_64_items_three_are_bad_and_61_are_scored(http):
    answer = http.post("/v1/score", json={"items": sixty_four()})
    assert answer.status_code == 200
    results = answer.json()["results"]
    failed = {index: result["error"] for index, result in enumerate(results) if "error" in result}
    assert failed.keys() == BAD.keys()
    for index, (_, field, words) in BAD.items():
        (violation,) = failed[index]["violations"]
        assert failed[index]["code"] == "INVALID_ARGUMENT"
        assert failed[index]["message"] == f"{field}: {violation['description']}"
        assert violation["field"] == field
        assert words in violation["description"]
    scored = [result for result in results if "error" not in result]
    assert len(scored) == 61
    assert all(math.isfinite(result["reward"]) for result in scored)


def test_all_or_nothing_refuses_them_all_and_names_every_bad_one(http):
    answer = http.post("/v1/score", json={"items": sixty_four(), "all_or_nothing": True})
    assert answer.status_code == 400
    assert fields(answer) == [field for _, field, _ in BAD.values()]
    assert all(field in answer.json()["detail"] for _, field, _ in BAD.values())


def test_ids_are_named_by_their_place(http, grpc_client):
    digest = grpc_client.get_model().model.tokenizer_sha256
    items = [{"token_ids": [5, 300]}, {"token_ids": []}]
    results = http.post("/v1/score", json={"items": items, "tokenizer_sha256": digest}).json()["results"]
    named = [result["error"]["violations"][0]["field"] for result in results]
    assert named == ["items[0].token_ids[1]", "items[1].token_ids"]
    unsendable = {"items": [{"token_ids": [5, -1]}], "tokenizer_sha256": digest, "all_or_nothing": True}
    answer = http.post("/v1/score", json=unsendable)
    assert answer.status_code == 400
    assert fields(answer) == ["items[0].token_ids[1]"]


def test_ids_of_another_tokenizer_are_a_conflict(http):
    answer = http.post("/v1/score", json={"items": [{"token_ids": [5]}], "tokenizer_sha256": "0" * 64})
    assert answer.status_code == 409
    assert answer.json()["code"] == "FAILED_PRECONDITION"


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_is_asked_for_and_told(http, side):
    item = {"prompt": PROMPT, "response": GOOD * 200}
    (result,) = http.post("/v1/score", json={"items": [item], "truncation": side}).json()["results"]
    assert result["token_count"] == 128
    assert result["truncated_tokens"] > 0
    assert result["truncation"] == side


def test_options_that_change_no_number_are_taken(http):
    body = {"items": [{"prompt": PROMPT, "response": GOOD}], "model": "reward"}
    plain = http.post("/v1/score", json=body).json()["results"]
    for option in ({"priority": "low"}, {"deterministic": True}, {"include_components": True}):
        (result,) = http.post("/v1/score", json=body | option).json()["results"]
        assert result["reward"] == pytest.approx(plain[0]["reward"], abs=1e-5)


# ---- /v1/rank ----


@pytest.mark.parametrize("context", [{"prompt": PROMPT}, {"messages": TURNS[:1]}])
def test_candidates_are_ordered_as_over_grpc(http, grpc_client, context):
    candidates = [GOOD, DULL, " good and good", "", GOOD]
    prompt = context.get("prompt") or Chat([("user", TURNS[0]["content"])])
    expected = grpc_client.rank(prompt, candidates)
    answer = http.post("/v1/rank", json={**context, "candidates": candidates})
    assert answer.status_code == 200
    ranked = answer.json()["ranked"]
    assert [(each["index"], each["rank"]) for each in ranked] == [(e.index, e.rank) for e in expected.ranked]
    assert [each["reward"] for each in ranked] == sorted((each["reward"] for each in ranked), reverse=True)
    assert ranked[0]["reward"] == pytest.approx(expected.ranked[0].reward.reward, abs=1e-5)
    (unranked,) = answer.json()["unranked"]
    assert unranked["index"] == 3
    assert [violation["field"] for violation in unranked["error"]["violations"]] == ["candidates[3]"]
    assert unranked["error"]["message"].startswith("candidates[3]: is empty")


def test_top_n_and_all_or_nothing(http):
    body = {"prompt": PROMPT, "candidates": [GOOD, DULL, ""]}
    best = http.post("/v1/rank", json=body | {"top_n": 1}).json()["ranked"]
    assert [each["rank"] for each in best] == [1]
    strict = http.post("/v1/rank", json=body | {"all_or_nothing": True})
    assert strict.status_code == 400
    assert fields(strict) == ["candidates[2]"]


PROMPT_FAULTS = {
    "text": ({"prompt": "<|end|>"}, "prompt"),
    "turn": ({"messages": [{"role": "user", "content": "<|pad|>"}]}, "messages[0].content"),
}


@pytest.mark.parametrize(("context", "field"), PROMPT_FAULTS.values(), ids=PROMPT_FAULTS)
def test_a_fault_of_the_prompt_is_the_prompts(http, context, field):
    for path, rest in (
        ("/v1/rank", {"candidates": [GOOD]}),
        ("/v1/compare", {"first": GOOD, "second": DULL}),
    ):
        answer = http.post(path, json=context | rest)
        assert answer.status_code == 400
        assert fields(answer) == [field]


# ---- /v1/compare ----


def test_a_comparison_is_bradleys_and_terrys(http):
    body = {"prompt": PROMPT, "first": GOOD, "second": DULL}
    answer = http.post("/v1/compare", json=body | {"temperature": 0.5}).json()
    difference = answer["first"]["raw_reward"] - answer["second"]["raw_reward"]
    assert answer["temperature"] == 0.5
    assert answer["probability"] == pytest.approx(1 / (1 + math.exp(-difference / 0.5)))
    own = http.post("/v1/compare", json=body).json()
    assert own["probability"] == pytest.approx(1 / (1 + math.exp(-difference / own["temperature"])), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"first": ""}, "first"), ({"second": "<|end|>"}, "second"), ({"temperature": -1.0}, "temperature")],
)
def test_a_comparison_names_what_is_wrong(http, change, field):
    answer = http.post("/v1/compare", json={"prompt": PROMPT, "first": GOOD, "second": DULL} | change)
    assert answer.status_code == 400
    assert fields(answer) == [field]


# ---- several models ----


@pytest.fixture(scope="module")
def several(tiny_reward, foreign_reward, tmp_path_factory):
    file = tmp_path_factory.mktemp("models") / "models.toml"
    file.write_text(MODELS.format(first=tiny_reward, second=foreign_reward), encoding="utf-8")
    with (
        serve_in_background(lambda: reward_service(options(file))) as server,
        client_of(server.address) as client,
    ):
        yield client


def test_models_are_listed_and_asked_by_name(several):
    listed = several.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [(model["id"], model["object"]) for model in listed["data"]] == [
        ("first", "model"),
        ("second", "model"),
        ("both", "model"),
    ]
    assert listed["data"][0]["queue"] == {"items": 0, "tokens": 0}
    item = {"prompt": PROMPT, "response": GOOD}
    rewards = {}
    for model in listed["data"]:
        answer = several.post("/v1/score", json={"items": [item], "model": model["id"]}).json()
        assert answer["model"] == model["version"]
        rewards[model["id"]] = answer["results"][0]["reward"]
    assert rewards["both"] == pytest.approx((rewards["first"] + rewards["second"]) / 2, abs=1e-5)


def test_components_are_given_if_asked_for(several):
    body = {"items": [{"prompt": PROMPT, "response": GOOD}], "model": "both"}
    (plain,) = several.post("/v1/score", json=body).json()["results"]
    assert plain["components"] is None
    (result,) = several.post("/v1/score", json=body | {"include_components": True}).json()["results"]
    assert [part["name"] for part in result["components"]] == ["first", "second"]
    mean = sum(part["reward"] for part in result["components"]) / 2
    assert result["reward"] == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score", {"items": [{"prompt": PROMPT, "response": GOOD}]}),
        ("/v1/rank", {"prompt": PROMPT, "candidates": [GOOD]}),
        ("/v1/compare", {"prompt": PROMPT, "first": GOOD, "second": DULL}),
        ("/v1/rerank", {"query": PROMPT, "documents": [GOOD]}),
        ("/rerank", {"query": PROMPT, "texts": [GOOD]}),
        ("/score", {"text_1": PROMPT, "text_2": GOOD}),
        ("/pooling", {"messages": TURNS}),
    ],
)
def test_a_model_that_is_not_there_is_not_found(http, path, body):
    answer = http.post(path, json=body | {"model": "other"})
    assert answer.status_code == 404
    assert answer.json()["code"] == "NOT_FOUND"
    assert "'other'" in answer.json()["detail"]


# ---- bodies that are none of ours ----

ITEM = {"prompt": "a", "response": "b"}
WRONG = {
    "nothing": ({}, "items", "required"),
    "misspelt option": ({"items": [ITEM], "truncaton": "left"}, "truncaton", "did you mean 'truncation'?"),
    "key of no kin": ({"items": [ITEM], "zzz": 1}, "zzz", "there are model, truncation, priority"),
    "value of none": ({"items": [ITEM], "truncation": "middle"}, "truncation", "'error', 'left' or 'right'"),
    "items of no kind": ({"items": "text"}, "items", "valid list"),
    "truth as text": ({"items": [ITEM], "all_or_nothing": "yes"}, "all_or_nothing", "valid boolean"),
    "no object": ([ITEM], "body", "valid dict"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "field", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_body_is_named_by_its_field(http, body, field, words):
    answer = http.post("/v1/score", json=body)
    assert answer.status_code == 422
    assert fields(answer) == [field]
    assert words in answer.json()["violations"][0]["description"]
    assert answer.json()["detail"].startswith(f"{field}: ")


MALFORMED = {
    "misspelt part": ({"prompt": "a", "respnse": "b"}, ".respnse", "mean 'response'?"),
    "item of no form": ({}, "", "give prompt and response, or messages"),
    "item of no kind": ("text", "", "give prompt and response"),
    "half an item": ({"prompt": "a"}, ".response", "required"),
    "wrong type": ({"prompt": "a", "response": 5}, ".response", "valid string"),
    "half a turn": ({"messages": [{"content": "x"}]}, ".messages[0].role", "required"),
    "two forms": (ITEM | {"token_ids": [1]}, ".token_ids", "no such key"),
    "key of another form": ({"prompt": "a", "response": "b", "chat": 1}, ".chat", "no such key"),
    "id of no kind": ({"token_ids": [1, "2"]}, ".token_ids[1]", "valid integer"),
    "id below zero": ({"token_ids": [1, -2]}, ".token_ids[1]", "-2 can't be sent"),
    "nothing": (None, "", "give prompt and response"),
}


@pytest.mark.parametrize(("item", "field", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_item_has_an_error_in_its_place(http, item, field, words):
    first, wrong, last = http.post("/v1/score", json={"items": [ITEM, item, ITEM]}).json()["results"]
    assert first == last
    assert first["reward"] < 0 or first["reward"] > 0
    (violation,) = wrong["error"]["violations"]
    assert wrong["error"]["code"] == "INVALID_ARGUMENT"
    assert violation["field"] == f"items[1]{field}"
    assert words in violation["description"]
    assert wrong["error"]["message"].startswith(f"items[1]{field}: ")


def test_all_or_nothing_names_every_fault_of_every_item(http):
    items = [{"prompt": 1, "response": 2}, ITEM, {"messages": None}, {"prompt": "a", "response": ""}]
    answer = http.post("/v1/score", json={"items": items, "all_or_nothing": True})
    assert answer.status_code == 400
    named = ["items[0].prompt", "items[0].response", "items[2].messages", "items[3].response"]
    assert fields(answer) == named
    assert all(name in answer.json()["detail"] for name in named)


@pytest.mark.parametrize("context", [{}, {"prompt": "a", "messages": TURNS}])
def test_a_prompt_has_one_form(http, context):
    for path, rest in (("/v1/rank", {"candidates": ["a"]}), ("/v1/compare", {"first": "a", "second": "b"})):
        answer = http.post(path, json=context | rest)
        assert answer.status_code == 422
        assert fields(answer) == ["prompt"]


def test_an_empty_list_is_refused_by_its_name(http):
    assert fields(http.post("/v1/score", json={"items": []})) == ["items"]
    assert fields(http.post("/v1/rank", json={"prompt": "a", "candidates": []})) == ["candidates"]


def test_text_that_is_no_unicode_is_refused_by_its_place(http):
    body = '{"items": [{"prompt": "a", "response": "\\ud800"}]}'
    answer = http.post("/v1/score", content=body, headers={"content-type": "application/json"})
    (result,) = answer.json()["results"]
    assert [each["field"] for each in result["error"]["violations"]] == ["items[0].response"]
