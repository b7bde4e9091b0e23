"""Endpoints against the products themselves: Alertmanager with an e-mail at its end, an Unleash server, a file of flags read by an
OpenFeature provider, GrowthBook's SDK.

  python3 tests/products/products.py fetch                    installs what it needs in ~/.cache/guardraild/products (pip, npm)
  python3 tests/products/products.py GUARDRAILD DELIVERY      all of it, or the parts that further arguments name

GUARDRAILD is the program, DELIVERY the test binary of `tests/delivery.rs`. PostgreSQL and prometheus-alertmanager must be installed.
"""

import email
import email.policy
import http.server
import json
import logging
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "guardraild" / "products"
PYTHON = CACHE / "venv" / "bin" / "python"


def fetch():
    CACHE.mkdir(parents=True, exist_ok=True)
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", CACHE / "venv"], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
    shutil.copy(HERE / "package.json", CACHE)
    if not (CACHE / "node_modules" / "unleash-server").exists():
        subprocess.run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=CACHE, check=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, condition, seconds=60):
    """Waits for a state, and fails when it does not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise SystemExit(f"FAILED: {what} did not happen within {seconds} s")


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except OSError:
        return False


class Running:
    """A process that ends with the block."""

    def __init__(self, command, log, **options):
        self.log = open(log, "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def test_endpoint(program, folder, endpoints, name, *options):
    """Runs `guardraild test-endpoint`; returns its status and what it printed."""
    config = folder / "guardraild.yaml"
    config.write_text("kafka: {brokers: ['k:9092']}\n" + json.dumps({"endpoints": endpoints})[1:-1] + "\n")
    run = subprocess.run([program, "test-endpoint", name, "--config", config, *options], capture_output=True, text=True, timeout=60)
    print(f"   {name} {' '.join(options)}: exit {run.returncode}, {(run.stdout + run.stderr).strip().splitlines()[-1]}")
    return run.returncode, run.stdout + run.stderr


def expect(condition, what):
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    print(f"   {what}")


# Alertmanager


def alertmanager(program, delivery, folder):
    from aiosmtpd.controller import Controller

    mails = folder / "mails"
    mails.mkdir()

    class Sink:
        async def handle_DATA(self, server, session, envelope):
            n = len(list(mails.iterdir())) + 1
            (mails / f"new-{n}").write_bytes(envelope.content)
            (mails / f"new-{n}").rename(mails / f"{n}.eml")
            return "250 taken"

    smtp, web = free_port(), free_port()
    sink = Controller(Sink(), hostname="127.0.0.1", port=smtp)
    sink.start()
    # What deploy/ ships, but for the mail server and for how long a test wants to wait.
    text = (HERE.parent.parent / "deploy/alertmanager/alertmanager.yml").read_text()
    changes = [("mail.example:587", f"127.0.0.1:{smtp}"), ("smtp_require_tls: true", "smtp_require_tls: false"), ("group_wait: 5s", "group_wait: 1s")]
    for old, new in [*changes, ("group_interval: 1m", "group_interval: 2s")]:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "alertmanager.yml").write_text(text)
    shutil.copy(HERE.parent.parent / "deploy/alertmanager/guardraild.tmpl", folder)
    command = [shutil.which("prometheus-alertmanager") or "alertmanager", f"--config.file={folder}/alertmanager.yml"]
    command += [f"--storage.path={folder}/am", f"--web.listen-address=127.0.0.1:{web}", "--cluster.listen-address="]
    url = f"http://127.0.0.1:{web}"
    try:
        with Running(command, folder / "alertmanager.log"):
            until("Alertmanager answers", lambda: answers(url + "/-/ready"))
            code, _ = test_endpoint(program, folder, {"alerts": {"kind": "alertmanager", "urls": [url]}}, "alerts")
            expect(code == 0, "a test message is taken")
            env = {**os.environ, "GUARDRAILD_ALERTMANAGER": url, "GUARDRAILD_MAILS": str(mails)}
            subprocess.run([delivery, "real::alertmanager", "--ignored", "--exact", "--nocapture"], env=env, check=True, timeout=120)
    finally:
        sink.stop()
    for path in sorted(mails.iterdir(), key=lambda p: int(p.stem)):
        mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        print(f"\n   -- To: {mail['To']}\n   Subject: {mail['Subject']}\n")
        print("\n".join("   " + line for line in mail.get_body(("plain",)).get_content().rstrip().splitlines()))
    print()


# Unleash


def unleash(program, _, folder):
    port, web, token = free_port(), free_port(), "*:*.a-token-for-tests-alone"
    binaries = Path(subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True).stdout.strip() or "/usr/bin")
    if not (binaries / "initdb").exists():
        binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name))
    data = Path(tempfile.mkdtemp(prefix="guardraild-pg-"))
    # PostgreSQL does not run as root.
    user = {"user": "postgres", "group": pwd.getpwnam("postgres").pw_gid} if os.geteuid() == 0 else {}
    if user:
        os.chown(data, pwd.getpwnam("postgres").pw_uid, user["group"])
    subprocess.run([binaries / "initdb", "-D", data / "db", "-A", "trust", "-U", "postgres", "-N"], check=True, stdout=subprocess.DEVNULL, cwd="/", **user)
    postgres = [binaries / "postgres", "-D", data / "db", "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
    try:
        with Running(postgres, folder / "postgres.log", cwd="/", **user):
            psql = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-qc", "create database unleash"]
            until("PostgreSQL answers", lambda: subprocess.run(psql, stderr=subprocess.DEVNULL).returncode == 0)
            env = {**os.environ, "DATABASE_URL": f"postgres://postgres@127.0.0.1:{port}/unleash", "DATABASE_SSL": "false", "PORT": str(web)}
            env |= {"INIT_ADMIN_API_TOKENS": token, "CHECK_VERSION": "false", "SEND_TELEMETRY": "false", "LOG_LEVEL": "warn"}
            server = ["node", CACHE / "node_modules/unleash-server/dist/server.js"]
            with Running(server, folder / "unleash.log", env=env):
                until("Unleash answers", lambda: answers(f"http://127.0.0.1:{web}/health"))
                with_unleash(program, folder, f"http://127.0.0.1:{web}", token)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def with_unleash(program, folder, url, token):
    admin = url + "/api/admin/projects/default/features"

    def ask(method, path, body=None):
        headers = {"authorization": token, "content-type": "application/json"}
        request = urllib.request.Request(admin + path, method=method, headers=headers, data=json.dumps(body).encode() if body else None)
        text = urllib.request.urlopen(request, timeout=10).read()
        return json.loads(text) if text else None

    ask("POST", "", {"name": "new-checkout", "type": "release"})
    ask("POST", "/new-checkout/environments/production/strategies", {"name": "default"})
    ask("POST", "/new-checkout/environments/production/on")
    is_on = lambda: ask("GET", "/new-checkout/environments/production")["enabled"]
    (folder / "token").write_text(token)
    endpoint = {"kind": "unleash", "url": url, "token": {"file": "token"}, "project": "default", "environment": "production"}
    flag = ["--body", '{"flag": "new-checkout"}']
    code, _ = test_endpoint(program, folder, {"unleash": endpoint}, "unleash", *flag)
    expect(code == 0 and is_on(), "a test finds the flag and changes nothing")
    code, said = test_endpoint(program, folder, {"unleash": endpoint}, "unleash", "--body", '{"flag": "no-such-flag"}')
    expect(code == 1 and "404" in said and token not in said, "a test tells of a flag that is not there")
    for _ in range(2):
        code, _ = test_endpoint(program, folder, {"unleash": endpoint}, "unleash", "--as", "rollback", *flag)
        expect(code == 0 and not is_on(), "a rollback turns it off")
    (folder / "token").write_text("*:*.wrong")
    code, said = test_endpoint(program, folder, {"unleash": endpoint}, "unleash", "--as", "rollback", *flag)
    expect(code == 1 and "401" in said, "a wrong token is told")


# flagd's file


def flagd(program, _, folder):
    from openfeature import api
    from openfeature.contrib.provider.flagd import FlagdProvider
    from openfeature.contrib.provider.flagd.config import ResolverType
    from openfeature.evaluation_context import EvaluationContext

    path = folder / "flags.json"
    targeting = {"fractional": [{"var": "targetingKey"}, ["control", 50], ["treatment", 50]]}
    flag = {"state": "ENABLED", "variants": {"control": "old", "treatment": "new"}, "defaultVariant": "treatment", "targeting": targeting}
    path.write_text(json.dumps({"flags": {"new-checkout": flag, "other": {**flag, "targeting": {}}}}, indent=2))
    os.environ["FLAGD_OFFLINE_POLL_MS"] = "100"
    api.set_provider(FlagdProvider(resolver_type=ResolverType.FILE, offline_flag_source_path=str(path)))
    client = api.get_client()

    def served(flag):
        return {client.get_string_value(flag, "in the code", EvaluationContext(f"user-{i}")) for i in range(50)}

    until("the provider has read the file", lambda: served("new-checkout") == {"old", "new"})
    body = ["--body", '{"flag": "new-checkout"}']
    control = {"kind": "flagd", "file": "flags.json", "serve": "control"}
    code, _ = test_endpoint(program, folder, {"file": control}, "file", *body)
    expect(code == 0 and served("new-checkout") == {"old", "new"}, "a test changes nothing")
    test_endpoint(program, folder, {"file": control}, "file", "--as", "rollback", *body)
    until("everybody is served the control", lambda: served("new-checkout") == {"old"})
    expect(served("other") == {"new"}, "everybody is served the control, and another flag is as before")
    test_endpoint(program, folder, {"file": {"kind": "flagd", "file": "flags.json"}}, "file", "--as", "kill", *body)
    until("the flag is off", lambda: served("new-checkout") == {"in the code"})
    expect(served("other") == {"new"}, "a flag that is off is what the code says")
    # Its watcher goes on for a while, and complains that the folder is gone.
    logging.disable()
    api.shutdown()


# GrowthBook


def growthbook(program, _, folder):
    from growthbook import GrowthBookClient, Options, UserContext
    import asyncio

    state = {"production": True}

    class Api(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, body, status=200):
            body = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            # The payload of an SDK: a feature that is off in the environment is not in it.
            rules = [{"variations": ["old", "new"], "key": "new-checkout", "weights": [0, 1], "hashAttribute": "id"}]
            on = {"new-checkout": {"defaultValue": "old", "rules": rules}} if state["production"] else {}
            self.answer({"status": 200, "features": on})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            allowed = self.headers["authorization"] == "Bearer gb-secret" and self.path == "/api/v2/features/new-checkout/toggle"
            if not allowed:
                return self.answer({"message": "no"}, 403)
            state.update(asked["environments"])
            self.answer({"feature": {"id": "new-checkout", "environments": {"production": {"enabled": state["production"]}}}})

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"

    def served():
        async def evaluate():
            client = GrowthBookClient(Options(api_host=url, client_key="sdk-test", cache_ttl=0))
            try:
                await client.initialize()
                return await client.get_feature_value("new-checkout", "in the code", UserContext(attributes={"id": "user-1"}))
            finally:
                await client.close()

        return asyncio.run(evaluate())

    expect(served() == "new", "the SDK serves the treatment")
    (folder / "token").write_text("gb-secret")
    endpoint = {"kind": "growthbook", "url": url, "token": {"file": "token"}, "environment": "production", "flag": "new-checkout"}
    code, _ = test_endpoint(program, folder, {"growthbook": endpoint}, "growthbook", "--as", "rollback")
    expect(code == 0 and served() == "in the code", "after a rollback it serves what the code says")
    server.shutdown()


PARTS = {"alertmanager": alertmanager, "unleash": unleash, "flagd": flagd, "growthbook": growthbook}


def main():
    if sys.argv[1:] == ["fetch"]:
        return fetch()
    if Path(sys.executable) != PYTHON:
        os.execv(PYTHON, [str(PYTHON), __file__, *sys.argv[1:]])
    program, delivery = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    for name in sys.argv[3:] or PARTS:
        print(f"-- {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="guardraild-products-") as folder:
            PARTS[name](program, delivery, Path(folder))
    print("all products passed")


if __name__ == "__main__":
    main()
