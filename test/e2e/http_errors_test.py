#!/usr/bin/env python3
"""Bad requests over HTTP against the real server: the right status, an error object that names the field, and a server
that answers as before afterwards. Usage: http_errors_test.py PINION CHECKPOINT"""
import json
import socket
import sys
import time
import unittest

import pinion_server

PINION, CHECKPOINT = sys.argv[1:3]
CANARY = {"prompt": [5, 6, 7, 8], "max_tokens": 12, "temperature": 0, "ignore_eos": True}
HELLO = [{"role": "user", "content": "Hello"}]


class Errors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        limits = ("--max_batch_size", 4, "--max_queue", 4, "--max_seq_len", 512)
        cls.server = pinion_server.Server(PINION, CHECKPOINT, *limits)
        cls.server.__enter__()
        cls.canary = cls.server.complete(**CANARY)["choices"][0]["text"]

    @classmethod
    def tearDownClass(cls):
        cls.server.drain()  # status 0: the pool was whole

    def tearDown(self):
        """Whatever was asked, the server is as it was."""
        self.assertEqual(self.server.request("GET", "/health")[0], 200)
        self.assertEqual(self.server.request("GET", "/health/ready")[0], 200)
        self.assertEqual(self.server.complete(**CANARY)["choices"][0]["text"], self.canary)
        self.assertEqual(self.server.wait_idle()["kv_cache_usage_perc"], 0)

    def refused(self, path, body, status=400, param=None, method="POST", headers=None):
        got, head, text = self.server.request(method, path, body, headers)
        what = f"{path} {str(body)[:300]}: HTTP {got} {text[:500]}"
        self.assertEqual(got, status, what)
        error = json.loads(text)["error"]
        self.assertTrue(error["message"], what)
        self.assertTrue(error["type"], what)
        if param is not None:
            self.assertEqual(error["param"], param, what)
        for leak in ("0x", "/tmp", ".cc:", "json.exception"):
            self.assertNotIn(leak, error["message"], what)
        return error, head

    def test_fields(self):
        for field, values in {
            "max_tokens": (0, -1, 1.5, "8", 2**31, 2**63, 1e308, [], True),
            "temperature": (-1, "x", [], 3),
            "top_p": (0, -1, 1.1, "x"),
            "top_k": (-2, "x", 1.5),
            "n": (0, -1, 129, 2**31, "x"),
            "stop": ([""], 5, ["x" * 5000], ["a"] * 100, [1]),
            "logit_bias": ({"9999": 1}, {"-1": 1}, {"x": 1}, {"5": "x"}, {"5": 1e9}, 5),
            "seed": (1.5, "x"),
            "presence_penalty": (3, -3, "x"),
            "frequency_penalty": (3, "x"),
            "stream": ("yes", 1),
            "logprobs": (-1, "x", 10**6),
            "prompt": ("", [], [[]], [-1], [4096], [2**31], 5, {}, [[1], "x"], [None], ["a", 5]),
        }.items():
            for value in values:
                with self.subTest(field=field, value=str(value)[:40]):
                    self.refused("/v1/completions", CANARY | {field: value}, param=field)

    def test_messages(self):
        image = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
        for messages in ([], "x", [5], [{}], [{"role": "user"}], [{"role": 5, "content": "x"}],
                         [{"role": "user", "content": 5}], [{"role": "user", "content": [image]}]):
            with self.subTest(messages=str(messages)[:60]):
                self.refused("/v1/chat/completions", {"messages": messages, "max_tokens": 2})

    def test_prompt_longer_than_the_limit(self):
        for prompt in ([5] * 512, [5] * 100_000, "word " * 2000):
            error, _ = self.refused("/v1/completions", CANARY | {"prompt": prompt})
            self.assertEqual(error["code"], "context_length_exceeded")
            self.assertIn("512", error["message"])
        error, _ = self.refused("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 2000}]})
        self.assertEqual(error["code"], "context_length_exceeded")

    def test_bodies(self):
        for body in (b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}', b"\0",
                     b'{"prompt":"a","prompt":"b"}', b'{"prompt":"a","temperature":1e400}',
                     b'{"prompt":"a","temperature":NaN}',
                      b"[" * 1_000_000, b'{"a":' * 100_000, b'{"prompt":"a"}x'):
            with self.subTest(body=body[:30]):
                self.refused("/v1/completions", body)
        self.refused("/v1/completions", b'{"prompt":"' + b"x" * (17 << 20) + b'"}', status=413)
        self.refused("/v1/completions", b"x", status=415, headers={"Content-Type": "text/xml"})
        self.refused("/v1/completions", b"x", status=415, headers={"Content-Encoding": "gzip"})

    def test_routes(self):
        self.refused("/v1/nothing", None, status=404, method="GET")
        self.refused("/v1/completions", None, status=405, method="GET")
        self.refused("/v1/completions", CANARY | {"model": "another"}, status=404)
        self.refused("/v1/chat/completions", {"messages": HELLO, "response_format": {"type": "json_object"}})

    def test_full_queue(self):
        """Four run, four wait: the next one is told to come back, and is served when it does."""
        long = pinion_server.completion_bytes(CANARY | {"max_tokens": 480, "stream": True})
        held = []
        for _ in range(12):
            s = socket.create_connection(("127.0.0.1", self.server.port))
            s.sendall(long)
            held.append(s)
        statuses = []
        for s in held:
            s.settimeout(60)
            statuses.append(s.recv(12)[9:12])
        self.assertIn(b"200", statuses)
        self.assertIn(b"429", statuses)
        for s in held:
            s.close()
        self.server.wait_idle()

    def test_clients_that_leave(self):
        before = self.server.metrics()["requests_cancelled_total"]
        long = pinion_server.completion_bytes(CANARY | {"max_tokens": 500})
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", self.server.port)) as s:
                s.sendall(long)
                end = time.monotonic() + 30
                while self.server.metrics()["num_requests_running"] == 0 and time.monotonic() < end:
                    time.sleep(0.005)
        self.assertEqual(self.server.wait_idle(5)["requests_cancelled_total"], before + 3)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
