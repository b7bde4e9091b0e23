#!/usr/bin/env python3
"""guardraild against a real Kafka broker, end to end.

    acceptance.py GUARDRAILD     every check
    acceptance.py --harness      only what needs no daemon: the broker, the producers, the receiver

One line per check, and `N passed, N failed` at the end; exit 1 if any failed. Every wait has a deadline. `--keep DIR` keeps
the broker's and the daemons' folders and logs. How the traffic is built: every unit is exposed, and that exposure counted, before its
events are produced, because Kafka orders records inside a partition only, never between two topics.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request

from broker import CODECS, PASSWORD, USER, Broker, free_port, poll, tool
from receiver import Receiver, fault, new_secret, sign

EXPERIMENT = "acceptance"
EXPOSURES, EVENTS, CONTROL = TOPICS = ["experiment.exposures", "experiment.events", "experiment.control"]
DECISIONS = "guardraild.decisions"
GROUP = "guardraild-acceptance"
RULE = """\
guardrail: v1
overview: {experiment: acceptance, owner: tests}
buckets: {control: {baseline: true}, treatment: {}}
guardrails:
  - {metric: latency_p95, window: 10s, limit: 500ms}
  - {metric: error_rate, window: 10s, limit: 20%}
quality: {srm: off}
actions:
  mode: enforce
  rollback: {webhook: flag-service, body: {flag: acceptance, serve: control}}
  confirm_within: 60s
"""


class Checks:
    """Counts what passed and failed, a line each."""

    def __init__(self):
        self.passed, self.failed = 0, 0

    def run(self, name, check, *args):
        """Runs one check; returns whether it passed. A check may return a remark."""
        begun = time.monotonic()
        try:
            remark = check(*args)
        except Exception as e:  # whatever goes wrong is this check's failure, never the end of the run
            self.failed += 1
            print(f"FAIL  {name}: {e}", flush=True)
            if not isinstance(e, (AssertionError, TimeoutError)):
                traceback.print_exc()
            return False
        self.passed += 1
        print(f"ok    {name} ({time.monotonic() - begun:.1f} s{f'; {remark}' if remark else ''})", flush=True)
        return True


def equal(what, found, wanted):
    assert found == wanted, f"{what}: {found}, wanted {wanted}"


# ---- traffic

def unit(i, prefix):
    return f"t-{i % 5}", f"{prefix}-{i}", "treatment" if i % 2 else "control"


def record(kind, i, prefix, **fields):
    """One (key, value) pair of the canonical format, of now."""
    tenant, user, bucket = unit(i, prefix)
    value = {"event": kind, "ts": int(time.time() * 1000), "tenant_id": tenant, "user_id": user, **fields}
    if kind == "exposure":
        value |= {"experiment": EXPERIMENT, "bucket": bucket}
    return f"{tenant}|{user}", json.dumps(value, separators=(",", ":"))


class Stream(threading.Thread):
    """Steady traffic of 40 units by two long-lived kcat producers, through whatever happens to the broker.

    Requests of units that were exposed before; and further exposures of the same units, which is what confirmation watches.
    """

    UNITS, PREFIX, TICK_S = 40, "live", 0.1

    def __init__(self, broker):
        super().__init__(daemon=True)
        with (broker.folder / "kcat.log").open("ab") as log:  # what they say of a broker that is away
            self.producers = {
                topic: subprocess.Popen(broker.kcat_command(topic, "lz4"), stdin=subprocess.PIPE, stderr=log, text=True)
                for topic in (EXPOSURES, EVENTS)
            }
        self.sent = 0  # records handed to the producers
        self.slow = False  # treatment's requests are slow and fail
        self.exposing = True  # treatment is still served
        self.ended = threading.Event()

    def send(self, topic, pair):
        self.producers[topic].stdin.write("\t".join(pair) + "\n")
        self.sent += 1

    def run(self):
        i = 0
        while not self.ended.is_set():
            for _ in range(20):
                i = (i + 1) % self.UNITS
                bad = self.slow and i % 2 == 1
                if self.exposing or i % 2 == 0:
                    self.send(EXPOSURES, record("exposure", i, self.PREFIX))
                self.send(EVENTS, record("request", i, self.PREFIX, latency_ms=3000 if bad else 50, error=bad and i % 3 != 0))
            for producer in self.producers.values():
                producer.stdin.flush()
            time.sleep(self.TICK_S)

    def close(self):
        """Ends the producers, which deliver all they have first. Again is no harm."""
        self.ended.set()
        self.join(30)
        for topic, producer in self.producers.items():
            producer.stdin.close()
            equal(f"exit of the producer of {topic}", producer.wait(60), 0)


# ---- the daemon

def numbers(text):
    """JSON with floats of 12 digits: the last one of what was stored may differ by its way through text."""
    return json.loads(text, parse_float=lambda digits: float(f"{float(digits):.12g}"))


class Daemon:
    """One `guardraild run` with a folder of its own."""

    def __init__(self, binary, folder, broker_address, receiver, group=GROUP, properties=None, secrets=None, standby_of=None):
        self.binary, self.folder = binary, pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = standby_of.state if standby_of else self.folder / "state"
        self.base = f"http://127.0.0.1:{free_port()}"
        self.secrets = {"FLAG_SECRET": receiver.secret, **(secrets or {})}
        (self.folder / "rules").mkdir(exist_ok=True)
        (self.folder / "rules/acceptance.yaml").write_text(RULE)
        self.config = self.folder / "guardraild.yaml"
        self.config.write_text(json.dumps({  # JSON is YAML
            "state_dir": str(self.state),
            "standby": bool(standby_of) or group == GROUP and self.folder.name == "first",
            "rules": [str(self.folder / "rules")],
            "kafka": {
                "brokers": [broker_address],
                "group": group,
                "topics": {"exposures": [EXPOSURES], "events": [EVENTS], "control": [CONTROL]},
                "decisions_topic": DECISIONS,
                "auto_offset_reset": "earliest",
                # A killed member holds its partitions until its session ends.
                "properties": {"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000, **(properties or {})},
            },
            "engine": {"idle_after": "2s"},
            "http": {"listen": self.base.removeprefix("http://")},
            "endpoints": {"flag-service": {"kind": "webhook", "url": receiver.url, "secrets": [{"env": "FLAG_SECRET"}]}},
            "checkpoint": {"every": "1s"},
            "telemetry": {"log": {"format": "json"}},
        }, indent=2))
        self.log = self.folder / "guardraild.log"
        self.process = None

    def start(self, ready=True):
        with self.log.open("ab") as log:
            command = [self.binary, "run", "--config", self.config]
            environment = {k: v for k, v in os.environ.items() if not k.startswith("GUARDRAILD_")} | self.secrets
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        if ready:
            poll("200 from /readyz", 60, lambda: self.alive() and self.status("/readyz") == 200)

    def alive(self):
        code = self.process.poll()
        assert code is None, f"the daemon ended with {code}: see the end of {self.log}"
        return True

    def request(self, path):
        with urllib.request.urlopen(self.base + path, timeout=10) as answer:
            return answer.read().decode()

    def status(self, path):
        """The HTTP status, or None while nothing listens."""
        try:
            with urllib.request.urlopen(self.base + path, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as e:
            return e.code
        except OSError:
            return None

    def experiment(self):
        return json.loads(self.request(f"/api/v1/experiments/{EXPERIMENT}"))

    def execution_log(self):
        return self.request(f"/api/v1/experiments/{EXPERIMENT}/log")

    def decisions(self):
        """In the order of their making, as they are stored."""
        entries = json.loads(self.execution_log())["entries"]
        return [numbers(self.request(f"/api/v1/decisions/{e['decision']}")) for e in entries if e["kind"] == "decision"]

    def backtest(self, *args):
        """Decisions and summary of a backtest of the topics by this daemon's configuration, without the secrets of its endpoints."""
        command = [self.binary, "backtest", "--rules", self.folder / "rules", "--config", self.config, "--output", "json", *args]
        secrets = {name: value for name, value in self.secrets.items() if name != "FLAG_SECRET"}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GUARDRAILD_")} | secrets
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, env=environment)
        equal(f"exit code of the backtest, which said {done.stderr!r}", done.returncode, 0)
        *decisions, summary = map(numbers, done.stdout.splitlines())
        return decisions, summary["summary"]

    def metric(self, name, page=None, **labels):
        """Sum of a metric's samples that carry these labels, of a page of metrics or of now."""
        total = 0.0
        for line in (page or self.request("/metrics")).splitlines():
            found = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)(?: \d+)?", line)
            if found and found[1] == name:
                has = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if labels.items() <= has.items():
                    total += float(found[3])
        return total

    def counts(self):
        """(records read, of them accepted)"""
        page, name = self.request("/metrics"), "guardraild_records_total"
        return int(self.metric(name, page)), int(self.metric(name, page, outcome="accepted"))

    def reads_exactly(self, records, seconds=60):
        """Waits until `records` records were read, and holds that all were accepted and none came after."""
        poll(f"{records} records read", seconds, lambda: self.alive() and self.counts()[0] >= records)
        equal("records read, accepted", self.counts(), (records, records))

    def stop(self, seconds=15):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"no exit within {seconds} s of SIGTERM") from None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def tail(self, lines=15):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


# ---- without a daemon

def every_codec_comes_back(broker):
    """Both producers, every codec: what is consumed is what was produced, and a key always lands in the same partition."""
    topic = "harness.codecs"
    broker.topic(topic)
    wanted, key_partitions = [], {}
    for codec in CODECS:
        pairs = [record("request", i, "harness", latency_ms=i, error=False, codec=codec) for i in range(40)]
        broker.console(topic, pairs, codec)
        broker.kcat(topic, pairs, codec)
        wanted += pairs * 2
    read = subprocess.run(["kcat", "-C", "-q", "-e", "-b", broker.address, "-t", topic, "-f", "%p\t%k\t%s\n"],
                          capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    found = [tuple(line.split("\t", 1)) for line in read]
    equal("records consumed by kcat", sorted(v for _, v in found), sorted("\t".join(w) for w in wanted))
    for partition, pair in found:
        key_partitions.setdefault(pair.split("\t")[0], set()).add(partition)
    spread = set().union(*key_partitions.values())
    equal("partitions in use", len(spread), 4)
    assert all(len(p) == 1 for p in key_partitions.values()), "one key in two partitions: the producers' partitioners differ"
    printed = tool("consumer", "--bootstrap-server", broker.address, "--topic", topic, "--from-beginning",
                   "--max-messages", str(len(wanted)), "--timeout-ms", "20000")
    equal("records consumed by Kafka's console", sorted(printed.splitlines()), sorted(v for _, v in wanted))
    return f"{len(wanted)} records, {len(CODECS)} codecs, 2 producers"


def stream_survives_restart(broker):
    """A producer in mid-stream delivers every record once, over an orderly and a hard restart of the broker."""
    broker.topic(*TOPICS)
    stream = Stream(broker)
    stream.start()
    poll("records of the stream", 30, lambda: broker.ends(EVENTS) > 50)
    took = []
    for hard in (False, True):
        broker.stop(hard)
        took.append(broker.start())
        before = broker.ends(EVENTS)
        poll("further records after the restart", 60, lambda: broker.ends(EVENTS) > before + 50)
    stream.close()
    equal("records in the topics", broker.ends(*TOPICS), stream.sent)
    return f"{stream.sent} records; restarts took {took[0]:.1f} and {took[1]:.1f} s"


def secure_listener_answers(broker):
    """By Kafka's own client: the librdkafka of Debian 12's kcat repeats its nonce in SCRAM, which brokers of today refuse."""
    for mechanism, module in (("PLAIN", "plain.PlainLoginModule"), ("SCRAM-SHA-256", "scram.ScramLoginModule")):
        for password, welcome in ((PASSWORD, True), ("wrong", False)):
            settings = broker.folder / "client.properties"
            login = f'org.apache.kafka.common.security.{module} required username="{USER}" password="{password}";'
            settings.write_text(f"security.protocol=SASL_SSL\nsasl.mechanism={mechanism}\nsasl.jaas.config={login}\n"
                                f"ssl.truststore.type=PEM\nssl.truststore.location={broker.ca}\n")
            try:
                tool("topics", "--bootstrap-server", broker.tls_address, "--command-config", str(settings), "--list")
                let_in = True
            except RuntimeError as e:
                assert "SaslAuthenticationException" in str(e), e
                let_in = False
            equal(f"{mechanism} with password {password}: let in", let_in, welcome)


def receiver_tells_forgeries(_broker):
    secret = new_secret("a")
    # Made by the reference library `standardwebhooks`, so that this reading of the standard is not its own witness.
    known = sign("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    equal("known signature", known, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
    now, body = str(int(time.time())), b'{"type":"guardrail.test"}'
    good = {"webhook-id": "m-1", "webhook-timestamp": now, "webhook-signature": "v1,bm90aGluZw== " + sign(secret, "m-1", now, body)}
    equal("fault of a good request", fault(secret, good, body), None)
    for name, changed in {"other secret": (new_secret("b"), good, body), "other body": (secret, good, body + b" "),
                          "other id": (secret, good | {"webhook-id": "m-2"}, body),
                          "old timestamp": (secret, good | {"webhook-timestamp": str(int(now) - 1000)}, body),
                          "no signature": (secret, {**good, "webhook-signature": ""}, body)}.items():
        assert fault(*changed), f"{name}: let in"
    receiver = Receiver(secret)
    try:
        for refuse, status in ((False, 200), (True, 503)):
            receiver.refuse = refuse
            try:
                answer = urllib.request.urlopen(urllib.request.Request(receiver.url, body, good), timeout=5).status
            except urllib.error.HTTPError as e:
                answer = e.code
            equal("answer", answer, status)
        equal("requests kept", len(receiver.of("guardrail.test")), 2)
    finally:
        receiver.close()


# ---- with the daemon

def secure(broker, mechanism):
    return {"security.protocol": "sasl_ssl", "sasl.mechanism": mechanism, "sasl.username": USER, "ssl.ca.location": str(broker.ca)}


class Story:
    """One experiment from its first exposure to its confirmed rollback, with everything going wrong around it."""

    def __init__(self, checks, binary, broker, receiver, folder):
        self.checks, self.binary, self.broker, self.receiver, self.folder = checks, binary, broker, receiver, folder
        self.first = Daemon(binary, folder / "first", broker.address, receiver)
        self.second = Daemon(binary, folder / "second", broker.address, receiver)
        self.third = Daemon(binary, folder / "third", broker.address, receiver, standby_of=self.first)
        self.stream, self.produced = None, 0

    def tell(self):
        steps = [
            ("daemon is ready", self.first.start),
            ("every codec by both producers is counted exactly", self.every_codec),
            ("units of the stream are exposed", self.expose),
            ("broker restarts in mid-stream: nothing lost, nothing doubled", self.broker_restarts),
            ("second daemon takes partitions", self.second_joins),
            ("second daemon leaves: exit 0, and the first has everything exactly once", self.second_leaves),
            ("healthy traffic has sent nothing", self.quiet),
            ("breach: first attempt of the rollback", self.breach),
            ("killed between attempts: delivered after the restart, under one id", self.killed_between_attempts),
            ("exposures stop: confirmed in the execution log", self.confirmed),
            ("killed again, breach goes on: no second rollback", self.killed_again),
            ("the topic of decisions has them, by the experiment's key", self.records),
            ("a standby takes over from one that is killed", self.standby_takes_over),
            ("and from one that is stopped, which then wakes up and ends", self.stopped_one_ends),
            ("after all that the experiment has every record exactly once", self.all_counted_once),
            ("every request was signed right", lambda: equal("faults", self.receiver.faults(), [])),
            ("SIGTERM: exit 0", lambda: equal("exit code", self.first.stop(), 0)),
        ]
        try:
            for i, (name, step) in enumerate(steps):
                if not self.checks.run(name, step):
                    print(f"      the {len(steps) - i - 1} checks after it stand on it and were left out; end of its log:\n{self.first.tail()}")
                    return
        finally:
            for daemon in (self.first, self.second, self.third):
                if daemon.process and daemon.process.poll() is None:
                    daemon.kill()
            if self.stream:
                self.checks.run("producers ended well", self.stream.close)

    def flow(self):
        """Begins the stream."""
        self.stream = Stream(self.broker)
        self.stream.start()

    def settled(self):
        """Ends the stream, and holds that the first daemon read every record that was ever produced, exactly once."""
        self.stream.close()
        self.produced += self.stream.sent
        equal("records in the topics", self.broker.ends(*TOPICS), self.produced)
        self.first.reads_exactly(self.produced)
        return f"{self.produced} records"

    def every_codec(self):
        produced = 0
        for codec in CODECS:
            for name, produce in (("console", self.broker.console), ("kcat", self.broker.kcat)):
                prefix = f"{codec}-{name}"
                produce(EXPOSURES, [record("exposure", i, prefix) for i in range(40)], codec)
                self.first.reads_exactly(produced + 40)
                produce(EVENTS, [record("request", i % 40, prefix, latency_ms=50, error=False) for i in range(200)], codec)
                self.first.reads_exactly(produced := produced + 240)
        equal("records in the topics", self.broker.ends(*TOPICS), produced)
        # The last pane closes when its partition has been idle for a while.
        units = {"control": 200, "treatment": 200}
        poll("exposed units", 30, lambda: {b["bucket"]: b["exposed_units"] for b in self.first.experiment()["buckets"]} == units)
        return f"{produced} records, {len(CODECS)} codecs"

    def expose(self):
        self.broker.kcat(EXPOSURES, [record("exposure", i, Stream.PREFIX) for i in range(Stream.UNITS)])
        self.produced = self.broker.ends(*TOPICS)
        self.first.reads_exactly(self.produced)
        self.flow()

    def broker_restarts(self):
        for hard in (False, True):
            before = self.first.counts()[0]
            poll("records of the stream", 30, lambda: self.first.counts()[0] > before + 200)
            self.broker.stop(hard)
            self.broker.start()
        return self.settled()

    def members(self):
        """Partitions of each member of the group, as the broker has it."""
        told = tool("groups", "--bootstrap-server", self.broker.address, "--describe", "--members", "--group", GROUP)
        rows = [line.split() for line in told.splitlines() if line.startswith(GROUP)]
        return [int(row[-1]) for row in rows]

    def second_joins(self):
        self.flow()
        self.second.start(ready=False)

        def shared():
            members = self.members()
            return members if len(members) == 2 and min(members) > 0 else None

        members = poll("two members with partitions", 90, shared)
        poll("records read by the second", 60, lambda: self.second.alive() and self.second.counts()[0] > 500)
        return f"partitions {members}"

    def second_leaves(self):
        equal("exit code", self.second.stop(), 0)
        poll("one member with all partitions", 90, lambda: self.members() == [4 * len(TOPICS)])
        return self.settled()

    def quiet(self):
        self.flow()
        equal("requests at the receiver", self.receiver.requests, [])
        state = self.first.experiment()
        assert state["verdict"] in ("safe", "watching"), f"verdict {state['verdict']}: {state['reason']}"
        return state["verdict"]

    def rollbacks(self):
        return self.receiver.of("guardrail.rollback")

    def breach(self):
        self.receiver.refuse = True
        begun = time.time()
        self.stream.slow = True
        poll("rollback at the receiver", 60, self.rollbacks)
        self.first.kill()
        attempt = self.rollbacks()[0]
        data = attempt["body"]["data"]
        equal("bucket, action", (data["bucket"], data["action"]), ("treatment", "rollback"))
        equal("the rule's own body", data["body"], {"flag": "acceptance", "serve": "control"})
        return f"{data['guardrail']}, {attempt['at'] - begun:.1f} s after the first bad record"

    def one_id(self):
        """The single id of all rollbacks."""
        ids = {r["id"] for r in self.rollbacks()}
        equal("ids of rollbacks", len(ids), 1)
        return ids.pop()

    def killed_between_attempts(self):
        before = len(self.rollbacks())
        self.receiver.refuse = False
        self.first.start()
        poll("delivered rollback", 60, lambda: any(r["status"] == 200 for r in self.rollbacks()))
        self.stream.exposing = False  # the flag service does as it is told
        assert len(self.rollbacks()) > before, "no attempt after the restart"
        return f"{self.one_id()}, {len(self.rollbacks())} attempts"

    def confirmed(self):
        poll("`confirmed` in the execution log", 90, lambda: self.first.alive() and '"confirmed"' in self.first.execution_log())
        return f"stop: {[b['stopped']['confirmation'] for b in self.first.experiment()['buckets'] if b['stopped']]}"

    def killed_again(self):
        delivered = self.one_id()
        self.first.kill()
        begun = time.time()
        self.first.start()
        poll("10 s of event time judged after the restart", 90,
             lambda: self.first.alive() and (self.first.experiment()["judged_to"] or 0) > (begun + 10) * 1000, every=0.5)
        equal("id of all rollbacks", self.one_id(), delivered)

    def records(self):
        delivered = self.one_id().removesuffix("-rollback")

        def read():
            lines = subprocess.run(["kcat", "-C", "-q", "-e", "-b", self.broker.address, "-t", DECISIONS, "-f", "%k\t%h\t%s\n"],
                                   capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
            return [line.split("\t", 2) for line in lines]

        def both():
            found = {json.loads(value)["type"] for _, _, value in read()}
            return {"guardrail.rollback", "guardrail.confirmed"} <= found

        poll("decision and confirmation in the topic", 60, both, every=1)
        records = read()
        equal("keys", {key for key, _, _ in records}, {EXPERIMENT})
        first = next((headers, value) for _, headers, value in records if json.loads(value)["type"] == "guardrail.rollback")
        equal("decision", json.loads(first[1])["data"]["decision"], delivered)
        assert f"webhook-id={delivered}-decision-record" in first[0], first[0]
        return f"{len(records)} records"

    def stands_by(self):
        self.third.start(ready=False)
        poll("a daemon that stands by", 60, lambda: self.third.alive() and self.third.status("/readyz") == 503
             and self.third.metric("guardraild_standby") == 1)

    def takes_over(self, strike):
        """Seconds from the end of the first until the third has its partitions."""
        delivered, begun = self.one_id(), time.time()
        strike()
        poll("the standby is ready", 60, lambda: self.third.alive() and self.third.status("/readyz") == 200, every=0.05)
        seconds = time.time() - begun
        equal("id of all rollbacks", self.one_id(), delivered)
        self.first, self.third = self.third, self.first
        return f"ready after {seconds:.1f} s"

    def standby_takes_over(self):
        self.stands_by()
        return self.takes_over(self.first.kill)

    def freeze(self):
        """Stops the active daemon between two of its transactions: in the middle of one it would keep SQLite's lock."""
        database = sqlite3.connect(self.first.state / "guardraild.db", timeout=10, isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        self.first.process.send_signal(signal.SIGSTOP)
        stat = pathlib.Path(f"/proc/{self.first.process.pid}/stat")
        poll("it is stopped", 10, lambda: ") T " in stat.read_text(), every=0.01)
        database.execute("ROLLBACK")
        database.close()

    def stopped_one_ends(self):
        self.stands_by()
        told = self.takes_over(self.freeze)
        requests = len(self.rollbacks())
        self.third.process.send_signal(signal.SIGCONT)
        equal("exit code of the one that wakes up", self.third.process.wait(30), 1)
        assert "has taken over" in self.third.tail(40) or "fenced" in self.third.tail(40).lower(), self.third.tail(40)
        equal("rollbacks sent since it woke up", len(self.rollbacks()), requests)
        return told

    def all_counted_once(self):
        """The state outlived them all: the experiment has seen every record of the topics once. (Metrics may have begun anew.)"""
        self.stream.close()
        ends = self.broker.ends(*TOPICS)
        equal("records in the topics", ends, self.produced + self.stream.sent)
        poll(f"{ends} records of the experiment", 60, lambda: self.first.alive() and self.first.experiment()["records"] >= ends)
        equal("records of the experiment", self.first.experiment()["records"], ends)
        poll("no lag", 30, lambda: self.first.metric("guardraild_consumer_lag_records") == 0)
        return f"{ends} records"


def reads_securely(binary, broker, receiver, folder, mechanism):
    """A daemon of its own group reads everything through TLS and SASL, and so does a backtest; what it cannot join any more is counted
    all the same."""
    properties = secure(broker, mechanism) | {"sasl.password": {"env": "KAFKA_PASSWORD"}}
    group = f"guardraild-{mechanism.lower()}"
    daemon = Daemon(binary, folder / mechanism, broker.tls_address, receiver, group, properties, {"KAFKA_PASSWORD": PASSWORD})
    ends = broker.ends(*TOPICS)
    try:
        daemon.start()
        poll(f"{ends} records read", 60, lambda: daemon.alive() and daemon.counts()[0] >= ends)
        equal("records read", daemon.counts()[0], ends)
        equal("rejected", daemon.metric("guardraild_records_total", outcome="rejected"), 0)
        remark = backtest_decides_as(daemon, ends)
        equal("exit code", daemon.stop(), 0)
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
    return f"{ends} records; {remark}"


def backtest_decides_as(daemon, records):
    """A backtest of the same topics decides what a daemon does that reads them from their beginning, and that one does not notice."""
    decisions, whole = daemon.backtest()
    assert decisions, "the backtest decided nothing"
    equal("records of the backtest", whole["records"], records)
    equal("accepted by the backtest", whole["accepted"], daemon.counts()[1])
    made = poll("as many decisions by the daemon", 60, lambda: len(d := daemon.decisions()) >= len(decisions) and d)
    equal("decisions", [{k: m.get(k) for k in d} for d, m in zip(decisions, made)], decisions)
    equal("number of decisions", len(made), len(decisions))

    # A range: its parts add up, and the first has what was decided before its end.
    middle = decisions[0]["decided_at"]
    before, first = daemon.backtest("--until", middle)
    _, rest = daemon.backtest("--since", middle)
    assert first["records"] and rest["records"], f"{first['records']} records before {middle}, {rest['records']} after"
    equal("records of both parts", first["records"] + rest["records"], records)
    assert first["last"] < middle <= rest["last"], f"{first['last']}, {middle}, {rest['last']}"
    equal("decisions before the end of the range", [d for d in before if d["decided_at"] > middle], [])
    equal("assignments of the daemon", daemon.log.read_text().count("partitions assigned"), 1)
    return f"backtest: {len(decisions)} decisions, parts of {first['records']} and {rest['records']} records"


def wrong_password_is_told(binary, broker, receiver, folder):
    properties = secure(broker, "PLAIN") | {"sasl.password": {"env": "KAFKA_PASSWORD"}}
    secrets = {"KAFKA_PASSWORD": "wrong"}
    daemon = Daemon(binary, folder / "wrong", broker.tls_address, receiver, "guardraild-wrong", properties, secrets)
    try:
        daemon.start(ready=False)
        poll("an authentication error in the log", 60, lambda: daemon.alive() and "authentication" in daemon.log.read_text().lower())
        equal("/readyz, /livez", (daemon.status("/readyz"), daemon.status("/livez")), (503, 200))
        equal("exit code", daemon.stop(), 0)
    finally:
        if daemon.process.poll() is None:
            daemon.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", help="the guardraild to test")
    parser.add_argument("--harness", action="store_true", help="only what needs no daemon")
    parser.add_argument("--keep", metavar="DIR", help="work in this folder, and keep it")
    args = parser.parse_args()
    if bool(args.binary) == args.harness:
        parser.error("either a binary or --harness")
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="guardraild-kafka-") as temporary:
        folder = pathlib.Path(args.keep or temporary).resolve()
        broker = Broker(folder / "broker")
        try:
            if not checks.run("broker starts", lambda: f"metadata after {broker.start():.1f} s"):
                pass
            elif args.harness:
                checks.run("receiver tells forgeries", receiver_tells_forgeries, broker)
                checks.run("every codec comes back", every_codec_comes_back, broker)
                checks.run("SASL_SSL listener answers", secure_listener_answers, broker)
                checks.run("producer survives restarts of the broker", stream_survives_restart, broker)
            else:
                run_all(checks, str(pathlib.Path(args.binary).resolve()), broker, folder)
        finally:
            broker.stop(hard=True)
    print(f"{checks.passed} passed, {checks.failed} failed")
    sys.exit(1 if checks.failed else 0)


def run_all(checks, binary, broker, folder):
    receiver = Receiver(new_secret("flag-service"))
    other = Receiver(receiver.secret)  # takes what the catching-up daemons send
    checks.run("receiver tells forgeries", receiver_tells_forgeries, broker)
    checks.run("topics are there", broker.topic, *TOPICS, DECISIONS)
    Story(checks, binary, broker, receiver, folder).tell()
    for mechanism in ("PLAIN", "SCRAM-SHA-256"):
        checks.run(f"reads by TLS and {mechanism}", reads_securely, binary, broker, other, folder, mechanism)
    checks.run("wrong password: alive, not ready, told", wrong_password_is_told, binary, broker, other, folder)


if __name__ == "__main__":
    main()
