"""A good request of every method that takes more than a name: what fuzzing begins with."""

from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2, trainer_pb2, types_pb2, weights_pb2
from services.oip import open_inference_pb2 as oip

_PAIR = reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt="the film is", response=" good"))
_TURNS = types_pb2.Chat(
    messages=[
        types_pb2.ChatMessage(role="user", content="the film is"),
        types_pb2.ChatMessage(role="assistant", content="good"),
    ]
)
_IDS = types_pb2.TokenIds(ids=[5, 6, 7])
_PROMPT = policy_pb2.Prompt(token_ids=_IDS, seed=1)
_SAMPLING = policy_pb2.SamplingParams(max_new_tokens=2, temperature=1, top_k=5, top_p=0.9, stop_token_ids=[2])
_MANIFEST = weights_pb2.PushManifest(
    run_id="run",
    new_step=1,
    tensors=[
        weights_pb2.TensorSpec(name="model.norm.weight", dtype=types_pb2.DATA_TYPE_F32, shape=[32]),
        weights_pb2.TensorSpec(
            name="model.norm.weight", dtype=types_pb2.DATA_TYPE_BF16, shape=[2**63, 2**63]
        ),
    ],
    weights_sha256="0" * 64,
    encoding=weights_pb2.PUSH_ENCODING_FULL,
)
_COLUMNS = [
    oip.ModelInferRequest.InferInputTensor(
        name=name, datatype="BYTES", shape=[1], contents=oip.InferTensorContents(bytes_contents=[b"the film"])
    )
    for name in ("prompt", "response")
]
GOOD = {
    "plaudit.v1.RewardService/Score": reward_pb2.ScoreRequest(
        items=[_PAIR, reward_pb2.ScoreItem(chat=_TURNS)], options=reward_pb2.ScoreOptions(deterministic=True)
    ),
    "plaudit.v1.RewardService/ScoreStream": reward_pb2.ScoreStreamRequest(
        items=[reward_pb2.StreamItem(item_id="a", item=_PAIR)]
    ),
    "plaudit.v1.RewardService/Rank": reward_pb2.RankRequest(
        text="the film is", candidates=[" good", " dull"]
    ),
    "plaudit.v1.RewardService/Compare": reward_pb2.CompareRequest(
        chat=_TURNS, first="a", second="b", temperature=1
    ),
    "inference.GRPCInferenceService/ModelInfer": oip.ModelInferRequest(model_name="reward", inputs=_COLUMNS),
    "plaudit.v1.PolicyService/Generate": policy_pb2.GenerateRequest(
        prompts=[_PROMPT, policy_pb2.Prompt(chat=_TURNS)], sampling=_SAMPLING, step_exactly=0
    ),
    "plaudit.v1.WeightsService/BeginPush": weights_pb2.BeginPushRequest(manifest=_MANIFEST),
    "plaudit.v1.WeightsService/LoadFromUri": weights_pb2.LoadFromUriRequest(
        uri="file:///nowhere/a.safetensors", manifest=_MANIFEST
    ),
    "plaudit.v1.WeightsService/PushChunks": weights_pb2.PushChunksRequest(push_id="a", offset=0, data=b"abc"),
    "plaudit.v1.ReferenceService/ComputeLogprobs": reference_pb2.ComputeLogprobsRequest(
        sequences=[reference_pb2.LogprobSequence(token_ids=_IDS.ids, start=1)] * 2, temperature=1
    ),
}
"""By path; of all others an empty message is one."""

PROBES = {
    "reward": (
        "plaudit.v1.RewardService/Score",
        reward_pb2.ScoreRequest(items=[_PAIR], all_or_nothing=True),
    ),
    "policy": (
        "plaudit.v1.PolicyService/Generate",
        policy_pb2.GenerateRequest(
            prompts=[_PROMPT], sampling=policy_pb2.SamplingParams(max_new_tokens=1), step_exactly=0
        ),
    ),
    "reference": (
        "plaudit.v1.ReferenceService/ComputeLogprobs",
        reference_pb2.ComputeLogprobsRequest(
            sequences=[reference_pb2.LogprobSequence(token_ids=_IDS.ids, start=1)]
        ),
    ),
    "trainer": ("plaudit.v1.TrainerService/GetRun", trainer_pb2.GetRunRequest()),
}
"""What each server must answer at any time; the policy still with the weights it was loaded with."""
