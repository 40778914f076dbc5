"""Requests hold what callers gave, in the form they gave it, and name what can't be held."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from refusals import refused

from plaudit import Chat, PushManifest, TensorSpec
from plaudit.clients import to_proto
from plaudit.v1 import policy_pb2, types_pb2, weights_pb2


def generate(prompts, **options):
    return to_proto.generate_request(prompts, **{"max_new_tokens": 4, **options})


# ---- Generate ----


def test_prompts_in_all_forms():
    turns = [("system", "Be brief."), {"role": "user", "content": "Hi"}]
    prompts = ["the film", Chat(turns), [5, 6], (7,), np.array([8, 9], dtype=np.int64), ""]
    request = generate(prompts, seeds=range(6))
    text, chat, listed, tupled, array, empty = request.prompts
    assert text.text == "the film"
    assert [(turn.role, turn.content) for turn in chat.chat.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
    ]
    assert [list(p.token_ids.ids) for p in (listed, tupled, array)] == [[5, 6], [7], [8, 9]]
    assert empty.WhichOneof("input") == "text", "so that the service can say what is wrong with it"
    assert [p.seed for p in request.prompts] == list(range(6))


def test_empty_forms_are_still_that_form():
    ids, chat = generate([[], Chat([])]).prompts
    assert (ids.WhichOneof("input"), chat.WhichOneof("input")) == ("token_ids", "chat")


def test_options():
    request = generate(
        ["a"],
        max_new_tokens=9,
        temperature=0.0,
        top_k=5,
        top_p=0.5,
        samples_per_prompt=3,
        stop_token_ids=[1, 2],
        stop_strings=["\n"],
        deterministic=True,
        step_exactly=0,
    )
    assert request.sampling == policy_pb2.SamplingParams(
        max_new_tokens=9, temperature=0.0, top_k=5, top_p=0.5, stop_token_ids=[1, 2], stop_strings=["\n"]
    )
    assert request.sampling.HasField("temperature"), "0 is a value, not its absence"
    assert (request.samples_per_prompt, request.deterministic) == (3, True)
    assert (request.WhichOneof("precondition"), request.step_exactly) == ("step_exactly", 0)
    assert generate(["a"], step_at_least=7).step_at_least == 7
    assert generate(["a"]).WhichOneof("precondition") is None


def test_seeds_are_drawn_where_none_are_given():
    first, second = generate(["a", "b"]), generate(["a", "b"])
    seeds = [prompt.seed for request in (first, second) for prompt in request.prompts]
    assert len(set(seeds)) == 4
    assert max(seeds) < 2**64


@pytest.mark.parametrize(
    ("prompts", "options", "field"),
    [
        ("one text", {}, "prompts"),
        (["a"], {"stop_strings": "end"}, "stop_strings"),
        (["a"], {"seeds": [1, 2]}, "seeds"),
        (["a"], {"step_exactly": 1, "step_at_least": 1}, "step_exactly"),
        (["a"], {"max_new_tokens": -1}, "sampling.max_new_tokens"),
        (["a"], {"max_new_tokens": 2.5}, "sampling.max_new_tokens"),
        (["a"], {"temperature": "hot"}, "sampling.temperature"),
        (["a"], {"top_k": -1}, "sampling.top_k"),
        (["a"], {"samples_per_prompt": -1}, "samples_per_prompt"),
        (["a"], {"step_at_least": -1}, "step_at_least"),
        (["a"], {"stop_token_ids": [3, -1]}, "sampling.stop_token_ids[1]"),
        (["a"], {"stop_strings": ["x", 1]}, "sampling.stop_strings[1]"),
        (["a", "b"], {"seeds": [0, 2**64]}, "prompts[1].seed"),
        ([[1, 2, -1]], {}, "prompts[0].token_ids.ids[2]"),
        (["a", [2**32]], {}, "prompts[1].token_ids.ids[0]"),
        ([[0.5]], {}, "prompts[0].token_ids.ids[0]"),
        ([5], {}, "prompts[0].token_ids.ids"),
        (["\ud800"], {}, "prompts[0].text"),
        ([Chat([("user",)])], {}, "prompts[0].chat.messages[0]"),
        ([Chat([("user", "a"), {"role": "user"}])], {}, "prompts[0].chat.messages[1]"),
        ([Chat([("user", 3)])], {}, "prompts[0].chat.messages[0].content"),
    ],
)
def test_what_cannot_be_sent_is_named(prompts, options, field):
    assert refused(generate, prompts, **options)[0] == field


# ---- ComputeLogprobs ----


def test_sequences_and_starts():
    request = to_proto.logprobs_request([[1, 2, 3], np.array([4, 5])], [2, np.int64(1)], 0.7)
    assert [(list(s.token_ids), s.start) for s in request.sequences] == [([1, 2, 3], 2), ([4, 5], 1)]
    assert request.temperature == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("sequences", "starts", "field"),
    [
        ([[1, 2]], [1, 1], "starts"),
        ([[1, 2]], [-1], "sequences[0].start"),
        ([[1], [2, -3]], [0, 1], "sequences[1].token_ids[1]"),
    ],
)
def test_sequences_that_cannot_be_sent(sequences, starts, field):
    assert refused(to_proto.logprobs_request, sequences, starts, 1.0)[0] == field


# ---- pushes ----

MANIFEST = PushManifest(
    "run", 3, 4, [TensorSpec("a.weight", "bfloat16", (2, 3)), TensorSpec("b", "float64", ())], "ff"
)


def test_manifest():
    request = to_proto.begin_push_request(MANIFEST, take_over=True)
    assert request.take_over
    assert request.manifest == weights_pb2.PushManifest(
        run_id="run",
        base_step=3,
        new_step=4,
        tensors=[
            weights_pb2.TensorSpec(name="a.weight", dtype=types_pb2.DATA_TYPE_BF16, shape=[2, 3]),
            weights_pb2.TensorSpec(name="b", dtype=types_pb2.DATA_TYPE_F64),
        ],
        weights_sha256="ff",
        encoding=weights_pb2.PUSH_ENCODING_FULL,
    )


@pytest.mark.parametrize(
    ("manifest", "field"),
    [
        (PushManifest("r", -1, 0, [], ""), "manifest.base_step"),
        (PushManifest("r", 0, 1, [TensorSpec("a", "int8", (1,))], ""), "manifest.tensors[0].dtype"),
        (PushManifest("r", 0, 1, [TensorSpec("a", "float32", (1, -1))], ""), "manifest.tensors[0].shape[1]"),
    ],
)
def test_manifests_that_cannot_be_sent(manifest, field):
    assert refused(to_proto.begin_push_request, manifest, False)[0] == field
    assert refused(to_proto.load_request, "file:///x", manifest, "drain", False)[0] == field


def test_loading_from_files():
    request = to_proto.load_request("file:///x", MANIFEST, "drain", take_over=True)
    assert request.manifest == to_proto.begin_push_request(MANIFEST, take_over=False).manifest
    assert (request.uri, request.mode, request.take_over) == ("file:///x", policy_pb2.SWAP_MODE_DRAIN, True)
    assert refused(to_proto.load_request, 7, MANIFEST, "drain", False)[0] == "uri"


def test_asking_for_a_push():
    assert to_proto.get_push_request("p", "", 0) == weights_pb2.GetPushRequest(push_id="p")
    assert to_proto.get_push_request("", "r", 4) == weights_pb2.GetPushRequest(run_id="r", new_step=4)
    assert refused(to_proto.get_push_request, "", "r", -1)[0] == "new_step"


def test_an_unknown_name_lists_the_known_ones():
    assert refused(to_proto.commit_request, "p", "later")[1] == "'later' is none of in_place, drain"
    assert to_proto.commit_request("p", "drain").mode == policy_pb2.SWAP_MODE_DRAIN


@given(pieces=st.lists(st.binary(max_size=40)), size=st.integers(1, 16), start=st.integers(0, 99))
def test_chunks_are_the_pieces_without_gaps(pieces, size, start):
    chunks = list(to_proto.chunk_requests("p", pieces, size, start))
    assert b"".join(chunk.data for chunk in chunks) == b"".join(pieces)[start:]
    assert [chunk.offset for chunk in chunks] == [start + size * index for index in range(len(chunks))]
    assert all(len(chunk.data) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk.data) <= size for chunk in chunks)
    assert {chunk.push_id for chunk in chunks} <= {"p"}


def test_pieces_may_be_views_of_arrays():
    values = np.arange(6, dtype="<f4")
    (chunk,) = to_proto.chunk_requests("p", [memoryview(values[:2]), memoryview(values[2:]), b""])
    assert chunk.data == values.tobytes()


def test_chunks_are_taken_as_they_are_needed():
    """A push must not hold the whole model twice."""
    taken = []

    def pieces():
        for index in range(4):
            taken.append(index)
            yield bytes(8)

    chunks = to_proto.chunk_requests("p", pieces(), size=8)
    next(chunks)
    assert taken == [0]
