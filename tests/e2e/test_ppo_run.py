"""`python -m trainer ppo` against real services: whole runs, resumed runs, and runs whose services fail."""

import contextlib
import json
import signal
import socket
import threading
from pathlib import Path

import pytest
import torch
from api_server import ApiServer, Clock, kubeconfig, slice_of
from gateway_server import wait_until
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.digests import WeightsDigest, effective_tensors
from lm.loading import save_model
from plaudit.clients import PolicyClient
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer import checkpoints
from trainer.__main__ import main
from trainer.metrics import RunMetrics

PROMPTS = ["the film", "a dull", "what a", "not worth", "the story", "lifeless", "seeing", "good"]
KINDS = {"policy": policy_service, "reference": reference_service, "reward": reward_service}
JUDGE = '''
import os, pathlib, signal

class Vowels:
    """Counts vowels. Asked for the `at`-th time, and only once in all, it sends a signal first."""

    def __init__(self, at=-1, send="", to=0, once=""):
        self.calls, self.at, self.send, self.to, self.once = 0, at, send, to, pathlib.Path(once)

    def __call__(self, prompts, responses):
        if self.calls == self.at and not self.once.exists():
            self.once.touch()
            os.kill(self.to or os.getpid(), getattr(signal, self.send))
        self.calls += 1
        return [sum(c in "aeiou" for c in r) for r in responses]

class Falling:
    """Likes every evaluation less than the one before."""

    score = 0.0

    def __call__(self, prompts, responses):
        self.score -= 1
        return [self.score] * len(responses)
'''


@contextlib.contextmanager
def serving(kind, folder):
    with serve_in_background(lambda: KINDS[kind](ModelOptions(str(folder), "cpu", "float32", 1))) as server:
        yield server.address


@pytest.fixture(scope="module")
def services(tiny_policy, tiny_reward):
    """Addresses of the three services, each with a tiny float32 model."""
    folders = {"policy": tiny_policy, "reference": tiny_policy, "reward": tiny_reward}
    with contextlib.ExitStack() as stack:
        yield {kind: stack.enter_context(serving(kind, folder)) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def ppo(tmp_path_factory, tiny_policy, tiny_reward, services):
    """Runs the command for a configuration with overrides; returns its exit code."""
    tmp_path = tmp_path_factory.mktemp("ppo")

    def run(*arguments, name="run", **addresses):
        at = services | addresses
        for file in ("prompts", "heldout"):
            lines = [json.dumps({"prompt": prompt}) for prompt in PROMPTS]
            (tmp_path / f"{file}.jsonl").write_text("\n".join(lines))
        (tmp_path / "judge.py").write_text(JUDGE)
        path = tmp_path / f"{name}.toml"
        path.write_text(f"""
            [run]
            name = "{name}"
            directory = "{tmp_path}/runs"
            seed = 5
            threads = 1
            [model]
            path = "{tiny_policy}"
            dtype = "float32"
            [critic]
            path = "{tiny_reward}"
            dtype = "float32"
            learning_rate = 1e-3
            [services]
            policy = {json.dumps([at["policy"]] if isinstance(at["policy"], str) else at["policy"])}
            reference = "{at["reference"]}"
            reward = "{at["reward"]}"
            connect_timeout = 10.0
            patience = 1.0
            [data]
            prompts = "{tmp_path}/prompts.jsonl"
            [sampling]
            response_length = 6
            request_size = 3
            [ppo]
            total_episodes = 24
            batch_size = 6
            num_mini_batches = 2
            num_ppo_epochs = 2
            learning_rate = 1e-3
            warmup_iterations = 2
            adap_kl_ctrl = true
            horizon = 50.0
            missing_eos = "none"
            ema_decay = 0.9
            [evaluation]
            prompts = "{tmp_path}/heldout.jsonl"
            every = 2
            samples = 3
            best_by = "vowels"
            [evaluation.judges.vowels]
            plugin = "{tmp_path}/judge.py:Vowels"
            """)
        settings = [word for each in arguments for word in (("--set", each) if "=" in each else (each,))]
        return main(["ppo", str(path), *settings])

    run.folder = tmp_path / "runs"
    return run


@pytest.fixture
def signal_at_2(tmp_path):
    """Has the judge send a signal while step 2 is evaluated, once."""

    def setting(name, to=0):
        options = f'{{at = 1, send = "{name}", to = {to}, once = "{tmp_path}/sent"}}'
        return f"evaluation.judges.vowels.options={options}"

    return setting


def lines_of(folder: Path) -> list[dict]:
    """metrics.jsonl without what the clock or the number of replicas decides."""
    clock = ("push_bytes", "time", "eps", "seconds_per_step", "tokens_per_second")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clock and "time/" not in k} for line in lines]


def state_of(folder: Path) -> dict:
    """Everything in the newest checkpoint but the run's configuration."""
    return checkpoints.load(checkpoints.latest_whole(folder / "checkpoints"))


def assert_same(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def assert_same_run(one: Path, other: Path):
    for name in ("policy", "policy-ema"):
        assert_same(
            load_file(one / name / "model.safetensors"), load_file(other / name / "model.safetensors")
        )
    assert lines_of(one) == lines_of(other)
    first, second = state_of(one), state_of(other)
    for state in (first, second):
        del state["loop"]["config"]  # holds the name and the judge's options
    assert_same(first, second)
    for path in (one / "evaluations").iterdir():
        assert path.read_bytes() == (other / "evaluations" / path.name).read_bytes()


@pytest.fixture(scope="module")
def opened():
    """What every run from now on exports."""
    found = []

    def open_metrics(*given):
        found.append(RunMetrics(*given))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.loop.RunMetrics", open_metrics)
        yield found


@pytest.fixture(scope="module")
def uninterrupted(ppo, opened):
    """The folder of four steps without a stop."""
    assert ppo(name="whole") == 0
    return ppo.folder / "whole"


def test_a_run_leaves_policy_average_metrics_evaluations_and_report(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {
        "config.toml", "policy", "policy-ema", "run.json", "metrics.jsonl", "evaluations", "checkpoints",
        "report.html", ".lock",
    }  # fmt: skip
    live = AutoModelForCausalLM.from_pretrained(uninterrupted / "policy")
    average = AutoModelForCausalLM.from_pretrained(uninterrupted / "policy-ema")
    assert not torch.equal(average.model.norm.weight, live.model.norm.weight)
    facts = json.loads((uninterrupted / "run.json").read_text())
    assert (facts["steps"], facts["episodes"], facts["policy_step"], facts["judged_weights"]) == (
        4,
        24,
        4,
        "live",
    )
    assert facts["config"]["ppo"]["learning_rate"] == 1e-3
    assert facts["digests"]["model.path"] == facts["digests"]["services.reference"]
    assert sorted(path.name for path in (uninterrupted / "evaluations").iterdir()) == [
        "00000000.json", "00000002.json", "00000004.json",
    ]  # fmt: skip
    evaluation = json.loads((uninterrupted / "evaluations/00000002.json").read_text())
    assert [sample["prompt"] for sample in evaluation["samples"]] == PROMPTS[:3]
    assert set(evaluation["judges"]) == {"reward", "vowels"}
    assert "KL from the reference" in (uninterrupted / "report.html").read_text()


def test_the_first_step_has_no_kl_and_learner_and_generator_agree(uninterrupted):
    steps = [line for line in lines_of(uninterrupted) if "objective/kl" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert abs(steps[0]["objective/kl"]) < 1e-5
    assert abs(steps[-1]["objective/kl"]) > 0.01  # a few samples: the mean may be negative
    assert max(line["mismatch/logprob_abs_max"] for line in steps) < 1e-5
    assert all(line["policy_lag"] == 0 for line in steps)


def test_responses_that_never_end_are_told_since_their_scores_say_nothing(ppo, caplog):
    settings = ('ppo.missing_eos="replace"', "sampling.response_length=1", "ppo.total_episodes=6")
    assert ppo(*settings, name="endless") == 0
    assert (
        "no response ended within 1 tokens (sampling.response_length): all of them score -1 " in caplog.text
    )


def test_prometheus_is_told_which_weights_were_pushed_last(uninterrupted, opened):
    exported = {family.name: family.samples for family in opened[0].registry.collect()}
    model = AutoModelForCausalLM.from_pretrained(uninterrupted / "policy")
    (info,) = exported["plaudit_model_info"]
    assert info.labels["weights_sha256"] == WeightsDigest(effective_tensors(model)).hexdigest()
    assert info.labels["run_id"].startswith("whole-")
    assert exported["plaudit_model_step"][0].value == 4


def test_two_steps_sigterm_and_two_resumed_steps_are_four_bit_for_bit(
    uninterrupted, ppo, tiny_policy, signal_at_2, capsys
):
    assert ppo(signal_at_2("SIGTERM"), name="parts") == 75
    assert "stopped after step 2 of 4" in capsys.readouterr().err
    assert not (ppo.folder / "parts/run.json").exists()
    # The second half meets other servers, two replicas: nothing of that may show.
    with serving("policy", tiny_policy) as first, serving("policy", tiny_policy) as second:
        assert ppo(signal_at_2("SIGTERM"), "--resume", name="parts", policy=[first, second]) == 0
        for address in (first, second):
            with PolicyClient(address) as client:
                served = client.get_policy().model
            model = AutoModelForCausalLM.from_pretrained(ppo.folder / "parts/policy")
            assert served.weights_sha256 == WeightsDigest(effective_tensors(model)).hexdigest()
            assert served.step == 4
    assert_same_run(uninterrupted, ppo.folder / "parts")


@contextlib.contextmanager
def on_usr1(act):
    """Calls `act` when the judge sends SIGUSR1."""
    former = signal.signal(signal.SIGUSR1, lambda number, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, former)


def slice_at(address):
    """The EndpointSlice of one pod."""
    host, port = address.split(":")
    return slice_of("one", host, port=int(port))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """An API server that a kubeconfig names."""
    with ApiServer(Clock()) as server:
        path = tmp_path / "kubeconfig"
        path.write_text(kubeconfig({"here": server.url}))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        yield server


def test_a_policy_pod_that_is_replaced_in_mid_run_costs_nothing(
    uninterrupted, ppo, cluster, tiny_policy, signal_at_2
):
    """The pod dies while step 2 is evaluated; the new one, elsewhere, has the weights of the folder."""
    with serving("policy", tiny_policy) as second, contextlib.ExitStack() as first:
        cluster.put("endpointslices", slice_at(first.enter_context(serving("policy", tiny_policy))))

        def replace():
            first.close()
            cluster.put("endpointslices", slice_at(second))

        with on_usr1(replace):
            settings = (signal_at_2("SIGUSR1"), "services.patience=60.0")
            assert ppo(*settings, name="moved", policy="kubernetes:///plaudit-policy:grpc") == 0
        with PolicyClient(second) as client:
            assert client.get_policy().model.step == 4
    assert_same_run(uninterrupted, ppo.folder / "moved")
    assert cluster.objects["leases", "plaudit-policy-trainer"]["spec"]["holderIdentity"] == ""


def test_a_second_trainer_exits_and_says_who_was_first(ppo, cluster, services, capsys):
    cluster.put("endpointslices", slice_at(services["policy"]))
    spec = {"holderIdentity": "pod-9_other", "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "now"}
    cluster.put("leases", {"metadata": {"name": "plaudit-policy-trainer"}, "spec": spec})
    policy = "kubernetes:///plaudit-policy:grpc"
    assert ppo("services.connect_timeout=3.0", name="second", policy=policy) == 75
    assert "services.policy: kubernetes:///plaudit-policy:grpc: another trainer, pod-9_other" in (
        capsys.readouterr().err
    )


def test_ctrl_c_ends_with_130_and_the_run_goes_on_from_its_last_checkpoint(uninterrupted, ppo, signal_at_2):
    assert ppo(signal_at_2("SIGINT"), "run.checkpoint_every=1", name="cut") == 130
    assert checkpoints.latest_whole(ppo.folder / "cut/checkpoints").name == "step-00000001"
    assert ppo(signal_at_2("SIGINT"), "--resume", name="cut") == 0
    assert_same_run(uninterrupted, ppo.folder / "cut")


def test_a_reward_service_that_dies_ends_the_run_with_a_checkpoint_and_another_takes_over(
    uninterrupted, ppo, tiny_reward, signal_at_2, capsys
):
    with contextlib.ExitStack() as service:
        at = service.enter_context(serving("reward", tiny_reward))
        with on_usr1(service.close):
            assert ppo(signal_at_2("SIGUSR1"), name="bereft", reward=at) == 75
    error = capsys.readouterr().err
    assert f"reward at {at} (services.reward) has not answered since" in error
    assert "step 2 is kept, go on with --resume" in error
    with serving("reward", tiny_reward) as address:
        assert ppo(signal_at_2("SIGUSR1"), "--resume", name="bereft", reward=address) == 0
    assert_same_run(uninterrupted, ppo.folder / "bereft")


def test_a_judge_that_is_a_service_is_waited_for_as_any_other(ppo, opened, tiny_reward, signal_at_2, capsys):
    key, waited = "evaluation.judges.second.reward", []

    def waits():
        return opened[-1].registry.get_sample_value("plaudit_ppo_waiting_judge")

    with contextlib.ExitStack() as service:
        at = service.enter_context(serving("reward", tiny_reward))

        def close():
            service.close()
            watch = threading.Thread(target=lambda: waited.append(wait_until(lambda: waits() == 1)))
            watch.start()
            service.callback(watch.join)

        two_steps = (signal_at_2("SIGUSR1"), "ppo.total_episodes=12")
        with on_usr1(close):
            assert ppo(*two_steps, f"{key}={at}", name="unjudged") == 75
    assert waited and waits() == 0
    error = capsys.readouterr().err
    assert f"judge second at {at} ({key}) has not answered since" in error
    assert "step 2 is kept, go on with --resume" in error
    with serving("reward", tiny_reward) as address:
        again = (*two_steps, f"{key}={address}", "--resume", "--accept-changes", key)
        assert ppo(*again, name="unjudged") == 0
    evaluation = json.loads((ppo.folder / "unjudged/evaluations/00000002.json").read_text())
    assert evaluation["judges"]["second"]["mean"] == pytest.approx(evaluation["judges"]["reward"]["mean"])


def test_a_judge_that_is_away_at_the_start_is_not_waited_for(ppo, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    assert ppo(f"evaluation.judges.second.reward={nobody}", "services.patience=600.0", name="x") == 69
    assert "(evaluation.judges.second.reward)" in capsys.readouterr().err


def test_a_judge_that_fails_in_mid_run_keeps_the_steps_before(ppo, capsys):
    fussy = ppo.folder.parent / "fussy.py"
    fussy.write_text(
        "def judge(prompts, responses, seen=[]):\n    seen.append(1)\n    return [1 / (2 - len(seen))]\n"
    )
    fail = f"evaluation.judges.vowels.plugin={fussy}:judge"
    assert ppo(fail, "evaluation.limit=1", name="fussy") == 64
    assert "ZeroDivisionError" in (error := capsys.readouterr().err)
    assert "step 2 is kept, go on with --resume" in error
    assert [line["step"] for line in lines_of(ppo.folder / "fussy")] == [0, 1, 2]
    assert ppo(fail, "evaluation.limit=1", "--resume", name="fussy") == 0
    assert [line["step"] for line in lines_of(ppo.folder / "fussy")] == [0, 1, 2, 2, 3, 4]


def test_a_reward_that_cannot_be_had_ends_the_run_or_drops_its_sequence(ppo, foreign_reward, capsys):
    prompts = ppo.folder.parent / "long.jsonl"  # one of six is too long for the foreign model's 96 tokens
    prompts.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in [*PROMPTS[:5], "z" * 95]))
    one_step = (f"data.prompts={prompts}", "ppo.total_episodes=6")
    with serving("reward", foreign_reward) as address:
        assert ppo(*one_step, name="mute", reward=address) == 70
        error = capsys.readouterr().err
        assert ppo(*one_step, "ppo.on_reward_error=drop", name="dropping", reward=address) == 0
    assert "1 of 6 rewards could not be had" in error
    assert "(services.reward): INVALID_ARGUMENT" in error
    assert "step 0 is kept" in error
    assert lines_of(ppo.folder / "dropping")[-1]["dropped_rewards"] == 1


def test_a_finished_run_says_so_and_another_of_its_name_is_refused(uninterrupted, ppo, capsys):
    before = (uninterrupted / "run.json").read_bytes()
    assert ppo("--resume", name="whole") == 0
    assert (uninterrupted / "run.json").read_bytes() == before
    assert ppo(name="whole") == 64
    assert "add --resume to go on, or choose another name" in capsys.readouterr().err


def test_a_resumed_run_may_not_change_its_settings_or_models(
    ppo, signal_at_2, tiny_policy, foreign_reward, capsys
):
    assert ppo(signal_at_2("SIGTERM"), name="fixed") == 75
    assert ppo(signal_at_2("SIGTERM"), "ppo.kl_coef=0.5", "--resume", name="fixed") == 64
    assert "ppo.kl_coef: 0.02 when it was saved → 0.5 now" in (told := capsys.readouterr().err)
    assert "--accept-changes ppo.kl_coef" in told
    with serving("reward", foreign_reward) as address:
        assert ppo(signal_at_2("SIGTERM"), "--resume", name="fixed", reward=address) == 64
    assert f"services.reward ({address}): sha256 " in capsys.readouterr().err


def test_what_is_accepted_by_name_may_change_and_nothing_else(ppo, signal_at_2, tmp_path, capsys):
    assert ppo(signal_at_2("SIGTERM"), name="changed") == 75
    for name, prompts in {"others": PROMPTS[::-1], "moved": PROMPTS}.items():
        text = "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts)
        (tmp_path / f"{name}.jsonl").write_text(text)
    others, moved = (f"data.prompts={tmp_path}/{name}.jsonl" for name in ("others", "moved"))
    accept = (signal_at_2("SIGTERM"), "ppo.kl_coef=0.5", "--resume", "--accept-changes", "ppo.kl_coef")
    assert ppo(others, *accept, name="changed") == 64
    told = capsys.readouterr().err
    assert f"data.prompts ({tmp_path}/others.jsonl): sha256 " in told
    assert "--accept-changes data.prompts,ppo.kl_coef" in told
    assert ppo(moved, *accept, name="changed") == 0  # what is in the file counts, and not where it lies
    facts = json.loads((ppo.folder / "changed/run.json").read_text())
    (change,) = facts["changes"]
    assert (change["step"], change["key"], change["saved"], change["now"]) == (2, "ppo.kl_coef", 0.02, 0.5)


def test_the_best_evaluation_is_kept_and_ends_the_run_when_nothing_gets_better(ppo):
    falling = f"evaluation.judges.vowels.plugin={ppo.folder.parent}/judge.py:Falling"
    keep = ("evaluation.keep_best=true", "evaluation.stop_after=1", "evaluation.every=1")
    assert ppo(falling, *keep, name="best") == 0
    facts = json.loads((ppo.folder / "best/run.json").read_text())
    assert (facts["steps"], facts["policy_step"]) == (1, 0)
    digest = WeightsDigest(
        effective_tensors(AutoModelForCausalLM.from_pretrained(ppo.folder / "best/policy"))
    )
    assert digest.hexdigest() == facts["digests"]["model.path"]


def test_a_foreign_reward_model_is_asked_in_text(ppo, foreign_reward, capsys):
    drop = "ppo.on_reward_error=drop"  # an empty text, from an EOS at once, has no score in text
    with serving("reward", foreign_reward) as address:
        assert ppo(drop, "ppo.total_episodes=6", name="foreign", reward=address) == 0
    assert "reward asked in" in (out := capsys.readouterr().out)
    assert "text" in out
    step = lines_of(ppo.folder / "foreign")[-1]
    assert step["objective/scores_std"] >= 0


def test_a_dry_run_shows_sizes_and_leaves_services_and_disk_alone(ppo, services, capsys):
    with PolicyClient(services["policy"]) as client:
        before = client.get_policy().model
        assert ppo("--dry-run", name="dry") == 0
        assert client.get_policy().model == before
    out = capsys.readouterr().out
    assert "6 episodes in 2 minibatches of 3" in out
    assert "16 in all" in out
    assert not (ppo.folder / "dry").exists()


def test_services_that_are_not_there_are_all_named(ppo, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    assert ppo("services.connect_timeout=0.5", name="x", reward=nobody, policy=nobody) == 69
    error = capsys.readouterr().err
    assert f"policy at {nobody} (services.policy[0]) has not answered since" in error
    assert f"reward at {nobody} (services.reward) has not answered since" in error


def test_a_service_of_another_kind_is_a_wrong_configuration(ppo, services, capsys):
    assert ppo(name="x", reward=services["reference"]) == 64
    assert "services.reward: " in (error := capsys.readouterr().err)
    assert "another service" in error


def test_a_reference_of_another_tokenizer_is_refused(ppo, tiny_policy, tmp_path, capsys):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_policy),
        AutoTokenizer.from_pretrained(tiny_policy),
    )
    tokenizer.add_tokens(["dulldull"])
    model.resize_token_embeddings(len(tokenizer))
    save_model(model, tokenizer, tmp_path / "foreign")
    with serving("reference", tmp_path / "foreign") as address:
        assert ppo(name="x", reference=address) == 64
    error = capsys.readouterr().err
    assert f"services.reference: reference at {address} has the tokenizer" in error
    assert "policy, reference and learner need the same one" in error


def test_a_critic_of_another_tokenizer_is_refused(ppo, foreign_reward, capsys):
    assert ppo(f"critic.path={foreign_reward}", name="x") == 64
    assert "critic.path" in capsys.readouterr().err


def test_values_that_explode_end_the_run_with_70(ppo, capsys):
    assert ppo("critic.learning_rate=1e30", "critic.max_grad_norm=1e30", name="exploded") == 70
    assert "not finite" in capsys.readouterr().err


def test_the_pretraining_mix_takes_part(ppo):
    path = ppo.folder.parent / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{prompt} is a film"}) for prompt in PROMPTS))
    mix = ("ppo.ptx_coef=2.0", "ppo.ptx_ratio=2", f"data.pretraining={path}", "ppo.total_episodes=6")
    assert ppo(*mix, name="ptx") == 0
    assert lines_of(ppo.folder / "ptx")[-1]["loss/ptx"] > 0
    assert ppo("ppo.ptx_coef=2.0", name="x") == 64
