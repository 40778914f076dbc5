"""Reward servers that are wrong in one thing each, and the checks of `plaudit check` that must say so."""

import math

from toy_reward import CONTEXT, MAX_ITEMS, Bad, ToyEnsemble, ToyReward

from plaudit.v1 import reward_pb2

WRONG = {}


def wrong(*checks, **how):
    """Registers a server and what must fail on it, exactly."""

    def register(servicer):
        WRONG[servicer.__name__] = (servicer, {*checks}, how)
        return servicer

    return register


wrong("health", with_health=False)(type("NoHealth", (ToyReward,), {}))
wrong("reflection", with_reflection=False)(type("NoReflection", (ToyReward,), {}))


def bent(method, change):
    """A class whose answers to `method` are changed: change(response, request)."""

    def call(self, request, context):
        response = getattr(ToyReward, method)(self, request, context)
        change(response, request)
        return response

    return {method: call}


def register(name, method, change, *checks, base=ToyReward):
    wrong(*checks)(type(name, (base,), bent(method, change)))


register("NoDtype", "GetModel", lambda r, q: r.ClearField("dtype"), "model")
register("NoStd", "GetModel", lambda r, q: r.ClearField("reward_std"), "model", "rewards")
register("NoContext", "GetModel", lambda r, q: r.ClearField("context_length"),
         "model", "rewards", "item errors", "truncation")  # fmt: skip
register("NoTemperature", "GetModel", lambda r, q: r.ClearField("compare_temperature"), "model", "Compare")
register("NoName", "GetModel", lambda r, q: r.ClearField("name"), "model", "list")
register(
    "NoModelId", "GetModel", lambda r, q: r.model.ClearField("model_id"), "version", "list", "same version"
)
register("NoDigest", "GetModel", lambda r, q: r.model.ClearField("weights_sha256"),
         "version", "list", "same version")  # fmt: skip
register("NoLimits", "GetModel", lambda r, q: r.ClearField("limits"), "limits", "too many items")
register("NoWindow", "GetModel", lambda r, q: r.ClearField("stream_window"), "limits")
register("NoModels", "ListModels", lambda r, q: r.ClearField("models"), "list")
register("TwiceListed", "ListModels", lambda r, q: r.models.append(r.models[0]), "list")
register("OtherDefault", "ListModels", lambda r, q: setattr(r.models[0], "name", "other"), "list")
register("OldVersion", "ListModels", lambda r, q: setattr(r.models[0].model, "step", 7), "list")
register("ScoreOfAnother", "Score", lambda r, q: setattr(r.model, "step", 7), "same version")
register("RankOfAnother", "Rank", lambda r, q: r.ClearField("model"), "same version")
register("CompareOfAnother", "Compare", lambda r, q: r.ClearField("model"), "same version")
register("NoTiming", "Score", lambda r, q: r.ClearField("timing"), "timing")
register("NegativeTiming", "Score", lambda r, q: setattr(r.timing, "queue_seconds", -1), "timing")


def shift(response, request):
    """Results of one item are told as those of the next."""
    results = [*response.results]
    response.ClearField("results")
    response.results.extend([*results[1:], *results[:1]])


SCORED = ("alignment", "company", "ScoreStream", "Rank", "Compare")
register("Misaligned", "Score", shift, *SCORED, "item errors", "truncation", "token ids")
register("OneShort", "Score", lambda r, q: r.results.pop(),
         *SCORED, "rewards", "item errors", "all_or_nothing", "truncation", "chats", "token ids")  # fmt: skip


def invent(response, request):
    """A number for every item that has none."""
    for result in response.results:
        if result.HasField("error"):
            result.reward.SetInParent()


register("Inventing", "Score", invent, "item errors", "token ids")


def unnamed(response, request):
    for result in response.results:
        result.error.ClearField("field_violations") if result.HasField("error") else None


register("Unnamed", "Score", unnamed, "item errors", "token ids")


def spoil(response, request):
    """Neighbours of a bad item are bad too."""
    errors = [result.error for result in response.results if result.HasField("error")]
    for result in response.results if errors else ():
        result.error.CopyFrom(errors[0])


register("Spoiling", "Score", spoil, "item errors", "token ids")


def each_reward(change):
    def every(response, request):
        for index, result in enumerate(response.results):
            if result.HasField("reward"):
                change(result.reward, index)

    return every


register("Unnormalised", "Score", each_reward(lambda r, i: setattr(r, "reward", r.raw_reward)), "rewards")
register(
    "Uncounted",
    "Score",
    each_reward(lambda r, i: setattr(r, "token_count", 0)),
    "rewards",
    "truncation",
    "token ids",
)
register("NotANumber", "Score", each_reward(lambda r, i: setattr(r, "raw_reward", math.nan)),
         "rewards", *SCORED, "item errors")  # fmt: skip
register("AlwaysCut", "Score", each_reward(lambda r, i: setattr(r, "truncated_tokens", 1)),
         "rewards", "truncation")  # fmt: skip


def padded(reward, index):
    """As a model that doesn't mask its padding: what stands beside a text matters."""
    reward.raw_reward += 0.01 * index
    reward.reward = (reward.raw_reward - 0.5) / 2


register("Padded", "Score", each_reward(padded), *SCORED, "item errors")


@wrong("unknown model")
class AnyModel(ToyReward):
    def check_model(self, name, context):
        pass


@wrong("unknown model")
class InvalidModel(ToyReward):
    def check_model(self, name, context):
        if name and name not in self.names:
            self.refuse(context, [Bad("model", "isn't here")])


@wrong("all_or_nothing", "strict Rank")
class Lenient(ToyReward):
    def refuse_all(self, context, errors):
        pass


@wrong("all_or_nothing")
class FirstOnly(ToyReward):
    """Names one bad item of two."""

    def refuse_all(self, context, errors):
        super().refuse_all(context, errors[:1])


@wrong("all_or_nothing", "strict Rank", "empty calls", "too many items", "strict Compare", "token ids",
       "foreign ids")  # fmt: skip
class WithoutDetails(ToyReward):
    def refuse(self, context, bads):
        context.abort(bads[0].code, str(bads[0]))


@wrong("empty calls")
class EmptyIsFine(ToyReward):
    def Score(self, request, context):
        return super().Score(request, context) if request.items else reward_pb2.ScoreResponse()


@wrong("too many items")
class Boundless(ToyReward):
    def Score(self, request, context):
        if len(request.items) <= MAX_ITEMS:
            return super().Score(request, context)
        return reward_pb2.ScoreResponse()


@wrong("truncation", "item errors")
class SilentCut(ToyReward):
    """Cuts what is too long without being asked, and without a word."""

    def words(self, item, path):
        return super().words(item, path)[:CONTEXT]


@wrong("truncation")
class CutsTheOtherEnd(ToyReward):
    def reward(self, item, path, options):
        message = super().reward(item, path, options)
        if message.truncation:
            message.truncation = 5 - message.truncation
        return message


@wrong("chats")
class ChatsFail(ToyReward):
    def words(self, item, path):
        if item.HasField("chat"):
            raise Bad(f"{path}chat")
        return super().words(item, path)


@wrong("chats")
class ChatsInvented(ToyReward):
    """Scores chats without a template."""

    def GetModel(self, request, context):
        response = super().GetModel(request, context)
        response.has_chat_template = False
        return response


@wrong("token ids", "foreign ids")
class AnyIds(ToyReward):
    def check_ids(self, items, tokenizer, context):
        pass


@wrong("token ids")
class IdsOutside(ToyReward):
    """Takes ids that its vocabulary doesn't have."""

    def words(self, item, path):
        if item.HasField("token_ids"):
            return [str(id_) for id_ in item.token_ids.ids]
        return super().words(item, path)


@wrong("ScoreStream")
class OnlyTheFirstMessage(ToyReward):
    def ScoreStream(self, requests, context):
        yield next(super().ScoreStream(requests, context))


@wrong("ScoreStream")
class AnswersTwice(ToyReward):
    def stream_results(self, items, options):
        return [*super().stream_results(items, options), *super().stream_results(items, options)]


@wrong("ScoreStream")
class NumbersItsItems(ToyReward):
    """Answers under names of its own."""

    def stream_results(self, items, options):
        results = super().stream_results(items, options)
        for index, result in enumerate(results):
            result.item_id = str(index)
        return results


@wrong("ScoreStream")
class MixesItemsUp(ToyReward):
    def stream_results(self, items, options):
        results = super().stream_results(items, options)
        return [reward_pb2.StreamResult(item_id=a.item_id, result=b.result)
                for a, b in zip(results, reversed(results), strict=True)]  # fmt: skip


@wrong("ScoreStream")
class UnnamedInTheStream(ToyReward):
    def stream_results(self, items, options):
        results = super().stream_results(items, options)
        for each in results:
            if each.result.HasField("error"):
                each.result.error.ClearField("field_violations")
        return results


@wrong("Rank")
class WorstFirst(ToyReward):
    def add_ranked(self, response, rewards, top):
        super().add_ranked(response, rewards, len(rewards))
        ranked = [*reversed(response.ranked)][:top]
        response.ClearField("ranked")
        response.ranked.extend(ranked)


@wrong("Rank")
class TiesByPlace(ToyReward):
    """Equals get different ranks."""

    def add_ranked(self, response, rewards, top):
        super().add_ranked(response, rewards, top)
        for place, each in enumerate(response.ranked, start=1):
            each.rank = place


@wrong("Rank")
class LosesTheUnranked(ToyReward):
    def Rank(self, request, context):
        response = super().Rank(request, context)
        response.ClearField("unranked")
        return response


@wrong("top_n")
class AllAreTop(ToyReward):
    def add_ranked(self, response, rewards, top):
        super().add_ranked(response, rewards, len(rewards))


@wrong("Compare")
class ComparesNormalised(ToyReward):
    def probability(self, first, second, temperature):
        return 1 / (1 + math.exp(-(first.reward - second.reward) / temperature))


@wrong("Compare")
class IgnoresTemperature(ToyReward):
    def probability(self, first, second, temperature):
        return super().probability(first, second, 1.0)


@wrong("strict Compare")
class AnyTemperature(ToyReward):
    def check_temperature(self, temperature, context):
        pass

    def probability(self, first, second, temperature):
        return super().probability(first, second, temperature or 1.0)


@wrong("components")
class SilentMembers(ToyEnsemble):
    def fill(self, message, text, with_components):
        super().fill(message, text, False)


@wrong("components")
class TalkativeMembers(ToyEnsemble):
    def fill(self, message, text, with_components):
        super().fill(message, text, True)


@wrong("components")
class MeanInstead(ToyEnsemble):
    def combined(self, values):
        return sum(values) / 2


@wrong("components")
class UnsaidCombination(ToyEnsemble):
    combination = reward_pb2.COMBINATION_UNSPECIFIED


@wrong("deadline")
class GoesOnForever(ToyReward):
    """Works on when nobody waits any more."""

    def goes_on(self, context):
        if self.queue.items > 100:
            self.over.wait(30)
        return True
