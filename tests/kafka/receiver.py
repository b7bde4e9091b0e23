"""A flag service that checks every webhook by its own reading of Standard Webhooks 1.0.0, and remembers all of them."""

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time

TOLERANCE_S = 300


def new_secret(seed):
    return "whsec_" + base64.b64encode(hashlib.sha256(seed.encode()).digest()).decode()


def sign(secret, webhook_id, timestamp, body):
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def fault(secret, headers, body):
    """What is wrong with a request, or None."""
    webhook_id, timestamp = headers.get("webhook-id"), headers.get("webhook-timestamp")
    if not webhook_id or not timestamp or not timestamp.isdigit():
        return f"webhook-id {webhook_id!r}, webhook-timestamp {timestamp!r}"
    if abs(time.time() - int(timestamp)) > TOLERANCE_S:
        return f"webhook-timestamp {timestamp} is more than {TOLERANCE_S} s off"
    wanted = sign(secret, webhook_id, timestamp, body)
    given = (headers.get("webhook-signature") or "").split(" ")
    if not any(hmac.compare_digest(wanted.encode(), g.encode()) for g in given):
        return f"no signature of {given} is {wanted}"
    return None


class Receiver:
    """Listens on loopback; `refuse` makes it answer 503."""

    def __init__(self, secret):
        self.secret = secret
        self.refuse = False
        self.requests = []
        self.lock = threading.Lock()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status = receiver.take(self.headers, body)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/flags"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, headers, body):
        found = fault(self.secret, headers, body)
        try:
            content = json.loads(body)
        except ValueError as e:
            content, found = {}, found or f"body: {e}"
        status = 400 if found else 503 if self.refuse else 200
        with self.lock:
            self.requests.append({"at": time.time(), "id": headers.get("webhook-id"), "fault": found, "status": status, "body": content})
        return status

    def of(self, kind):
        """Requests of one type, oldest first."""
        with self.lock:
            return [r for r in self.requests if r["body"].get("type") == kind]

    def faults(self):
        with self.lock:
            return [r["fault"] for r in self.requests if r["fault"]]

    def close(self):
        self.server.shutdown()
        self.server.server_close()
