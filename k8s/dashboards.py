"""Grafana dashboards, from code: `python k8s/dashboards.py` writes them for the monitoring component.

Training follows one run: is it learning, is it safe, where does a step's time go. Serving looks at every
service: load, errors, latency, queues, weights.
"""

from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh

FOLDER = Path(__file__).parent / "components/monitoring/dashboards"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
IN = 'namespace="$namespace"'
WIDTH, HEIGHT = 8, 7


@dataclass(frozen=True)
class Chart:
    """Curves over time. `curves` maps a legend, or a template of one, to its query."""

    title: str
    about: str
    curves: dict[str, str]
    unit: str = "short"
    stacked: bool = False


Rows = dict[str, tuple[Chart, ...]]
"""Charts by the heading above them."""


def ppo(name: str) -> str:
    """The query of a trainer's metric."""
    return f"plaudit_ppo_{name}{{{IN}}}"


TRAINING: Rows = {
    "Is it learning?": (
        Chart("Reward", "Mean normalised score, and what PPO maximises: the score less the KL penalty.",
              {"score": ppo("objective_scores"), "with penalty": ppo("objective_rlhf_reward")}),
        Chart("Held-out judge", "By a judge that training never sees. It falls while the score rises: stop.",
              {"judge": ppo("eval_judge"), "score there": ppo("eval_scores"),
               "win rate": ppo("eval_win_rate")}),
        Chart("KL from the reference", "Nats a sequence. A mean below 0 says that two models differ.",
              {"training": ppo("objective_kl"), "held out": ppo("eval_kl")}),
        Chart("Progress", "Iterations done, of those asked for.",
              {"step": ppo("step"), "of": ppo("total_steps")}),
        Chart("Response length", "Tokens, end of sequence included.",
              {"mean": ppo("response_length_mean"), "longest": ppo("response_length_max")}),
        Chart("Entropy", "Nats a token, before the update. Towards 0 the policy says one thing only.",
              {"policy": ppo("policy_entropy_avg")}),
    ),
    "Is it sound?": (
        Chart("Losses", "Means over the updates of an iteration.",
              {"policy": ppo("loss_policy_avg"), "value": ppo("loss_value_avg")}),
        Chart("Ratio and clipping", "Mean ρ, and the share of tokens that the clip holds.",
              {"ratio": ppo("val_ratio"), "policy clipped": ppo("policy_clipfrac_avg"),
               "value clipped": ppo("val_clipfrac_avg")}),
        Chart("Explained variance", "Of the critic. 0 is no better than a constant.",
              {"critic": ppo("val_explained_variance")}),
        Chart("Gradients", "2-norm before clipping.",
              {"policy": ppo("grad_norm_policy"), "value": ppo("grad_norm_value")}),
        Chart("Generator and learner", "How far they disagree on the same weights and tokens, nats a token.",
              {"mean": ppo("mismatch_logprob_abs_mean"), "largest": ppo("mismatch_logprob_abs_max"),
               "KL": ppo("mismatch_kl")}),
        Chart("What was left out", "Since the run began.",
              {"updates skipped": ppo("skipped_updates_total"),
               "rewards dropped": ppo("dropped_rewards_total"), "stopped by KL": ppo("kl_stops_total")}),
    ),
    "Where does a step's time go?": (
        Chart("Phases of a step", "On top of each other, though score and reference are asked at once.",
              {name: ppo(f"{name}_seconds") for name in ("generate", "score", "reference", "learn", "push")},
              "s", stacked=True),
        Chart("Step", "Wall time of the last iteration.", {"seconds": ppo("step_seconds")}, "s"),
        Chart("Weights pushed", "To all replicas together, in each iteration.",
              {"bytes": ppo("push_bytes")}, "bytes"),
        Chart("Throughput", "Response tokens of the whole iteration.",
              {"tokens/s": ppo("tokens_per_second")}),
        Chart("Policy lag", "Steps from the trainer's weights to those that generated, and to those served.",
              {"generated": ppo("policy_lag"), "{{pod}}": f"plaudit:policy_lag:steps{{{IN}}}"}),
        Chart("Memory of the trainer", "",
              {"{{pod}}": f'process_resident_memory_bytes{{{IN}, app_kubernetes_io_component="trainer"}}'},
              "bytes"),
    ),
}  # fmt: skip


def rate(metric: str, by: str = "", match: str = "") -> str:
    """Per second, added up over pods."""
    added = f"sum by ({by}) " if by else "sum"
    return f"{added}(rate({metric}{{{IN}{match}}}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str = "") -> str:
    """Of a histogram."""
    return f"histogram_quantile({q}, {rate(f'{metric}_bucket', f'{by}, le' if by else 'le')})"


def waste(area: str, real: str = "computed_tokens", padded: str = "padded_tokens", by: str = "") -> str:
    """The share of padding."""
    return f"1 - {rate(f'{area}_{real}_total', by)} / {rate(f'{area}_{padded}_total', by)}"


PUSH_SECONDS = " / ".join(rate(f"plaudit_policy_push_seconds_{part}", "pod") for part in ("sum", "count"))


CALLS = ', grpc_service=~"plaudit.*|inference.*"'
SERVING: Rows = {
    "Calls": (
        Chart("Calls", "By method.",
              {"{{grpc_method}}": rate("grpc_server_handled_total", "grpc_method", CALLS)}, "reqps"),
        Chart("Calls that failed", "By method and status.",
              {"{{grpc_method}} {{grpc_code}}":
               rate("grpc_server_handled_total", "grpc_method, grpc_code", CALLS + ', grpc_code!="OK"')
               + " or on () vector(0)"},
              "reqps"),
        Chart("Latency, 99th percentile", "From the start of a call to its end, waiting included.",
              {"{{grpc_method}}": quantile(0.99, "grpc_server_handling_seconds", "grpc_method")}, "s"),
        Chart("Gateway: requests", "By route and status.",
              {"{{http_route}} {{http_response_status_code}}":
               rate("http_server_request_duration_seconds_count", "http_route, http_response_status_code")},
              "reqps"),
        Chart("Gateway: latency, 99th percentile", "By route.",
              {"{{http_route}}": quantile(0.99, "http_server_request_duration_seconds", "http_route")}, "s"),
        Chart("Ready", "1 while a pod admits calls.", {"{{pod}}": f"plaudit_ready{{{IN}}}"}),
    ),
    "Queues and work": (
        Chart("Waiting", "Items that wait or run; autoscaling goes by it.",
              {"reward {{model}}": f"sum by (model) (plaudit_reward_waiting_items{{{IN}}})",
               "policy": f"sum(plaudit_policy_waiting_items{{{IN}}})",
               "reference": f"sum(plaudit_reference_waiting_items{{{IN}}})"}),
        Chart("Tokens", "Generated, scored, read, each second.",
              {"generated": f"sum(rate(plaudit_policy_generated_tokens_total{{{IN}}}[$__rate_interval]))",
               "scored": f"sum(rate(plaudit_reward_tokens_total{{{IN}}}[$__rate_interval]))",
               "reference": f"sum(rate(plaudit_reference_tokens_total{{{IN}}}[$__rate_interval]))"}),
        Chart("Wait in the queue, 99th percentile", "From arrival to the first decode step, or to the batch.",
              {"policy": quantile(0.99, "plaudit_policy_queue_wait_seconds"),
               "reward {{model}}": quantile(0.99, "plaudit_reward_queue_wait_seconds", "model"),
               "reference": quantile(0.99, "plaudit_reference_queue_wait_seconds")}, "s"),
        Chart("Batch, median size", "Responses that grow together, items, sequences.",
              {"policy": quantile(0.5, "plaudit_policy_batch_rows"),
               "reward {{model}}": quantile(0.5, "plaudit_reward_batch_items", "model"),
               "reference": quantile(0.5, "plaudit_reference_batch_items")}),
        Chart("Batch, median time", "Of a decode step, and of a batch.",
              {"policy": quantile(0.5, "plaudit_policy_decode_step_seconds"),
               "reward {{model}}": quantile(0.5, "plaudit_reward_batch_seconds", "model"),
               "reference": quantile(0.5, "plaudit_reference_batch_seconds")}, "s"),
        Chart("Padding", "Share of what is computed that is nobody's token.",
              {"policy, prompts": waste("plaudit_policy", "prompt_tokens", "padded_prompt_tokens"),
               "reward {{model}}": waste("plaudit_reward", by="model"),
               "reference": waste("plaudit_reference")}, "percentunit"),
        Chart("Scored items", "By result, and how many of them the cache had.",
              {"{{result}}": rate("plaudit_reward_items_total", "result"),
               "cached {{model}}": rate("plaudit_reward_cache_hits_total", "model")}),
        Chart("Gateway: requests being answered", "", {"{{pod}}": f"http_server_active_requests{{{IN}}}"}),
    ),
    "Weights": (
        Chart("Weights' step", "The trainer's last push, and what each replica serves.",
              {"trainer": f'plaudit_model_step{{{IN}, app_kubernetes_io_component="trainer"}}',
               "{{pod}}": f'plaudit_model_step{{{IN}, app_kubernetes_io_component="policy"}}'}),
        Chart("Pushes of weights", "Each second, by how they ended.",
              {"{{outcome}}": rate("plaudit_policy_pushes_total", "outcome")}),
        Chart("Push, mean time", "From its opening to its commit.", {"{{pod}}": PUSH_SECONDS}, "s"),
        Chart("Weights received", "", {"{{pod}}": rate("plaudit_policy_push_bytes_total", "pod")}, "Bps"),
    ),
    "Pods": (
        Chart("Event loop lag, 99th percentile", "Above 0.1 s something blocks it.",
              {"{{pod}}": quantile(0.99, "plaudit_event_loop_lag_seconds", "pod")}, "s"),
        Chart("Memory", "", {"{{pod}}": f"process_resident_memory_bytes{{{IN}}}"}, "bytes"),
        Chart("Processor", "Cores.",
              {"{{pod}}": rate("process_cpu_seconds_total", "pod")}),
        Chart("Versions", "", {"{{version}}": f"count by (version) (plaudit_build_info{{{IN}}})"}),
    ),
}  # fmt: skip

DASHBOARDS = {
    "serving": ("Plaudit: serving", SERVING),
    "training": ("Plaudit: training", TRAINING),
}


def panel(chart: Chart) -> timeseries.Panel:
    """A third of a row."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST)
    legend = legend.placement(LegendPlacement.BOTTOM).show_legend(True)
    built = timeseries.Panel().title(chart.title).description(chart.about).unit(chart.unit).datasource(SOURCE)
    built = built.span(WIDTH).height(HEIGHT).legend(legend)
    if chart.stacked:
        built = built.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    for index, (name, query) in enumerate(chart.curves.items()):
        target = prometheus.Dataquery().expr(query).legend_format(name).ref_id(chr(ord("A") + index))
        built = built.with_target(target.datasource(SOURCE))
    return built


def render(name: str) -> str:
    """The JSON of a dashboard."""
    title, rows = DASHBOARDS[name]
    source = dashboard.DatasourceVariable("source").label("Data source").type("prometheus")
    namespace = dashboard.QueryVariable("namespace").label("Namespace").datasource(SOURCE)
    namespace = namespace.query("label_values(plaudit_build_info, namespace)")
    namespace = namespace.refresh(VariableRefresh.ON_DASHBOARD_LOAD)
    board = dashboard.Dashboard(title).uid(f"plaudit-{name}").tags(["plaudit"]).refresh("30s")
    board = board.time("now-3h", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    board = board.with_variable(source).with_variable(namespace)
    for heading, charts in rows.items():
        board = board.with_row(dashboard.Row(heading))
        for chart in charts:
            board = board.with_panel(panel(chart))
    return JSONEncoder(sort_keys=True, indent=1).encode(board.build()) + "\n"


def queries() -> list[str]:
    """Every query of every dashboard."""
    return [
        query
        for _, rows in DASHBOARDS.values()
        for charts in rows.values()
        for chart in charts
        for query in chart.curves.values()
    ]


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(render(each), encoding="utf-8")
