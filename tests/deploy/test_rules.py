"""Prometheus' own tool reads the rules and the settings, and runs the rules' unit tests."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
PROMETHEUS = HERE.parent.parent / "deploy" / "prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))


@pytest.fixture
def promtool(component: Callable[[str], Path]) -> Callable[..., None]:
    """``promtool("check", "rules", path)``; fails with what it says."""
    program = component("promtool")

    def run(*arguments: str | Path) -> None:
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def test_rules_and_settings_are_sound(promtool: Callable[..., None]) -> None:
    promtool("check", "rules", "--lint-fatal", *RULES)
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_rules_do_what_their_unit_tests_say(promtool: Callable[..., None]) -> None:
    promtool("test", "rules", *sorted(HERE.glob("*.test.yml")))


def test_every_alert_has_a_test_and_says_what_to_do() -> None:
    tests = yaml.safe_load((HERE / "alerts.test.yml").read_text())["tests"]
    firing = {
        rule["alertname"]
        for test in tests
        for rule in test["alert_rule_test"]
        if rule["exp_alerts"]
    }
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert {alert["alert"] for alert in alerts} == firing
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}
