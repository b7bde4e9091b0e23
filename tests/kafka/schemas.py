#!/usr/bin/env python3
"""guardraild reads what Confluent's own Python client writes: Avro, Protobuf and JSON Schema, by a real schema registry.

    schemas.py GUARDRAILD [--keep DIR]

Needs what acceptance.py needs; the client goes into a virtual environment beside the broker's jars. One line per check, exit 1 if any failed.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

from broker import HOME, Broker, poll

HERE = pathlib.Path(__file__).resolve().parent


def with_the_client():
    """Goes on in a Python that has the client."""
    requirements = HERE / "requirements.txt"
    folder = HOME.parent / f"python-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    if pathlib.Path(sys.prefix) == folder:
        return
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "-q", "--disable-pip-version-check", "-r", requirements], check=True)
        (folder / "complete").touch()
    os.execv(folder / "bin/python", [folder / "bin/python", "-W", "ignore", *sys.argv])  # the client warns of its own libraries


with_the_client()

from acceptance import CONTROL, EVENTS, EXPOSURES, Checks, Daemon, equal, unit  # noqa: E402
from confluent_kafka import Producer  # noqa: E402
from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: E402
from confluent_kafka.schema_registry.avro import AvroSerializer  # noqa: E402
from confluent_kafka.schema_registry.json_schema import JSONSerializer  # noqa: E402
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer  # noqa: E402
from confluent_kafka.serialization import MessageField, SerializationContext  # noqa: E402
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: E402
from receiver import Receiver, new_secret  # noqa: E402
from registry import Registry  # noqa: E402

TOKEN = "of-the-schemas-test-alone"
AVRO, PROTOBUF, JSON_SCHEMA = "shop.exposures.avro", "shop.requests.protobuf", "shop.tickets.json"
SOURCES = f"""\
guardrail: v1
sources:
  exposures:
    topics: [{AVRO}]
    format: avro
    events:
      - {{event: exposure, ts: {{from: /at, unit: us}}, tenant_id: /org, user_id: /user, experiment: /flag, bucket: {{from: /arm, values: {{A: control, B: treatment}}}}}}
  requests:
    topics: [{PROTOBUF}]
    format: protobuf
    when: record.status > 0
    events:
      - {{event: request, ts: /at_ms, tenant_id: /org, user_id: /user, latency_ms: {{from: /seconds, unit: s}}, error: {{cel: record.status >= 500}}}}
  tickets: {{topics: [{JSON_SCHEMA}], format: json_schema}}
"""


def avro_schema(*more):
    fields = [("org", "string"), ("user", ["null", "string"]), ("flag", "string"), *more]
    kinds = [{"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
             {"name": "arm", "type": {"type": "enum", "name": "Arm", "symbols": ["A", "B"]}}]
    return json.dumps({"type": "record", "name": "Exposure", "namespace": "shop", "fields": kinds + [{"name": n, "type": t} for n, t in fields]})


def protobuf_class():
    file = descriptor_pb2.FileDescriptorProto(name="request.proto", package="shop", syntax="proto3")
    file.message_type.add(name="Unused")
    message = file.message_type.add(name="Request")
    text, whole, real = 9, 3, 1
    for number, (name, kind) in enumerate([("org", text), ("user", text), ("at_ms", whole), ("seconds", real), ("status", whole)], 1):
        message.field.add(name=name, number=number, type=kind, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Request"))


class Traffic:
    """What the client registers and produces."""

    def __init__(self, broker, registry):
        self.client = SchemaRegistryClient({"url": registry.url})
        self.producer = Producer({"bootstrap.servers": broker.address, "partitioner": "murmur2_random", "enable.idempotence": True})
        self.avro = AvroSerializer(self.client, avro_schema())
        self.request = protobuf_class()
        self.protobuf = ProtobufSerializer(self.request, self.client, {"use.deprecated.format": False})
        ticket = {"title": "Ticket", "type": "object", "properties": {"event": {"const": "ticket"}}, "required": ["event", "ts"]}
        self.json = JSONSerializer(json.dumps(ticket), self.client)

    def send(self, topic, i, value):
        tenant, user, _ = unit(i, "schemas")
        self.producer.produce(topic, key=f"{tenant}|{user}", value=value)

    def flush(self):
        equal("records not delivered", self.producer.flush(30), 0)

    def encode(self, serializer, topic, value):
        return serializer(value, SerializationContext(topic, MessageField.VALUE))

    def exposure(self, i, serializer=None, **more):
        tenant, user, bucket = unit(i, "schemas")
        value = {"org": tenant, "user": user, "flag": "acceptance", "at": int(time.time() * 1e6), "arm": "B" if bucket == "treatment" else "A", **more}
        self.send(AVRO, i, self.encode(serializer or self.avro, AVRO, value))

    def served(self, i, status, seconds=0.05):
        tenant, user, _ = unit(i, "schemas")
        message = self.request(org=tenant, user=user, at_ms=int(time.time() * 1000), seconds=seconds, status=status)
        self.send(PROTOBUF, i, self.encode(self.protobuf, PROTOBUF, message))

    def ticket(self, i):
        tenant, user, _ = unit(i, "schemas")
        value = {"event": "ticket", "ts": int(time.time() * 1000), "tenant_id": tenant, "user_id": user}
        self.send(JSON_SCHEMA, i, self.encode(self.json, JSON_SCHEMA, value))


def counted(daemon, wanted, seconds=60):
    """Waits until the outcomes are those that are wanted, and nothing else was counted."""
    def outcomes():
        page, name = daemon.request("/metrics"), "guardraild_records_total"
        found = {o: int(daemon.metric(name, page, outcome=o)) for o in ("accepted", "unmapped", "rejected")}
        return found | {"records": int(daemon.metric(name, page))}
    try:
        poll("expected outcomes", seconds, lambda: daemon.alive() and outcomes() == wanted)
    except TimeoutError:
        raise AssertionError(f"outcomes: {outcomes()}, wanted {wanted}") from None


class Story:
    UNITS = 40

    def __init__(self, binary, broker, registry, receiver, folder):
        self.broker, self.registry, self.receiver = broker, registry, receiver
        self.daemon = Daemon(binary, folder / "daemon", broker.address, receiver, "guardraild-schemas", secrets={"API_TOKEN": TOKEN})
        config = json.loads(self.daemon.config.read_text())
        config["kafka"]["schema_registry"] = {"url": registry.url, "timeout": "1s"}
        config["http"]["tokens"] = [{"name": "tests", "role": "operate", "token": {"env": "API_TOKEN"}}]
        self.daemon.config.write_text(json.dumps(config, indent=2))
        (self.daemon.folder / "rules/sources.yaml").write_text(SOURCES)
        self.wanted = {"accepted": 0, "unmapped": 0, "rejected": 0, "records": 0}

    def tell(self, checks):
        told = checks.run("topics are there", self.broker.topic, EXPOSURES, EVENTS, CONTROL, AVRO, PROTOBUF, JSON_SCHEMA)
        told = told and checks.run("the daemon is ready", self.daemon.start)
        if told:
            self.traffic = Traffic(self.broker, self.registry)
            checks.run("Avro, Protobuf and JSON Schema are read", self.all_formats)
            checks.run("init reads the topics by their schemas", self.init)
            checks.run("an id that nobody knows is refused, and the stream goes on", self.unknown_id)
            checks.run("while the registry is away a new schema is waited for", self.registry_away)
            checks.run("a breach in Protobuf requests is acted on", self.breach)
            checks.run("a backtest of the topics counts and decides the same", self.backtest)
            checks.run("the daemon stops", lambda: equal("exit code", self.daemon.stop(), 0))
        if self.daemon.process and self.daemon.process.poll() is None:
            self.daemon.kill()

    def more(self, **outcomes):
        for outcome, n in outcomes.items():
            self.wanted[outcome] += n
            self.wanted["records"] += n
        counted(self.daemon, self.wanted)

    def all_formats(self):
        for i in range(self.UNITS):
            self.traffic.exposure(i)
        self.traffic.flush()
        self.more(accepted=self.UNITS)
        for i in range(self.UNITS):
            self.traffic.served(i, 200)
            self.traffic.served(i, 0)
            self.traffic.ticket(i)
        self.traffic.flush()
        self.more(accepted=2 * self.UNITS, unmapped=self.UNITS)
        buckets = {b["bucket"]: b["exposed_units"] for b in self.daemon.experiment()["buckets"]}
        equal("exposed units", buckets, {"control": self.UNITS // 2, "treatment": self.UNITS // 2})
        return f"{self.wanted['records']} records; asked for {int(self.daemon.metric('guardraild_schema_registry_requests_total'))} schemas"

    def init(self):
        folder = self.daemon.folder / "proposal"
        topics = [word for topic in (JSON_SCHEMA, AVRO, PROTOBUF) for word in ("--topic", topic)]
        command = [self.daemon.binary, "init", str(folder), "--brokers", self.broker.address, "--schema-registry", self.registry.url, *topics]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60)
        equal("status", (told.returncode, told.stderr), (0, ""))
        for part in ("json_schema: canonical events", "avro: a layout of its own, which needs a source; fields /arm /at", "protobuf: a layout of its own"):
            assert part in told.stdout, told.stdout
        sources = (folder / "rules/sources.yaml").read_text()
        assert f"{{topics: ['{JSON_SCHEMA}'], format: json_schema}}" in sources, sources
        assert self.registry.url in (folder / "guardraild.yaml").read_text()

    def unknown_id(self):
        self.traffic.send(AVRO, 0, b"\0" + (999_999).to_bytes(4, "big") + b"\2")
        self.traffic.exposure(0)
        self.traffic.flush()
        self.more(accepted=1, rejected=1)
        page = self.daemon.request("/metrics")
        equal("rejected as not_json", self.daemon.metric("guardraild_records_total", page, reason="not_json"), 1)
        request = urllib.request.Request(self.daemon.base + "/api/v1/rejects", headers={"authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            details = [sample["detail"] for sample in json.loads(answer.read())["rejects"]]
        assert len(details) == 1 and details[0].startswith("schema 999999: the registry does not know it"), details
        return details[0]

    def registry_away(self):
        serializer = AvroSerializer(self.traffic.client, avro_schema(("note", ["null", "string"])))
        self.traffic.encode(serializer, AVRO, {"org": "o", "user": None, "flag": "f", "at": 0, "arm": "A", "note": None})  # registers it
        self.registry.pause()
        try:
            for i in range(self.UNITS):
                self.traffic.exposure(i, serializer, note="new")
            self.traffic.flush()
            poll("503 from /readyz", 30, lambda: self.daemon.alive() and self.daemon.status("/readyz") == 503)
            counted(self.daemon, self.wanted)  # nothing is counted, and nothing refused
        finally:
            self.registry.resume()
        self.more(accepted=self.UNITS)
        poll("200 from /readyz", 30, lambda: self.daemon.alive() and self.daemon.status("/readyz") == 200)

    def breach(self):
        deadline = time.monotonic() + 60
        while not self.receiver.requests:
            assert time.monotonic() < deadline, "no webhook within 60 s"
            for i in range(self.UNITS):
                self.traffic.served(i, 503 if i % 2 else 200)
            self.traffic.flush()
            self.wanted["accepted"] += self.UNITS
            self.wanted["records"] += self.UNITS
            time.sleep(0.5)
        self.more()
        decision = self.daemon.decisions()[0]
        equal("bucket, guardrail", (decision["bucket"], decision["guardrail"]), ("treatment", "error_rate"))
        return decision["reason"]

    def backtest(self):
        decisions, summary = self.daemon.backtest()
        equal("outcomes", {name: summary[name] for name in ("accepted", "unmapped", "records")} | {"rejected": sum(summary["rejected"].values())}, self.wanted)
        equal("first decision", decisions[0]["decision"], self.daemon.decisions()[0]["decision"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="the guardraild to test")
    parser.add_argument("--keep", metavar="DIR", help="work in this folder, and keep it")
    args = parser.parse_args()
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="guardraild-schemas-") as temporary:
        folder = pathlib.Path(args.keep or temporary).resolve()
        broker, registry = Broker(folder / "broker"), Registry(folder / "registry")
        try:
            if checks.run("broker starts", lambda: f"metadata after {broker.start():.1f} s") and checks.run("registry starts", registry.start):
                Story(str(pathlib.Path(args.binary).resolve()), broker, registry, Receiver(new_secret("flag-service")), folder).tell(checks)
        finally:
            registry.stop()
            broker.stop(hard=True)
    print(f"{checks.passed} passed, {checks.failed} failed")
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
