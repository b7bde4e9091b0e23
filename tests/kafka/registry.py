"""A real schema registry on loopback: Apicurio, which speaks Confluent's API; fetched by Maven, kept outside the tree, in memory."""

import os
import pathlib
import signal
import subprocess
import tarfile
import urllib.error
import urllib.request

from broker import HOME, free_port, poll

VERSION = "3.0.9"  # the last that runs on Java 17 as it is
API = "/apis/ccompat/v7"


def program():
    """The unpacked registry; Maven fetches it once."""
    folder = HOME.parent / f"apicurio-{VERSION}"
    if not folder.is_dir():
        artifact = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        partial.mkdir(parents=True)
        copy = ["dependency:copy", f"-Dartifact={artifact}", f"-DoutputDirectory={partial}"]
        subprocess.run(["mvn", "-q", "-B", "-Dstyle.color=never", *copy], check=True, stdin=subprocess.DEVNULL)
        archive = next(partial.glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        archive.unlink()
        partial.rename(folder)
    return next(folder.glob("*runner.jar"))


class Registry:
    """Starts with nothing in it, and forgets all when it stops."""

    def __init__(self, folder, port=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}{API}"
        self.process = None

    def start(self, seconds=120):
        environment = os.environ | {"QUARKUS_HTTP_PORT": str(self.port), "QUARKUS_HTTP_HOST": "127.0.0.1"}
        command = ["java", "-Xmx384m", "-XX:TieredStopAtLevel=1", "-jar", program()]
        with (self.folder / "registry.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        poll("answer of the registry", seconds, self.answers)

    def answers(self):
        assert self.process.poll() is None, f"the registry ended: see {self.folder}/registry.log"
        try:
            with urllib.request.urlopen(self.url + "/subjects", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def pause(self):
        """It keeps its port and its schemas, and answers nobody."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.resume()
            self.process.kill()
            self.process.wait()
