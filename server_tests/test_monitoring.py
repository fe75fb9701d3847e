"""The alerts and the dashboard name what the server has, and each alert fires when it should."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from contract_tests.suite.outcomes import not_run
from contract_tests.target.openapi import REPOSITORY
from server.health import PARTS
from server_tests.test_metrics import NO_BUCKET, text_of

MONITORING = REPOSITORY / "monitoring"
(GROUP,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
ALERTS = GROUP["rules"]
TESTS = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
NAME = re.compile(r"\b(?:backup_server|process)_[a-z_]+")
LABELS = re.compile(r"([a-z_]+)\{([^}]*)\}")


@pytest.fixture(scope="module")
def scraped(start_shared_server):
    """The name of each time series that the server has, with its labels."""
    server = start_shared_server(METRICS_PORT=0, **NO_BUCKET)
    server.client().get_health()
    samples = [line for line in text_of(server).splitlines() if not line.startswith("#")]
    return {re.split(r"[{ ]", line)[0]: set(re.findall(r'(\w+)="', line)) for line in samples}


def expressions():
    yield from (rule["expr"] for rule in ALERTS)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_what_is_asked_for_is_there(scraped, expression):
    names = set(NAME.findall(re.sub(r'"[^"]*"', '""', expression)))
    assert names <= scraped.keys() | {"process_resident_memory_bytes"}
    for name, matchers in LABELS.findall(expression):
        asked = set(re.findall(r"(\w+)=~?\"", matchers))
        assert asked <= scraped.get(name, set()) | {"job"}  # Prometheus adds the job
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", labels)) <= set().union(*(scraped[name] for name in names))


def test_each_alert_leads_to_a_part_of_the_runbook():
    titles = re.findall(r"^#+ (.*)$", (REPOSITORY / "docs" / "operations.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for rule in ALERTS:
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert path == "docs/operations.md" and anchor in anchors, rule["alert"]


def test_the_runbook_lists_each_alert_with_the_part_that_it_leads_to():
    part = (REPOSITORY / "docs" / "operations.md").read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \|.*\(#([\w-]+)\) \|$", part, re.MULTILINE))
    assert listed == {rule["alert"]: rule["annotations"]["runbook"].partition("#")[2] for rule in ALERTS}


def test_each_part_of_the_server_that_may_be_degraded_is_tested_to_alert():
    cases = [case for test in TESTS for case in test["alert_rule_test"] if case["alertname"] == "BackupServerDegraded"]
    assert {alert["exp_labels"]["part"] for case in cases for alert in case["exp_alerts"]} == set(PARTS)


def test_each_alert_is_tested_to_fire_and_to_stay_silent():
    cases = [case for test in TESTS for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) == fires} == {
            rule["alert"] for rule in ALERTS
        }


def test_the_alerts_with_promtool():
    if not shutil.which("promtool"):
        not_run("needs promtool (Debian: apt-get install prometheus)")
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
