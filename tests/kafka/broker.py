#!/usr/bin/env python3
"""A real Apache Kafka broker on loopback: one KRaft node, fetched by Maven, kept outside the tree.

    broker.py fetch                    copy the jars into the cache, once
    broker.py start DIR [--port N]     format DIR if it is new, start, wait until metadata answers, print the address
    broker.py stop DIR
    broker.py topic DIR NAME...        create topics of 4 partitions
    broker.py tool CLASS [ARG...]      run one of Kafka's own tools

Needs java 17, mvn, openssl and kcat. GUARDRAILD_KAFKA_HOME names the cache.
"""

import argparse
import base64
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
HOME = pathlib.Path(os.environ.get("GUARDRAILD_KAFKA_HOME") or pathlib.Path.home() / ".cache/guardraild/kafka")
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
USER, PASSWORD = "guardraild", "acceptance-only"
TOOLS = {
    "topics": "org.apache.kafka.tools.TopicCommand",
    "producer": "org.apache.kafka.tools.ConsoleProducer",
    "consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "offsets": "org.apache.kafka.tools.GetOffsetShell",
    "groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
}


def poll(what, seconds, probe, every=0.1):
    """Calls probe until it returns something true, which is returned; TimeoutError names what was awaited."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {seconds} s")
        time.sleep(every)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def libs():
    """The folder of jars for the versions that pom.xml names; Maven fills it once."""
    version = hashlib.sha256((HERE / "pom.xml").read_bytes()).hexdigest()[:12]
    folder = HOME / version
    if folder.is_dir():
        return folder
    partial = HOME / f"{version}.{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={partial}"]
        subprocess.run(["mvn", "-q", "-B", "-Dstyle.color=never", "-f", str(HERE / "pom.xml"), *goal], check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another run was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def java(main_class, *args, heap="256m", config="log4j2-tools.xml"):
    return [
        "java", f"-Xmx{heap}", "-XX:+UseSerialGC" if heap == "256m" else "-XX:+UseG1GC", "-XX:TieredStopAtLevel=1",
        "-XX:ActiveProcessorCount=2", f"-Dlog4j2.configurationFile={HERE / config}", "-cp", f"{libs()}/*", main_class, *args,
    ]


def tool(name, *args, **options):
    """Runs one of Kafka's own tools and returns what it printed."""
    done = subprocess.run(java(TOOLS.get(name, name), *args), capture_output=True, text=True, timeout=120, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{name} {' '.join(args)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


class Broker:
    """One broker in one folder. Its addresses stay the same over restarts."""

    def __init__(self, folder, port=None):
        self.folder = pathlib.Path(folder).resolve()
        self.settings = self.folder / "server.properties"
        ports = self.folder / "ports.json"
        if not self.settings.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            ports.write_text(json.dumps([port or free_port(), free_port(), free_port()]))
        self.port, self.tls_port, self.controller_port = json.loads(ports.read_text())
        self.address = f"127.0.0.1:{self.port}"
        self.tls_address = f"127.0.0.1:{self.tls_port}"
        self.ca = self.folder / "broker.crt"
        self.pid_file = self.folder / "pid"
        self.log = self.folder / "broker.log"
        if not self.settings.exists():
            self.format()

    def format(self):
        """Writes certificate and settings, and formats the log folder with one SCRAM user."""
        key, store = self.folder / "broker.key", self.folder / "broker.pem"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-keyout", key, "-out", self.ca, *subject],
            check=True, capture_output=True,
        )
        store.write_text(key.read_text() + self.ca.read_text())
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "listeners": f"PLAINTEXT://{self.address},SASL_SSL://{self.tls_address},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.address},SASL_SSL://{self.tls_address}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "listener.name.sasl_ssl.ssl.keystore.type": "PEM",
            "listener.name.sasl_ssl.ssl.keystore.location": store,
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{plain} user_{USER}="{PASSWORD}";',
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": scram,
            "log.dirs": self.folder / "data",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": 0,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "num.network.threads": 2,
            "num.io.threads": 2,
            "log.segment.bytes": 134217728,
            "broker.heartbeat.interval.ms": 500,  # a killed broker may register again when its old session has ended
            "broker.session.timeout.ms": 3000,
        }
        for name in ["offsets.topic", "transaction.state.log", "share.coordinator.state.topic"]:
            settings[f"{name}.replication.factor"] = 1
            if name != "offsets.topic":
                settings[f"{name}.min.isr"] = 1
        text = "".join(f"{k}={v}\n" for k, v in settings.items())
        written = self.folder / "server.properties.new"
        written.write_text(text)
        cluster = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=").replace("-", "_")  # a leading dash would be an option
        user = f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]"
        tool("kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(written), "--add-scram", user)
        written.rename(self.settings)

    def start(self, seconds=120):
        """Starts the broker and returns the seconds until its metadata answered."""
        begun = time.monotonic()
        command = java("kafka.Kafka", str(self.settings), heap="512m", config="log4j2-broker.xml")
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.pid_file.write_text(str(process.pid))

        def answers():
            if process.poll() is not None:
                raise RuntimeError(f"the broker ended with {process.returncode}: see {self.log}")
            return self.metadata()

        poll("metadata from the broker", seconds, answers)
        return time.monotonic() - begun

    def stop(self, hard=False, seconds=60):
        """Stops the broker: in order, or by SIGKILL."""
        if not self.pid_file.exists():
            return
        pid = int(self.pid_file.read_text())
        try:
            os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
            poll("end of the broker", seconds, lambda: ended(pid))
        except ProcessLookupError:
            pass
        self.pid_file.unlink()

    def metadata(self):
        """What `kcat -L` says of the cluster, or None while no broker answers."""
        asked = subprocess.run(["kcat", "-L", "-J", "-m", "2", "-b", self.address], capture_output=True, text=True)
        if asked.returncode != 0:
            return None
        answer = json.loads(asked.stdout)
        return answer if answer["brokers"] else None

    def topic(self, *names, partitions=4):
        """Creates topics and waits until every partition has a leader."""
        for name in names:
            tool("topics", "--bootstrap-server", self.address, "--create", "--if-not-exists", "--topic", name,
                 "--partitions", str(partitions), "--replication-factor", "1")

        def led():
            topics = {t["topic"]: t["partitions"] for t in (self.metadata() or {"topics": []})["topics"]}
            return all(len([p for p in topics.get(n, []) if p["leader"] == 1]) == partitions for n in names)

        poll(f"leaders of {', '.join(names)}", 30, led)

    def ends(self, *topics, partitions=4):
        """Records in the topics: the sum of the partitions' end offsets (none is ever compacted or expired here)."""
        queries = [part for t in topics for p in range(partitions) for part in ("-t", f"{t}:{p}:-1")]

        def answer():  # none while a broker that just started has not taken over its partitions
            asked = subprocess.run(["kcat", "-Q", "-b", self.address, *queries], capture_output=True, text=True, timeout=30)
            return asked.stdout.splitlines() if asked.returncode == 0 else None

        lines = poll(f"end offsets of {', '.join(topics)}", 30, answer)
        return sum(int(line.rsplit(" ", 1)[1]) for line in lines if "offset" in line)

    def console(self, topic, records, codec="none"):
        """Produces (key, value) pairs by Kafka's console producer."""
        lines = "".join(f"{k}\t{v}\n" for k, v in records)
        tool("producer", "--bootstrap-server", self.address, "--topic", topic, "--compression-codec", codec,
             "--reader-property", "parse.key=true", "--reader-property", "key.separator=\t", input=lines)

    def kcat(self, topic, records, codec="none"):
        """Produces (key, value) pairs by kcat, in one go."""
        lines = "".join(f"{k}\t{v}\n" for k, v in records)
        subprocess.run(self.kcat_command(topic, codec), input=lines, text=True, check=True, timeout=60)

    def kcat_command(self, topic, codec="none"):
        """kcat reading `key TAB value` lines. Idempotent, and not ending with -E, since a broker goes away under it; and with the
        partitioner of Kafka's own producers: librdkafka's default puts the same key elsewhere, and exposures must meet their events."""
        return ["kcat", "-P", "-E", "-b", self.address, "-t", topic, "-K", "\t", "-z", codec,
                "-X", "enable.idempotence=true", "-X", "topic.partitioner=murmur2_random", "-X", "linger.ms=20",
                "-X", "reconnect.backoff.max.ms=500"]


def ended(pid):
    """Whether a process is gone; a child is reaped."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        try:
            os.kill(pid, 0)
            return False
        except ProcessLookupError:
            return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch")
    start = commands.add_parser("start")
    start.add_argument("dir")
    start.add_argument("--port", type=int)
    commands.add_parser("stop").add_argument("dir")
    topic = commands.add_parser("topic")
    topic.add_argument("dir")
    topic.add_argument("names", nargs="+")
    run = commands.add_parser("tool")
    run.add_argument("name")
    run.add_argument("args", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.command == "fetch":
        print(libs())
    elif args.command == "start":
        broker = Broker(args.dir, args.port)
        seconds = broker.start()
        print(f"{broker.address} ready after {seconds:.1f} s; SASL_SSL on {broker.tls_address}; log in {broker.log}")
    elif args.command == "stop":
        Broker(args.dir).stop()
    elif args.command == "topic":
        Broker(args.dir).topic(*args.names)
    else:
        sys.exit(subprocess.run(java(TOOLS.get(args.name, args.name), *args.args)).returncode)


if __name__ == "__main__":
    main()
