"""Shapes that other systems defined, asked by their own clients as released where these install lightly.

Cohere's Python client 7.3 (v1 and v2 rerank) and rerankers 0.10 (its Text Embeddings Inference, Cohere and
Jina back ends) are in the dev group. OpenRLHF's own code runs here where `make trainers` was run. vLLM has
no client: its requests are written as its protocol files have them.
"""

import json
import math

import cohere
import pytest
from cohere.core.api_error import ApiError
from gateway_server import fields, gateway_in_background, http_client, options
from rerankers import Reranker
from trainers_python import needs_trainers, run

from plaudit import Chat, RewardClient
from services.gateway.foreign import sigmoid
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.options import ServerOptions

QUERY = "the film is"
DOCUMENTS = [" dull", " good", " a wonderful performance", " not worth seeing"]


@pytest.fixture(scope="module")
def reward(tiny_reward):
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as server:
        yield server.address


@pytest.fixture(scope="module")
def gateway(reward):
    with gateway_in_background(reward) as running:
        yield running


@pytest.fixture(scope="module")
def http(gateway):
    with http_client(gateway) as client:
        yield client


@pytest.fixture(scope="module")
def scores(reward):
    """Of DOCUMENTS as responses to QUERY, over gRPC."""
    with RewardClient(reward) as client:
        return list(client.score([(QUERY, document) for document in DOCUMENTS]))


def near(values):
    return pytest.approx(list(values), abs=1e-5)


def best_first(scores):
    return sorted(range(len(scores)), key=lambda index: -scores[index].reward)


# ---- reranking: Cohere's client ----


@pytest.fixture(params=["v1", "v2"])
def cohere_client(request, gateway):
    make = cohere.Client if request.param == "v1" else cohere.ClientV2
    return make(api_key="none", base_url=f"http://{gateway.address}", client_name="tests")


def test_coheres_client_reranks(cohere_client, scores):
    answer = cohere_client.rerank(model="reward", query=QUERY, documents=DOCUMENTS)
    order = best_first(scores)
    assert [result.index for result in answer.results] == order
    assert [result.relevance_score for result in answer.results] == near(scores[i].reward for i in order)
    assert answer.id


def test_coheres_client_takes_the_best_only(cohere_client, scores):
    answer = cohere_client.rerank(model="reward", query=QUERY, documents=DOCUMENTS, top_n=2)
    assert [result.index for result in answer.results] == best_first(scores)[:2]


def test_coheres_client_has_its_documents_back(gateway):
    client = cohere.Client(api_key="none", base_url=f"http://{gateway.address}")
    documents = [{"text": " dull", "source": "a letter"}, " good"]
    answer = client.rerank(model="reward", query=QUERY, documents=documents, return_documents=True)
    texts = [" dull", " good"]
    assert len(answer.results) == 2
    assert all(result.document.text == texts[result.index] for result in answer.results)


def test_coheres_client_raises_with_the_document_named(cohere_client):
    with pytest.raises(ApiError) as caught:
        cohere_client.rerank(model="reward", query=QUERY, documents=[" good", ""])
    assert caught.value.status_code == 400
    assert caught.value.body["violations"][0]["field"] == "documents[1]"


# ---- reranking: rerankers ----


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("text-embeddings-inference", "/rerank", lambda score: sigmoid(score.raw_reward)),
        ("cohere", "/v1/rerank", lambda score: score.reward),
        ("jina", "/v1/rerank", lambda score: score.reward),
    ],
)
def test_rerankers_ranks(gateway, scores, kind, path, value):
    url = f"http://{gateway.address}{path}"
    ranker = Reranker("reward", model_type=kind, api_key="none", url=url, verbose=0)
    ranked = ranker.rank(query=QUERY, docs=DOCUMENTS)
    order = best_first(scores)
    assert [result.doc_id for result in ranked.results] == order
    assert [result.score for result in ranked.results] == near(value(scores[index]) for index in order)


# ---- reranking: what no client of those sends ----


def test_teis_own_request(http, scores):
    """Every field of TEI's RerankRequest (router/src/http/types.rs)."""
    body = {
        "query": QUERY,
        "texts": DOCUMENTS,
        "raw_scores": True,
        "return_text": True,
        "truncate": True,
        "truncation_direction": "Left",
    }
    answer = http.post("/rerank", json=body).json()
    order = best_first(scores)
    assert [each["index"] for each in answer] == order
    assert [each["text"] for each in answer] == [DOCUMENTS[index] for index in order]
    assert [each["score"] for each in answer] == near(scores[index].raw_reward for index in order)
    nothing = {"truncate": None, "model": None}
    plain = http.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS} | nothing).json()
    assert plain[0].keys() == {"index", "score"}
    assert all(0 < each["score"] < 1 for each in plain)


def test_texts_that_are_too_long(http):
    body = {"query": QUERY, "texts": [" good", " good" * 200]}
    refused = http.post("/rerank", json=body)
    assert refused.status_code == 400
    assert fields(refused) == ["texts[1]"]
    assert len(http.post("/rerank", json=body | {"truncate": True}).json()) == 2
    documents = {"query": QUERY, "documents": body["texts"]}
    assert fields(http.post("/v1/rerank", json=documents)) == ["documents[1]"]
    cut = http.post("/v1/rerank", json=documents | {"truncation": "right"})
    assert len(cut.json()["results"]) == 2


@pytest.mark.parametrize("top_n", [None, 0, 2, 99])
def test_top_n_as_cohere_and_vllm_mean_it(http, top_n):
    answer = http.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, "top_n": top_n}).json()
    assert len(answer["results"]) == (min(top_n, 4) if top_n else 4)
    assert answer["results"][0].keys() == {"index", "relevance_score"}


RERANK_FAULTS = {
    "no query": ("/v1/rerank", {"documents": ["a"]}, 422, ["query"]),
    "nothing to rank": ("/v1/rerank", {"query": "a"}, 422, ["documents"]),
    "no documents": ("/v1/rerank", {"query": "a", "documents": []}, 400, ["documents"]),
    "no texts": ("/rerank", {"query": "a", "texts": []}, 400, ["texts"]),
    "bad query": ("/v1/rerank", {"query": "<|end|>", "documents": ["a"]}, 400, ["query"]),
    "bad documents": ("/v1/rerank", {"query": "a", "documents": ["", "b", "<|pad|>"]}, 400,
                      ["documents[0]", "documents[2]"]),
    "bad texts": ("/rerank", {"query": "a", "texts": ["b", ""]}, 400, ["texts[1]"]),
    "no text": ("/v1/rerank", {"query": "a", "documents": ["b", {"title": "c"}]}, 422, ["documents[1].text"]),
    "number": ("/v1/rerank", {"query": "a", "documents": ["b", {"text": 5}]}, 422, ["documents[1].text"]),
    "fields": ("/v1/rerank", {"query": "a", "documents": ["b"], "rank_fields": ["title"]}, 422,
               ["rank_fields[0]"]),
    "too few": ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, 422, ["top_n"]),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "named"), RERANK_FAULTS.values(), ids=RERANK_FAULTS)
def test_what_cannot_be_ranked_is_named(http, path, body, status, named):
    answer = http.post(path, json=body)
    assert answer.status_code == status
    assert fields(answer) == named


# ---- OpenRLHF ----


def from_openrlhf(http, queries, prompts, labels, url="/get_reward"):
    """As openrlhf 0.11.2 asks (openrlhf/utils/agent.py, SingleTurnAgentExecutor._fetch_rewards_via_http).

    The trainer's client posts this JSON with aiohttp, raises for a status of 400 or above, and tries again.
    """
    answer = http.post(url, json={"query": queries, "prompts": prompts, "labels": labels})
    answer.raise_for_status()
    return answer.json()


def test_openrlhfs_trainer_has_a_reward(http, scores):
    """One query a call; of the answer SingleTurnAgentExecutor.execute takes rewards, scores, extra_logs."""
    answer = from_openrlhf(http, [QUERY + DOCUMENTS[1]], [QUERY], [None])
    assert answer["rewards"] == answer["scores"] == near([scores[1].reward])
    assert answer["extra_logs"] == {"empty_response": [0.0]}


def test_several_queries_keep_their_order(http, scores):
    queries = [QUERY + document for document in DOCUMENTS]
    answer = from_openrlhf(http, queries, [QUERY] * 4, ["4", "2", "", None])
    assert answer["rewards"] == near(score.reward for score in scores)


@needs_trainers
def test_openrlhfs_own_executor_has_rewards(gateway, scores, tiny_reward, tmp_path):
    cases = tmp_path / "cases.json"
    rolled = [{"prompt": QUERY, "response": document, "label": None} for document in DOCUMENTS]
    cases.write_text(json.dumps([*rolled, {"prompt": QUERY, "response": "", "label": None}]))
    url = f"http://{gateway.address}/get_reward?empty_reward=-3"
    seen = run("openrlhf_rollout.py", url, tiny_reward, cases)
    assert [each["reward"] for each in seen] == near([*(score.reward for score in scores), -3.0])
    assert [each["empty"] for each in seen] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("end", ["<|end|>", "<|end|><|end|>", "</s>"])
def test_the_policys_end_token_is_taken_off(http, scores, end):
    """It decodes with skip_special_tokens=False, so the end-of-sequence token stands in the text."""
    answer = from_openrlhf(http, [QUERY + DOCUMENTS[1] + end], [QUERY], [None])
    assert answer["rewards"] == near([scores[1].reward])


def test_the_url_says_which_end_tokens_there_are(http, scores):
    query = [QUERY + DOCUMENTS[1] + "[END]"]
    assert from_openrlhf(http, query, [QUERY], [None])["rewards"] != near([scores[1].reward])
    answer = from_openrlhf(http, query, [QUERY], [None], "/get_reward?end_token=[END]&end_token=<|end|>")
    assert answer["rewards"] == near([scores[1].reward])
    kept = {"query": [QUERY + " good<|end|>"], "prompts": [QUERY], "labels": [None]}
    refused = http.post("/get_reward?end_token=[END]", json=kept)
    assert refused.status_code == 400
    assert fields(refused) == ["query[0]"]
    assert "special token '<|end|>'" in refused.json()["detail"]


def test_turns_in_a_label_take_the_prompts_place(http, reward):
    """A prompt that a chat template made holds special tokens; --data.label_key hands its turns over."""
    rendered = "<|start|>user\nHow was it?<|end|>\n<|start|>assistant\n"
    turns = [{"role": "user", "content": "How was it?"}]
    with RewardClient(reward) as client:
        (score,) = client.score([Chat([("user", "How was it?"), ("assistant", "good")])])
    answer = from_openrlhf(http, [rendered + "good<|end|>"], [rendered], [turns])
    assert answer["rewards"] == near([score.reward])


def test_the_url_chooses_model_and_truncation(http):
    long = [QUERY + " good" * 200]
    assert len(from_openrlhf(http, long, [QUERY], [None], "/get_reward?truncation=left")["rewards"]) == 1
    body = {"query": long, "prompts": [QUERY], "labels": [None]}
    assert http.post("/get_reward?model=other", json=body).status_code == 404
    assert fields(http.post("/get_reward?truncation=middle", json=body)) == ["truncation"]


def test_a_response_without_text_has_the_reward_that_was_declared(http, scores):
    queries = [QUERY + "<|end|>", QUERY + DOCUMENTS[1], QUERY]
    answer = from_openrlhf(http, queries, [QUERY] * 3, [None] * 3, "/get_reward?empty_reward=-3")
    assert answer["rewards"] == near([-3.0, scores[1].reward, -3.0])
    assert answer["extra_logs"] == {"empty_response": [1.0, 0.0, 1.0]}
    only = from_openrlhf(http, [QUERY], [QUERY], [None], "/get_reward?empty_reward=0")
    assert only["rewards"] == [0.0]
    body = {"query": [QUERY, QUERY + " good", QUERY + "<|pad|>"], "prompts": [QUERY] * 3}
    assert fields(http.post("/get_reward?empty_reward=0", json=body)) == ["query[2]"]
    assert fields(http.post("/get_reward?empty_reward=nan", json=body)) == ["empty_reward"]


def turn(content):
    return {"role": "user", "content": content}


OPENRLHF_FAULTS = {
    "one failed": ([QUERY + " good", QUERY, QUERY + " good"], [QUERY] * 3, [], 400, ["query[1]"]),
    "too long": ([QUERY + " good" * 200], [QUERY], [], 400, ["query[0]"]),
    "bad prompt": (["<|pad|>a", "<|pad|> b"], ["<|pad|>", "<|pad|> "], [], 400, ["prompts[0]", "prompts[1]"]),
    "another prompt": ([QUERY + " good", "a film"], [QUERY, QUERY], [], 400, ["query[1]"]),
    "no prompt for one": ([QUERY + " good", "a film"], [QUERY], [], 400, ["prompts"]),
    "none": ([], [], [], 400, ["query"]),
    "bad turn": (
        ["pa", "pb"],
        ["p", "p"],
        [None, [turn("a"), turn("<|pad|>")]],
        400,
        ["labels[1][1].content"],
    ),
    "bad last turn": (["p<|pad|>b"], ["p"], [[turn("a")]], 400, ["query[0]"]),
    "turns too long": (["pa"], ["p"], [[turn("b" * 200)]], 400, ["query[0]"]),
    "picture": (["pa"], ["p"], [[turn("a"), turn([{"type": "image"}])]], 400, ["labels[0][1]"]),
    "no prompts, as before 0.6": ([QUERY], None, None, 422, ["prompts", "labels"]),
}


@pytest.mark.parametrize(
    ("queries", "prompts", "labels", "status", "named"), OPENRLHF_FAULTS.values(), ids=OPENRLHF_FAULTS
)
def test_one_without_a_reward_fails_the_call_and_is_named(http, queries, prompts, labels, status, named):
    answer = http.post("/get_reward", json={"query": queries, "prompts": prompts, "labels": labels})
    assert answer.status_code == status
    assert fields(answer) == named
    assert "rewards" not in answer.json()


# ---- vLLM ----


@pytest.mark.parametrize(
    "names",
    [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")],
)
def test_vllms_score_by_any_of_its_names(http, scores, names):
    body = {names[0]: QUERY, names[1]: DOCUMENTS, "model": "reward", "user": "me", "priority": 0}
    answer = http.post("/score", json=body).json()
    assert answer["object"] == "list"
    assert [(each["index"], each["object"]) for each in answer["data"]] == [(i, "score") for i in range(4)]
    assert [each["score"] for each in answer["data"]] == near(sigmoid(s.raw_reward) for s in scores)
    tokens = sum(score.token_count for score in scores)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    plain = http.post("/score", json=body | {"use_activation": False}).json()
    assert [each["score"] for each in plain["data"]] == near(score.raw_reward for score in scores)


def test_vllms_score_of_one_and_one_and_of_pairs(http, scores):
    one = http.post("/score", json={"text_1": QUERY, "text_2": DOCUMENTS[0]}).json()["data"]
    pairs = http.post("/score", json={"text_1": [QUERY, QUERY], "text_2": DOCUMENTS[:2]}).json()["data"]
    expected = [sigmoid(score.raw_reward) for score in scores[:2]]
    assert [each["score"] for each in one] == near(expected[:1])
    assert [each["score"] for each in pairs] == near(expected)


VLLM_FAULTS = {
    "second of several": ({"text_1": "a", "text_2": ["b", ""]}, 400, ["text_2[1]"]),
    "the only second": ({"queries": "a", "documents": ""}, 400, ["documents"]),
    "first of several": ({"data_1": ["<|end|>", "a"], "data_2": ["b", "c"]}, 400, ["data_1[0]"]),
    "the only first": ({"text_1": "<|end|>", "text_2": "b"}, 400, ["text_1"]),
    "too long": ({"text_1": "a", "text_2": ["b", "c" * 200]}, 400, ["text_2[1]"]),
    "numbers": ({"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, 400, ["text_2"]),
    "none": ({"queries": [], "items": []}, 400, ["items"]),
    "missing": ({"text_1": "a"}, 422, ["text_2"]),
    "an image": ({"text_1": "a", "text_2": {"content": []}}, 422, ["text_2"]),
    "cut to a length": ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 5}, 422,
                        ["truncate_prompt_tokens"]),
    "an instruction": ({"text_1": "a", "text_2": "b", "instruction": "judge"}, 422, ["instruction"]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "status", "named"), VLLM_FAULTS.values(), ids=VLLM_FAULTS)
def test_what_vllms_score_cannot_do_is_named(http, body, status, named):
    answer = http.post("/score", json=body)
    assert answer.status_code == status
    assert fields(answer) == named


def test_vllms_score_cuts_at_the_models_length(http):
    body = {"text_1": "a", "text_2": "b" * 200, "truncate_prompt_tokens": -1}
    answer = http.post("/score", json=body | {"truncation_side": "left"}).json()
    assert answer["usage"]["prompt_tokens"] == 128


def test_vllms_pooling_of_a_conversation(http, reward):
    turns = [{"role": "user", "content": "Good?"}, {"role": "assistant", "content": "not worth seeing"}]
    with RewardClient(reward) as client:
        (score,) = client.score([Chat([(turn["role"], turn["content"]) for turn in turns])])
    body = {"messages": turns, "model": "reward", "task": "classify", "encoding_format": "float"}
    answer = http.post("/pooling", json=body).json()
    assert answer["data"] == [{"index": 0, "object": "pooling", "data": near([sigmoid(score.raw_reward)])}]
    assert answer["usage"]["total_tokens"] == score.token_count
    plain = http.post("/pooling", json=body | {"use_activation": False}).json()
    assert plain["data"][0]["data"] == near([score.raw_reward])


POOLING_FAULTS = {
    "text": ({"input": "the film"}, 422, ["input"]),
    "no turns": ({"messages": []}, 400, ["messages"]),
    "turn": ({"messages": [{"role": "user", "content": "<|end|>"}]}, 400, ["messages[0].content"]),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        422,
        ["messages[0].content"],
    ),
    "task": ({"messages": [], "task": "embed"}, 422, ["task"]),
    "bytes": ({"messages": [], "encoding_format": "base64"}, 422, ["encoding_format"]),
}


@pytest.mark.parametrize(("body", "status", "named"), POOLING_FAULTS.values(), ids=POOLING_FAULTS)
def test_what_vllms_pooling_cannot_do_is_named(http, body, status, named):
    answer = http.post("/pooling", json=body)
    assert answer.status_code == status
    assert fields(answer) == named


def test_a_sigmoid_of_anything():
    assert sigmoid(0.0) == 0.5
    assert sigmoid(2.0) == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert sigmoid(-2.0) == pytest.approx(1 - sigmoid(2.0))
    assert sigmoid(-1000.0) == 0.0
    assert sigmoid(1000.0) == 1.0


def test_tokens_reach_the_service_from_foreign_clients(tiny_reward):
    guarded = serve_in_background(lambda: reward_service(options(tiny_reward)), ServerOptions(token="right"))
    with guarded as server, gateway_in_background(server.address) as gateway:
        base_url = f"http://{gateway.address}"
        good = cohere.Client(api_key="right", base_url=base_url)
        assert good.rerank(model="reward", query=QUERY, documents=DOCUMENTS).results
        with pytest.raises(ApiError) as caught:
            cohere.Client(api_key="wrong", base_url=base_url).rerank(query=QUERY, documents=DOCUMENTS)
    assert caught.value.status_code == 401
