"""A whole RewardService without a model: a text's reward follows from its bytes, and tests may bend it."""

import math
import threading
import time
import zlib
from concurrent import futures
from contextlib import contextmanager

import grpc
from google.protobuf.any_pb2 import Any as AnyProto
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from plaudit.v1 import reward_pb2, reward_pb2_grpc, types_pb2

Code = grpc.StatusCode
NAME = "plaudit.v1.RewardService"
TOKENIZER = "c" * 64
CONTEXT, VOCABULARY, MAX_ITEMS = 40, 100, 600
MEAN, STD = 0.5, 2.0
SIDES = {reward_pb2.TRUNCATION_LEFT, reward_pb2.TRUNCATION_RIGHT}
MODEL = types_pb2.ModelVersion(model_id="toy", step=0, weights_sha256="ab" * 32, tokenizer_sha256=TOKENIZER)


class Bad(Exception):
    """Something is wrong with the field at `path`."""

    def __init__(self, path, description="is wrong; mend it", code=Code.INVALID_ARGUMENT):
        super().__init__(f"{path}: {description}")
        self.path, self.description, self.code = path, description, code


class ToyReward(reward_pb2_grpc.RewardServiceServicer):
    """Right in all that `plaudit check` looks at; a subclass is wrong in one thing."""

    names = ("toy",)
    combination = reward_pb2.COMBINATION_UNSPECIFIED
    components = ()
    has_chat_template = True
    dtype = types_pb2.DATA_TYPE_F32
    seconds_an_item = 0.0
    """How long each item of Score takes."""

    def __init__(self):
        self.model = MODEL
        self.queue = types_pb2.QueueDepth()
        self.over = threading.Event()
        self.asked = []
        """Responses that were scored by ScoreStream, in the order in which they came."""

    # --- one item ---

    def raw(self, text):
        return round(zlib.crc32(text.encode()) / 2**32 * 8 - 4, 3)

    def words(self, item, path):
        """Tokens of an item; raises Bad."""
        match item.WhichOneof("input"):
            case "pair":
                if not item.pair.response:
                    raise Bad(f"{path}pair.response", "is empty; send text")
                return [*item.pair.prompt.split(" "), *item.pair.response.split(" ")]
            case "chat":
                if not self.has_chat_template:
                    raise Bad(f"{path}chat", "there is no template; send a pair")
                return [part for turn in item.chat.messages for part in (turn.role, *turn.content.split(" "))]
            case "token_ids":
                for index, id_ in enumerate(item.token_ids.ids):
                    if id_ >= VOCABULARY:
                        raise Bad(f"{path}token_ids.ids[{index}]", "is too large; use ids of this model")
                return [str(id_) for id_ in item.token_ids.ids]
        raise Bad(path.rstrip(".") or "item", "has no input; set one")

    def reward(self, item, path, options):
        words = self.words(item, path)
        cut = len(words) - CONTEXT
        message = reward_pb2.Reward()
        if cut > 0:
            if options.truncation not in SIDES:
                raise Bad(path.rstrip(".") or "pair", f"has {len(words)} tokens; shorten it")
            left = options.truncation == reward_pb2.TRUNCATION_LEFT
            words = words[cut:] if left else words[:CONTEXT]
            message.truncated_tokens, message.truncation = cut, options.truncation
        self.fill(message, " ".join(words), options.include_components)
        message.token_count = len(words)
        return message

    def fill(self, message, text, with_components):
        message.raw_reward = self.raw(text)
        message.reward = (message.raw_reward - MEAN) / STD

    def result(self, item, path, options):
        try:
            return reward_pb2.ScoreResult(reward=self.reward(item, path, options))
        except Bad as bad:
            return reward_pb2.ScoreResult(error=self.item_error(bad))

    def item_error(self, bad):
        violation = types_pb2.FieldViolation(field=bad.path, description=bad.description)
        return types_pb2.ItemError(
            code=Code.INVALID_ARGUMENT.value[0], message=str(bad), field_violations=[violation]
        )

    # --- calls ---

    def Score(self, request, context):
        self.check_call(request, context)
        results = []
        for index, item in enumerate(request.items):
            self.queue.items = len(request.items) - index
            if not self.goes_on(context):
                break
            results.append(self.result(item, f"items[{index}].", request.options))
        self.queue.items = 0
        if request.all_or_nothing:
            self.refuse_all(context, [result.error for result in results if result.HasField("error")])
        return reward_pb2.ScoreResponse(results=results, model=self.model, timing=self.timing())

    def goes_on(self, context):
        """Whether somebody still waits, after the time that an item takes."""
        time.sleep(self.seconds_an_item)
        return context.is_active()

    def ScoreStream(self, requests, context):
        options = tokenizer = None
        for request in requests:
            if options is None:
                options, tokenizer = request.options, request.tokenizer_sha256
                self.check_model(options.model, context)
            for one in request.items:
                self.asked.append(one.item.pair.response)
            self.check_ids([one.item for one in request.items], tokenizer, context)
            yield reward_pb2.ScoreStreamResponse(
                results=self.stream_results(request.items, options), model=self.model, timing=self.timing()
            )

    def stream_results(self, items, options):
        return [
            reward_pb2.StreamResult(item_id=one.item_id, result=self.result(one.item, "", options))
            for one in reversed(items)
        ]

    def Rank(self, request, context):
        self.check_model(request.options.model, context)
        if not request.candidates:
            self.refuse(context, [Bad("candidates", "is empty; send one")])
        response = reward_pb2.RankResponse(model=self.model, timing=self.timing())
        rewards = {}
        for index, candidate in enumerate(request.candidates):
            item = reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt=request.text, response=candidate))
            try:
                rewards[index] = self.reward(item, "", request.options)
            except Bad as bad:
                path = f"candidates[{index}]"
                response.unranked.add(index=index, error=self.item_error(Bad(path, bad.description)))
        if request.all_or_nothing:
            self.refuse_all(context, [each.error for each in response.unranked])
        top = request.top_n if request.HasField("top_n") else len(rewards)
        self.add_ranked(response, rewards, top)
        return response

    def add_ranked(self, response, rewards, top):
        order = sorted(rewards, key=lambda index: -rewards[index].reward)
        for index in order[:top]:
            better = sum(other.reward > rewards[index].reward for other in rewards.values())
            response.ranked.add(index=index, rank=better + 1, reward=rewards[index])

    def Compare(self, request, context):
        self.check_model(request.options.model, context)
        temperature = request.temperature if request.HasField("temperature") else 1.0
        self.check_temperature(temperature, context)
        rewards = []
        for name in ("first", "second"):
            pair = types_pb2.TextPair(prompt=request.text, response=getattr(request, name))
            try:
                rewards.append(self.reward(reward_pb2.ScoreItem(pair=pair), "", request.options))
            except Bad as bad:
                self.refuse(context, [Bad(name, bad.description)])
        first, second = rewards
        return reward_pb2.CompareResponse(
            probability=self.probability(first, second, temperature),
            temperature=temperature,
            first=first,
            second=second,
            model=self.model,
            timing=self.timing(),
        )

    def probability(self, first, second, temperature):
        return 1 / (1 + math.exp(-(first.raw_reward - second.raw_reward) / temperature))

    def GetModel(self, request, context):
        self.check_model(request.name, context)
        return reward_pb2.GetModelResponse(
            model=self.model,
            dtype=self.dtype,
            vocabulary_size=VOCABULARY,
            context_length=CONTEXT,
            reward_mean=MEAN,
            reward_std=STD,
            has_chat_template=self.has_chat_template,
            limits=types_pb2.CallLimits(max_items=MAX_ITEMS, max_tokens=9999, max_message_bytes=1 << 20),
            name=request.name or self.names[0],
            stream_window=8,
            compare_temperature=1.0,
            combination=self.combination,
            deviation_factor=0.5,
            components=self.components,
            queue=self.queue,
        )

    def ListModels(self, request, context):
        models = [
            reward_pb2.ListedModel(name=name, model=self.model, queue=self.queue) for name in self.names
        ]
        return reward_pb2.ListModelsResponse(models=models)

    def timing(self):
        return reward_pb2.Timing(tokenize_seconds=1e-6, compute_seconds=1e-6)

    # --- what is refused ---

    def check_call(self, request, context):
        self.check_model(request.options.model, context)
        if not request.items:
            self.refuse(context, [Bad("items", "is empty; send one")])
        if len(request.items) > MAX_ITEMS:
            self.refuse(context, [Bad("items", f"holds more than {MAX_ITEMS}; split it")])
        self.check_ids(request.items, request.tokenizer_sha256, context)

    def check_model(self, name, context):
        if name and name not in self.names:
            self.refuse(context, [Bad("model", "isn't here", Code.NOT_FOUND)])

    def check_ids(self, items, tokenizer, context):
        has_ids = any(item.HasField("token_ids") for item in items)
        if has_ids and not tokenizer:
            self.refuse(context, [Bad("tokenizer_sha256", "is needed; send it")])
        if tokenizer and tokenizer != TOKENIZER:
            self.refuse(context, [Bad("tokenizer_sha256", "is another", Code.FAILED_PRECONDITION)])

    def check_temperature(self, temperature, context):
        if temperature <= 0:
            self.refuse(context, [Bad("temperature", "isn't above 0; raise it")])

    def refuse_all(self, context, errors):
        if errors:
            fields = [violation.field for error in errors for violation in error.field_violations]
            self.refuse(context, [Bad(field) for field in fields])

    def refuse(self, context, bads):
        details = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=bad.path, description=bad.description)
                for bad in bads
            ]
        )
        if bads[0].code is Code.FAILED_PRECONDITION:
            violation = error_details_pb2.PreconditionFailure.Violation(type="TOKENIZER", subject="ids")
            details = error_details_pb2.PreconditionFailure(violations=[violation])
        packed = AnyProto()
        packed.Pack(details)
        status = status_pb2.Status(code=bads[0].code.value[0], message=str(bads[0]), details=[packed])
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(bads[0].code, str(bads[0]))


class ToyEnsemble(ToyReward):
    """Two members, combined as `combination` says."""

    combination = reward_pb2.COMBINATION_MEAN_MINUS_STD
    components = tuple(reward_pb2.ComponentInfo(name=name, weight=weight, model=MODEL)
                       for name, weight in (("left", 2.0), ("right", -1.0)))  # fmt: skip

    def fill(self, message, text, with_components):
        members = {name: self.raw(name + text) for name in ("left", "right")}
        message.raw_reward = self.combined([*members.values()])
        message.reward = (message.raw_reward - MEAN) / STD
        for name, value in members.items() if with_components else ():
            message.components.add(name=name, raw_reward=value, reward=value)

    def combined(self, values):
        match self.combination:
            case reward_pb2.COMBINATION_MEAN:
                return sum(values) / 2
            case reward_pb2.COMBINATION_MIN:
                return min(values)
            case reward_pb2.COMBINATION_WEIGHTED_SUM:
                return 2 * values[0] - values[1]
        return sum(values) / 2 - 0.5 * abs(values[0] - values[1]) / 2


@contextmanager
def serving(servicer, with_health=True, with_reflection=True, serving_names=(NAME,), add=(), ready=True):
    """The servicer behind a real port; gives its address. `add` registers it as more than a RewardService."""
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    for register in (reward_pb2_grpc.add_RewardServiceServicer_to_server, *add) if servicer else ():
        register(servicer, server)
    if with_health:
        standing = health.HealthServicer()
        states = health_pb2.HealthCheckResponse
        standing.set("", states.SERVING)
        for name in serving_names:
            standing.set(name, states.SERVING if ready else states.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(standing, server)
    if with_reflection:
        reflection.enable_server_reflection((NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        if servicer:
            servicer.over.set()
        server.stop(0).wait(10)
