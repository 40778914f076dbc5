"""Coverage-guided fuzzing of what reads messages, key sets and tokens files: no server, no torch.

Not run by pytest: atheris is 35 MB, has no wheels for some Pythons, and wants minutes. How: CONTRIBUTING.md.
"""

import contextlib
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import atheris

with atheris.instrument_imports(include=["services", "plaudit"]):
    from good_requests import GOOD
    from google.protobuf.message import DecodeError

    from lm.errors import InputError
    from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2, weights_pb2
    from services.batching import CallLimits
    from services.errors import InvalidInput, PreconditionFailed
    from services.oip import open_inference_pb2 as oip
    from services.policy import convert as policy, weights_convert
    from services.reference import convert as reference
    from services.reward import convert as reward, oip_convert
    from services.rpc.jwks import parse_keys
    from services.rpc.options import OptionError
    from services.rpc.tokens import parse_tokens

DOCUMENTED = (DecodeError, InvalidInput, PreconditionFailed, InputError, OptionError)
LIMITS = CallLimits(max_items=16, max_tokens=2048)
FACTS = SimpleNamespace(tokenizer_sha256="0" * 64, vocabulary_size=300, context_length=128)


class Letters:
    """As much of an engine as reading a request needs: a token is a byte."""

    facts = FACTS

    def encode_text(self, text, field):
        return list(text.encode())

    def encode_chat(self, messages, field):
        return [id_ for turn in messages for text in turn for id_ in text.encode()]


def score(request):
    reward.options(request.options, "a", None, 0)
    reward.items(request, FACTS, LIMITS)


def rank(request):
    reward.rank_items(request, LIMITS)


def compare(request):
    reward.temperature(request, 1.0)
    reward.compare_items(request)


def infer(request):
    oip_convert.declared_rows(request, LIMITS.max_items)
    oip_convert.parameters(request)
    oip_convert.outputs(request)
    oip_convert.pairs(request, LIMITS.max_items)


MESSAGES = {
    reward_pb2.ScoreRequest: score,
    reward_pb2.ScoreStreamRequest: lambda request: reward.stream_items(request, "0" * 64, FACTS, LIMITS),
    reward_pb2.RankRequest: rank,
    reward_pb2.CompareRequest: compare,
    oip.ModelInferRequest: infer,
    policy_pb2.GenerateRequest: lambda request: policy.generation_request(request, Letters(), LIMITS, None),
    weights_pb2.BeginPushRequest: lambda request: weights_convert.manifest(request.manifest),
    weights_pb2.CommitPushRequest: lambda request: weights_convert.swap_mode(request.mode),
    reference_pb2.ComputeLogprobsRequest: lambda request: reference.items(request, FACTS, LIMITS),
}
FILES = {
    b'{"keys": [{"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB"}]}': lambda data: parse_keys(data, "a"),
    b'[[token]]\nname = "a"\nscopes = ["score"]': lambda data: parse_tokens(data, "a"),
}
"""By a file to begin with."""


def of_message(kind, read):
    return lambda data: read(kind.FromString(data))


READERS = [*(of_message(kind, read) for kind, read in MESSAGES.items()), *FILES.values()]


def read(data):
    """The first byte says as what the others are read."""
    with contextlib.suppress(DOCUMENTED):
        READERS[data[0] % len(READERS)](data[1:])


def write_corpus(folder):
    """A good one of each to begin with."""
    kinds = list(MESSAGES)
    good = [(kinds.index(type(one)), one.SerializeToString()) for one in GOOD.values() if type(one) in kinds]
    for number, (reader, content) in enumerate([*good, *enumerate(FILES, start=len(kinds))]):
        (folder / str(number)).write_bytes(bytes([reader]) + content)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder))
        options = ["-rss_limit_mb=1024", "-timeout=5"]  # MiB and seconds, the latter of one input
        atheris.Setup([*sys.argv, *options, folder], lambda data: read(data or b"\0"))
        assert "torch" not in sys.modules
        atheris.Fuzz()
