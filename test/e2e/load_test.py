#!/usr/bin/env python3
"""64 and 256 clients at once: every answer has the tokens of the same request alone, with and without preemption;
clients that go away free what they held; nothing is leaked. 2,000 idle connections are held; SIGTERM finishes what was
accepted. Usage: load_test.py PINION CHECKPOINT. PINION_LOAD_SECONDS: how long each run goes on (default 5)."""
import asyncio
import json
import os
import random
import resource
import signal
import socket
import sys
import time
import unittest

import pinion_server

PINION, CHECKPOINT = sys.argv[1:3]
SECONDS = float(os.environ.get("PINION_LOAD_SECONDS", "5"))
CLIENTS, MANY, IDLE = 64, 256, 2000
VOCAB = 4096  # of the demo model
PROMPTS, OUTPUTS = (100, 500), (64, 256)  # tokens
if os.environ.get("PINION_SANITIZER"):  # each token takes ten times as long; short requests show the same
    PROMPTS, OUTPUTS = (100, 250), (8, 40)
    MANY, IDLE = 96, 500


def make_requests(seed, count, prompts=PROMPTS, outputs=OUTPUTS):
    """Greedy and sampled, of random lengths; some share a long beginning."""
    draw = random.Random(seed)
    shared = [draw.randrange(3, VOCAB) for _ in range(200)]
    requests = []
    for i in range(count):
        length = draw.randint(*prompts)
        prompt = [draw.randrange(3, VOCAB) for _ in range(length)]
        if i % 4 == 0:
            prompt[:200] = shared[:min(200, length)]
        request = {"prompt": prompt, "max_tokens": draw.randint(*outputs), "ignore_eos": True, "temperature": 0,
                   "return_token_ids": True}
        if i % 2:
            request |= {"temperature": 1, "seed": i, "top_p": 0.95}
        requests.append(request)
    return requests


def answer_of(server, request):
    """The text and the tokens of the request alone."""
    choice = server.complete(**request)["choices"][0]
    return choice["text"], choice["token_ids"]


async def post(port, request, leave_after=None, begun=None):
    """Streams a completion: its text and tokens. With leave_after: closes the connection after so many events, returns
    None. begun() is called at the first event."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        writer.write(pinion_server.completion_bytes(request | {"stream": True}, "Connection: close"))
        await writer.drain()
        if leave_after == 0:
            return None
        status = await reader.readline()
        text, tokens, events, ended = "", [], 0, False
        if b" 200 " not in status:
            raise AssertionError(f"{status!r}: {(await reader.read())!r}")
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise AssertionError(f"the stream ended with {event}")
            text += event["choices"][0]["text"]
            tokens += event["choices"][0].get("token_ids", [])
            if begun and not events:
                begun()
            events += 1
            if leave_after is not None and events >= leave_after:
                return None
        if not ended:
            raise AssertionError(f"the stream was cut after {events} events")
        if len(tokens) != request["max_tokens"]:  # ignore_eos: lost or sent twice
            raise AssertionError(f"{len(tokens)} tokens of {request['max_tokens']}")
        return text, tokens
    finally:
        writer.close()


async def load(port, requests, seconds, leavers, clients=CLIENTS):
    """So many clients ask one request after the other for `seconds`, each at least once. Returns (request index, answer)
    for every one, and how many clients left early. Every `leavers`-th request is left in the middle."""
    end = time.monotonic() + seconds
    answers, left = [], 0
    turn = iter(range(1 << 30))

    async def client():
        nonlocal left
        while True:
            n = next(turn)
            index = n % len(requests)
            leave = n // leavers % 8 * 5 if n % leavers == leavers - 1 else None  # at once, or after up to 35 events
            answer = await post(port, requests[index], leave)
            if answer is None:
                left += 1
            else:
                answers.append((index, answer))
            if time.monotonic() > end:
                return

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers, left


class Load(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = pinion_server.scratch()
        cls.engine = pinion_server.build(PINION, CHECKPOINT, cls.scratch.__enter__() / "engine")
        cls.requests = make_requests(seed=5, count=8 if SECONDS < 30 else 64)
        cls.short = make_requests(seed=6, count=24, prompts=(8, 48), outputs=(8, 24))
        with pinion_server.Server(PINION, cls.engine, "--max_batch_size", CLIENTS, "--no_prefix_reuse") as server:
            cls.alone = [answer_of(server, r) for r in cls.requests]
            cls.short_alone = [answer_of(server, r) for r in cls.short]

    @classmethod
    def tearDownClass(cls):
        cls.scratch.__exit__(None, None, None)

    def run_load(self, *flags):
        """The metrics at the end."""
        with pinion_server.Server(PINION, self.engine, "--max_batch_size", CLIENTS, *flags) as server:
            start = time.monotonic()
            answers, left = asyncio.run(load(server.port, self.requests, SECONDS, leavers=5))
            took = time.monotonic() - start
            wrong = sorted({i for i, answer in answers if answer != self.alone[i]})
            metrics = server.wait_idle()
            print(f"{len(answers)} answers and {left} clients that left in {took:.1f} s, "
                  f"{metrics['num_preemptions_total']:.0f} preemptions, "
                  f"{metrics['generation_tokens_total'] / took:.0f} tokens/s", flush=True)
            self.assertEqual(wrong, [], f"{len(wrong)} of {len(self.requests)} requests got another text than alone")
            self.assertGreaterEqual(len(answers), CLIENTS // 2)
            self.assertGreater(left, 0)
            self.assertEqual(metrics["kv_cache_usage_perc"], 0, "blocks are held though nothing runs")
            self.assertEqual(metrics["requests_failed_total"], 0)
            self.assertGreater(metrics["requests_cancelled_total"], 0)
            # A pool that leaked has less room: the whole of it serves all of them again.
            again = asyncio.run(load(server.port, self.requests, 0, leavers=1 << 30, clients=8))[0]
            self.assertEqual(len(again), 8)
            self.assertEqual([i for i, answer in again if answer != self.alone[i]], [])
            self.assertEqual(server.wait_idle()["kv_cache_usage_perc"], 0)
            return metrics

    def test_texts_equal_those_alone(self):
        metrics = self.run_load()
        self.assertEqual(metrics["num_preemptions_total"], 0)
        self.assertGreater(metrics["prompt_tokens_cached_total"], 0)  # the shared beginnings were found

    def test_preemption_changes_no_text(self):
        metrics = self.run_load("--kv_cache_max_tokens", 3840)  # for 64 sequences of up to 756 tokens
        self.assertEqual(metrics["kv_blocks_total"], 60)
        self.assertGreater(metrics["num_preemptions_total"], 0)

    @unittest.skipIf(SECONDS < 30, "in long runs: PINION_LOAD_SECONDS=60")
    def test_pool_that_never_preempts(self):
        metrics = self.run_load("--kv_cache_max_tokens", 3840, "--batch_scheduler_policy", "guaranteed_no_evict")
        self.assertEqual(metrics["num_preemptions_total"], 0)

    def test_256_streams(self):
        with pinion_server.Server(PINION, self.engine, "--max_batch_size", MANY) as server:
            start = time.monotonic()
            answers, _ = asyncio.run(load(server.port, self.short, SECONDS, leavers=1 << 30, clients=MANY))
            took = time.monotonic() - start
            metrics = server.wait_idle()
            print(f"{MANY} streams: {len(answers)} answers in {took:.1f} s, "
                  f"{metrics['generation_tokens_total'] / took:.0f} tokens/s", flush=True)
            self.assertEqual(sorted({i for i, answer in answers if answer != self.short_alone[i]}), [])
            self.assertGreaterEqual(len(answers), MANY)
            self.assertEqual((metrics["requests_failed_total"], metrics["requests_cancelled_total"]), (0, 0))
            self.assertEqual(metrics["kv_cache_usage_perc"], 0)

    def test_2000_idle_connections(self):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard < IDLE + 200:
            self.skipTest(f"only {hard} descriptors may be open here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # as most systems start programs: serve raises it
        ask = b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n"
        with pinion_server.Server(PINION, self.engine) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, IDLE + 200), hard))
            idle = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(IDLE)]
            try:
                for _ in range(2):  # the second time each is asked that has idled
                    for connection in idle:
                        connection.sendall(ask)
                    for connection in idle:
                        self.assertTrue(connection.recv(4096).startswith(b"HTTP/1.1 200 "))
                    self.assertEqual(answer_of(server, self.short[0]), self.short_alone[0])
                self.assertGreaterEqual(server.metrics()["http_connections"], IDLE)
            finally:
                for connection in idle:
                    connection.close()

    def test_sigterm_finishes_what_was_accepted(self):
        with pinion_server.Server(PINION, self.engine, "--max_batch_size", 16) as server:  # half of them wait

            async def run():
                begun = asyncio.Event()
                streams = [asyncio.create_task(post(server.port, r, begun=begun.set)) for r in self.short] + [
                    asyncio.create_task(post(server.port, r)) for r in self.requests[:8]]
                await begun.wait()
                while server.metrics()["num_requests_running"] + server.metrics()["num_requests_waiting"] < 8:
                    await asyncio.sleep(0.005)
                server.process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*streams, return_exceptions=True)

            answers = asyncio.run(run())
            self.assertEqual(server.process.wait(60), 0)
            whole = [a for a in answers if not isinstance(a, BaseException)]
            told = [a for a in answers if isinstance(a, AssertionError) and " 503 " in str(a)]  # came after the signal
            self.assertEqual(len(whole) + len(told), len(answers), answers)
            self.assertGreaterEqual(len(whole), 8)
            for answer, alone in zip(answers, self.short_alone + self.alone[:8]):
                if not isinstance(answer, BaseException):
                    self.assertEqual(answer, alone)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
