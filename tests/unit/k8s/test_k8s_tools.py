"""The tools that the other tests use: fetched once, whole, and never quietly absent in CI."""

import assets
import kubernetes_tools
import pytest
from kubernetes_tools import run, tool


def test_kubectl_brings_kustomize_and_helm_is_the_fourth():
    assert "v1.37" in run("kubectl", "version", "--client")
    assert run("helm", "version", "--short").startswith("v4.")


def test_they_are_kept_where_other_packages_are():
    assert str(assets.cache_folder()) in tool("kubectl")


def test_a_tool_that_cannot_be_had_skips_with_the_reason(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(kubernetes_tools.shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="Debian: prometheus"):
        tool.__wrapped__("promtool")


def test_in_ci_it_fails(monkeypatch):
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(kubernetes_tools, "_unpacked", out_of_reach)
    with pytest.raises(pytest.fail.Exception, match="no network"):
        tool.__wrapped__("helm")


def out_of_reach():
    raise assets.AssetError("no network")
