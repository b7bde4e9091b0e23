"""What the daemon says about itself, as real parts hear it: a Prometheus that scrapes it and runs every query of the dashboard and of
the alerts, promtool, and the OpenTelemetry Collector's receiver.

    python3 tests/telemetry/telemetry.py GUARDRAILD LOAD_TESTS RECEIVER
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOKEN = "stage-operate-token"
EXPERIMENT = "new-checkout"
PATIENCE = 90
# Metrics without a series while nothing of the kind has happened.
SILENT = {
    "guardraild_dropped_total", "guardraild_kafka_errors_total", "guardraild_experiment_holds", "guardraild_experiment_flaws",
}
# Queries of the dashboard that have nothing to show on this stage: panel by panel, since each must be meant.
EMPTY = {
    "Held, by whom", "Held, stopped", "Dropped, and Kafka's errors", "What is wrong with its data",
}


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(url, body=None, headers=None):
    """Status and text."""
    request = urllib.request.Request(url, body, {"authorization": f"Bearer {TOKEN}", "content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def until(what, holds):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        value = holds()
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


def lines(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


class Parts:
    """Everything that runs; it ends with the block."""

    def __init__(self, guardraild, load_tests, receiver):
        self.programs = guardraild, load_tests, receiver
        self.running = []

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="guardraild-telemetry-")
        self.dir = self.folder.name
        self.http, self.otlp, self.prometheus = (f"127.0.0.1:{port()}" for _ in range(3))
        guardraild, load_tests, receiver = self.programs
        self.receiver = self.start(receiver, self.otlp, self.dir)
        assert self.receiver.stdout.readline().strip() == "listening"
        stage = os.path.join(self.dir, "stage")
        self.stage = self.start(load_tests, "stage", "--dir", stage, "--experiments", "3", "--http", self.http, "--token", TOKEN)
        config = self.stage.stdout.readline().strip()
        self.log = open(os.path.join(self.dir, "log"), "w+", encoding="utf-8")
        settings = [f"telemetry.otlp.endpoint=http://{self.otlp}", "telemetry.otlp.interval=1s", "telemetry.log.format=json"]
        sets = [word for setting in settings for word in ("--set", setting)]
        self.daemon = self.start(guardraild, "run", "--config", config, *sets, stderr=self.log)
        rules = subprocess.run(
            [guardraild, "generate", "prometheus", "--rules", os.path.join(stage, "rules")], check=True, capture_output=True, text=True
        )
        self.write("experiments.yaml", rules.stdout)
        self.write("prometheus.yaml", f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{ROOT}/deploy/prometheus/alerts.yaml, experiments.yaml]
scrape_configs:
  - job_name: guardraild
    authorization: {{credentials: {TOKEN}}}
    static_configs: [{{targets: ["{self.http}"]}}]
""")
        self.start(
            "prometheus", f"--config.file={self.dir}/prometheus.yaml", f"--storage.tsdb.path={self.dir}/tsdb",
            f"--web.listen-address={self.prometheus}", "--enable-feature=exemplar-storage", "--log.level=warn",
        )
        until("the daemon answers", lambda: ask(f"http://{self.http}/api/v1/fleet")[0] == 200)
        until("Prometheus answers", lambda: ask(f"http://{self.prometheus}/-/ready")[0] == 200)
        return self

    def start(self, *command, stderr=None):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.running.append(process)
        return process

    def write(self, name, text):
        with open(os.path.join(self.dir, name), "w", encoding="utf-8") as file:
            file.write(text)

    def __exit__(self, kind, *_):
        if kind:
            self.log.seek(0)
            print("the daemon's last lines:", *self.log.readlines()[-20:], sep="\n", file=sys.stderr)
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            process.wait(30)
            process.stdin.close()
            process.stdout.close()
        self.log.close()
        self.folder.cleanup()

    def order(self, word):
        self.stage.stdin.write(word + "\n")
        self.stage.stdin.flush()

    def verdict(self):
        status, body = ask(f"http://{self.http}/api/v1/experiments/{EXPERIMENT}/verdict")
        for hook in ("rollback", "confirm"):
            ask(f"http://{self.http}/hooks/flagger/{hook}", json.dumps({"name": EXPERIMENT}).encode())
        return json.loads(body) if status == 200 else {}

    def query(self, expr):
        """The result of an instant query."""
        _, body = ask(f"http://{self.prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expr}))
        answer = json.loads(body)
        assert answer["status"] == "success", f"{expr}: {answer}"
        return answer["data"]["result"]

    def prometheus_api(self, path):
        answer = json.loads(ask(f"http://{self.prometheus}/api/v1/{path}")[1])
        assert answer["status"] == "success", answer
        return answer["data"]

    def live(self):
        """The story: healthy, some records that are refused, a hold, a regression that is rolled back and confirmed."""
        until("go", lambda: self.verdict().get("go"))
        until("two scrapes before anything happens", lambda: self.query("count_over_time(guardraild_ready[1m]) > 1"))
        self.order("poison")
        for verb in ("hold", "resume"):
            status, body = ask(f"http://{self.http}/api/v1/experiments/{EXPERIMENT}/{verb}", json.dumps({"reason": "telemetry"}).encode())
            assert status < 300, body
        until("go again", lambda: self.verdict().get("go"))
        until("what was refused is scraped", lambda: self.query('sum(guardraild_records_total{outcome="rejected"}) > 0'))
        self.order("slow")
        until("stop", lambda: self.verdict().get("stop"))
        until("confirmed", lambda: self.query('guardraild_experiment_stopped_buckets{confirmation="confirmed"}'))


def document_has():
    """Names in docs/metrics.md, which is made from the code."""
    with open(os.path.join(ROOT, "docs/metrics.md"), encoding="utf-8") as file:
        return set(re.findall(r"^\| `(guardraild_\w+)` ", file.read(), re.M))


def metric_of(name, known):
    return name if name in known else re.sub(r"_(bucket|sum|count)$", "", name)


def formats(parts):
    """promtool finds nothing in the text format, Prometheus nothing in OpenMetrics; both hold documented metrics alone."""
    status, text = ask(f"http://{parts.http}/metrics")
    assert status == 200 and "# EOF" not in text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr.strip(), f"promtool: {checked.stdout}{checked.stderr}"
    [target] = parts.prometheus_api("targets")["activeTargets"]
    assert target["health"] == "up" and not target["lastError"], target
    known = document_has()
    scraped = {metric_of(name, known) for name in parts.prometheus_api("label/__name__/values") if name.startswith("guardraild_")}
    assert scraped <= known, f"not in docs/metrics.md: {scraped - known}"
    assert known - scraped <= SILENT, f"documented, and not there: {known - scraped - SILENT}"
    exemplars = parts.prometheus_api("query_exemplars?" + urllib.parse.urlencode(
        {"query": "guardraild_decision_delay_seconds_bucket", "start": time.time() - 600, "end": time.time()}))
    traces = {exemplar["labels"]["trace_id"] for series in exemplars for exemplar in series["exemplars"]}
    assert traces, "Prometheus has no exemplar of the delay of decisions"
    print(f"ok  {len(scraped)} metrics of {len(known)}, in both formats; exemplars of {len(traces)} traces")
    return traces


def dashboard(parts):
    """Every query of the Grafana dashboard."""
    with open(os.path.join(ROOT, "deploy/grafana/guardraild.json"), encoding="utf-8") as file:
        board = json.load(file)
    asked = set()
    values = {"$__rate_interval": "60s", "$__interval": "60s", "$__range": "10m", "$instance": ".+", "$experiment": EXPERIMENT, "$guardrail": "latency_p95"}

    def run(expr):
        asked.update(re.findall(r"guardraild_\w+", expr))
        for name, value in values.items():
            expr = expr.replace(name, value)
        result = parts.query(expr)
        return len([r for r in result if r["value"][1] != "NaN"])

    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    targets = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
    blank = [f"{title}: {expr}" for title, expr in targets if not run(expr) and title not in EMPTY]
    assert not blank, "\n".join(["panels that show nothing:", *blank])
    for variable in board["templating"]["list"][1:]:
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
        assert run(f"count by ({label}) ({selector})"), variable["definition"]
    titles = {panel["title"] for panel in panels}
    assert EMPTY <= titles, f"no such panels: {EMPTY - titles}"
    print(f"ok  {len(targets)} queries of {len(panels)} panels")
    return asked


def alerts(parts):
    """Every alert is evaluated, and asks for series and labels that are there."""
    asked, firing, n = set(), set(), 0
    for group in parts.prometheus_api("rules?type=alert")["groups"]:
        for rule in group["rules"]:
            n += 1
            assert rule["health"] == "ok" and not rule.get("lastError"), rule
            if rule["state"] == "firing":
                firing.add(rule["name"])
            for name, matchers in re.findall(r"(guardraild_\w+)(?:\{([^}]*?)\}(?=[\[\s)]|$))?", rule["query"]):
                asked.add(name)
                series = parts.query(f"last_over_time({name}[10m])")
                assert series or name in SILENT, f"{rule['name']} asks for {name}, of which there is nothing"
                for label in re.findall(r"(\w+)(?:=~|!=|!~|=)", matchers):
                    assert not series or label in series[0]["metric"], f"{rule['name']}: {name} has no label {label}"
    assert {"GuardraildWatchdog", "ExperimentBreach"} <= firing, firing
    assert not firing & {"GuardraildAbsent", "GuardraildNotReady", "ExperimentUnwatched", "ExperimentUnconfirmed"}, firing
    print(f"ok  {n} alerts; of which fire: {', '.join(sorted(firing))}")
    return asked


def attributes(of):
    return {a["key"]: next(iter(a["value"].values())) for a in of.get("attributes", [])}


def traced(parts, exemplars):
    """One trace from the pane that tripped to the webhook's answer, and its id wherever it belongs."""
    def spans():
        return [
            span | {"attributes": attributes(span)}
            for request in lines(os.path.join(parts.dir, "traces.json"))
            for resource in request["resourceSpans"] if attributes(resource["resource"])["service.name"] == "guardraild"
            for scope in resource["scopeSpans"] for span in scope["spans"]
        ]

    def delivered():
        return [s for s in spans() if s["name"] == "delivery" and s["attributes"].get("status") == "200" and s["attributes"]["type"] == "guardrail.rollback"]

    delivery = until("the span of a delivery that was received", delivered)[0]
    trace = [s for s in spans() if s["traceId"] == delivery["traceId"]]
    by_id = {s["spanId"]: s for s in trace}
    decide = by_id[delivery["parentSpanId"]]
    pane = by_id[decide["parentSpanId"]]
    assert (decide["name"], pane["name"], pane.get("parentSpanId", "")) == ("decide", "pane", ""), trace
    assert decide["attributes"]["experiment"] == EXPERIMENT and decide["attributes"]["action"] == "rollback", decide
    names = [s["name"] for s in trace]
    assert "commit" in names and names.count("delivery") >= 2, f"a refused attempt and one that was received: {names}"
    assert delivery["traceId"] in exemplars, f"{delivery['traceId']} is no exemplar"
    with open(parts.log.name, encoding="utf-8") as log:
        assert any(delivery["traceId"] in line and '"name":"decide"' in line for line in log), "no line of the log names the trace"
    entries = json.loads(ask(f"http://{parts.http}/api/v1/experiments/{EXPERIMENT}/log?limit=1000")[1])["entries"]
    assert any(delivery["traceId"] in entry.get("traceparent", "") for entry in entries), entries
    print(f"ok  a trace of {len(trace)} spans from the pane to the receiver's answer")


def exported(parts):
    """What a scrape has, the collector gets, with the same numbers."""
    def newest():
        requests = lines(os.path.join(parts.dir, "metrics.json"))[-3:]
        return {m["name"]: m for r in requests for resource in r["resourceMetrics"] for scope in resource["scopeMetrics"] for m in scope["metrics"]}

    known = document_has()
    _, text = ask(f"http://{parts.http}/metrics")
    samples = {metric_of(re.match(r"\w+", line)[0], known) for line in text.splitlines() if line and not line.startswith("#")}
    empty = {re.match(r"\w+", line)[0].removesuffix("_count") for line in text.splitlines() if re.match(r"\w+_count.* 0$", line)}
    until("all metrics are exported", lambda: samples - empty <= set(newest()))
    decisions = newest()["guardraild_decisions_total"]["sum"]
    assert decisions["isMonotonic"] and decisions["aggregationTemporality"] == 2, decisions
    of_rollbacks = [p["asDouble"] for p in decisions["dataPoints"] if attributes(p)["action"] == "rollback"]
    assert of_rollbacks == [float(re.search(r'guardraild_decisions_total\{action="rollback"\} (\d+)', text)[1])], of_rollbacks
    histogram = newest()["guardraild_decision_delay_seconds"]
    assert histogram["unit"] == "s" and len(histogram["histogram"]["dataPoints"][0]["explicitBounds"]) == 14, histogram
    print(f"ok  {len(samples - empty)} metrics at the collector")


def main():
    with Parts(*sys.argv[1:]) as parts:
        parts.live()
        # The alerts of an experiment have been evaluated since, and rates have two scrapes of everything.
        until("an alert fires", lambda: parts.query('ALERTS{alertname="ExperimentBreach", alertstate="firing"}'))
        exemplars = until("exemplars are scraped", lambda: parts.query("guardraild_decision_delay_seconds_count > 0")) and formats(parts)
        asked = {metric_of(name, document_has()) for name in dashboard(parts) | alerts(parts)}
        assert document_has() <= asked, f"neither in the dashboard nor in an alert: {document_has() - asked}"
        traced(parts, exemplars)
        exported(parts)


main()
