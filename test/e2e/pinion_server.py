"""`pinion serve` as the end-to-end tests use it: started on a free port, asked over plain HTTP, drained with SIGTERM.

Only the standard library: what is tested here is the server, so that requests are written byte for byte.
"""
import http.client
import json
import pathlib
import re
import signal
import subprocess
import tempfile
import threading
import time


def build(pinion, checkpoint, engine, *flags):
    """Compiles `checkpoint` into the directory `engine`, without timing kernels: any choice will do here."""
    command = [pinion, "build", "--checkpoint_dir", checkpoint, "--output_dir", engine, "--no_timing", *flags]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if made.returncode != 0:
        raise AssertionError(f"the build of {checkpoint} failed: {made.stderr}")
    return str(engine)


def completion_bytes(fields, *headers):
    """A completion's request as it travels, for those who write to the socket themselves."""
    body = json.dumps(fields).encode()
    head = ["POST /v1/completions HTTP/1.1", "Host: test", "Content-Type: application/json",
            f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def certificate(directory):
    """A certificate for 127.0.0.1 that signs itself, and its key: both files' paths."""
    files = pathlib.Path(directory) / "cert.pem", pathlib.Path(directory) / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", files[1], "-out", files[0], "-days", "2", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return files


class Server:
    """A context manager. `log` holds what the server has written to standard error so far."""

    def __init__(self, pinion, model, *flags, wait=True):
        self.command = [pinion, "serve", *([str(model)] if model else []), "--host", "127.0.0.1", "--port", "0", *map(str, flags)]
        self.wait = wait
        self.log = ""
        self.port = self.metrics_port = self.grpc_port = None
        self._serving = threading.Event()

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if self.wait:
            self.wait_until_ready()
        return self

    def __exit__(self, kind, error, trace):
        if self.process.poll() is None:
            self.process.kill() if error else self.drain()
        self.process.wait()
        self._reader.join(10)
        self.process.stderr.close()

    def _read(self):
        for line in self.process.stderr:
            self.log += line
            found = re.search(r"serving .* on https?://127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found[1])
            metrics = re.search(r"metrics on http://127\.0\.0\.1:(\d+)/", line)
            if metrics:
                self.metrics_port = int(metrics[1])
            grpc = re.search(r"gRPC on 127\.0\.0\.1:(\d+)", line)
            if grpc:
                self.grpc_port = int(grpc[1])
            said = [self.port is not None, self.metrics_port or "--metrics_port" not in self.command,
                    self.grpc_port or "--grpc_port" not in self.command]
            if all(said):
                self._serving.set()
        self._serving.set()

    def wait_until_ready(self, seconds=300):
        self._serving.wait(seconds)
        if self.port is None:
            self.process.kill()
            raise AssertionError(f"the server did not come up: {self.log}")

    def drain(self, seconds=120):
        """SIGTERM; the exit status is 0 only when everything was freed (the server recounts its pool)."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        self._reader.join(10)
        if status != 0:
            raise AssertionError(f"the server ended with status {status} on SIGTERM: {self.log}")

    def request(self, method, path, body=None, headers=None, timeout=300):
        """(status, headers, body as text). `body`: bytes as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            head = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, data, head | (headers or {}))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def complete(self, **fields):
        """A completion that must succeed: its JSON."""
        status, _, text = self.request("POST", "/v1/completions", fields)
        if status != 200:
            raise AssertionError(f"HTTP {status}: {text}")
        return json.loads(text)

    def metrics(self):
        """The metrics without labels of their own, by name."""
        values = {}
        for line in self.request("GET", "/metrics")[2].splitlines():
            found = re.match(r'pinion_(\w+)(?:\{model_name="[^"]*"\})? (\S+)$', line)
            if found:
                values[found[1]] = float(found[2])
        return values

    def wait_idle(self, seconds=20):
        """Waits until no sequence runs or waits; the metrics of that moment."""
        end = time.monotonic() + seconds
        while True:
            m = self.metrics()
            if m["num_requests_running"] == 0 and m["num_requests_waiting"] == 0:
                return m
            if time.monotonic() > end:
                raise AssertionError(f"{m['num_requests_running']:.0f} requests still run, "
                                     f"{m['num_requests_waiting']:.0f} wait, though nobody asks")
            time.sleep(0.02)


def scratch():
    """A temporary directory as a context manager whose value is a Path."""

    class Scratch(tempfile.TemporaryDirectory):
        def __enter__(self):
            return pathlib.Path(super().__enter__())

    return Scratch(prefix="pinion-e2e-")
