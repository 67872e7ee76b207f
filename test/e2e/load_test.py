#!/usr/bin/env python3
"""64 clients at once: every text equals the same request alone, with and without preemption; clients that go away free
what they held; nothing is leaked. Usage: load_test.py PINION CHECKPOINT. PINION_LOAD_SECONDS: how long each of the two
runs goes on (default 5)."""
import asyncio
import json
import os
import random
import sys
import time
import unittest

import pinion_server

PINION, CHECKPOINT = sys.argv[1:3]
SECONDS = float(os.environ.get("PINION_LOAD_SECONDS", "5"))
CLIENTS = 64
VOCAB = 4096  # of the demo model
PROMPTS, OUTPUTS = (100, 500), (64, 256)  # tokens
if os.environ.get("PINION_SANITIZER"):  # each token takes ten times as long; short requests show the same
    PROMPTS, OUTPUTS = (100, 250), (8, 40)


def make_requests(seed, count):
    """Greedy and sampled, of random lengths; some share a long beginning."""
    draw = random.Random(seed)
    shared = [draw.randrange(3, VOCAB) for _ in range(200)]
    requests = []
    for i in range(count):
        length = draw.randint(*PROMPTS)
        prompt = [draw.randrange(3, VOCAB) for _ in range(length)]
        if i % 4 == 0:
            prompt[:200] = shared[:min(200, length)]
        request = {"prompt": prompt, "max_tokens": draw.randint(*OUTPUTS), "ignore_eos": True, "temperature": 0}
        if i % 2:
            request |= {"temperature": 1, "seed": i, "top_p": 0.95}
        requests.append(request)
    return requests


async def post(port, request, leave_after=None):
    """Streams a completion: its text. With leave_after: closes the connection after so many events, returns None."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        writer.write(pinion_server.completion_bytes(request | {"stream": True}, "Connection: close"))
        await writer.drain()
        if leave_after == 0:
            return None
        status = await reader.readline()
        text, events, ended = "", 0, False
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
            events += 1
            if leave_after is not None and events >= leave_after:
                return None
        if not ended:
            raise AssertionError(f"the stream was cut after {events} events")
        return text
    finally:
        writer.close()


async def load(port, requests, seconds, leavers, clients=CLIENTS):
    """So many clients ask one request after the other for `seconds`, each at least once. Returns (request index, text)
    for every answer, and how many clients left early. Every `leavers`-th request is left in the middle."""
    end = time.monotonic() + seconds
    answers, left = [], 0
    turn = iter(range(1 << 30))

    async def client():
        nonlocal left
        while True:
            n = next(turn)
            index = n % len(requests)
            leave = n // leavers % 8 * 5 if n % leavers == leavers - 1 else None  # at once, or after up to 35 events
            text = await post(port, requests[index], leave)
            if text is None:
                left += 1
            else:
                answers.append((index, text))
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
        with pinion_server.Server(PINION, cls.engine, "--max_batch_size", CLIENTS, "--no_prefix_reuse") as server:
            cls.alone = [server.complete(**r)["choices"][0]["text"] for r in cls.requests]

    @classmethod
    def tearDownClass(cls):
        cls.scratch.__exit__(None, None, None)

    def run_load(self, *flags):
        """The metrics at the end."""
        with pinion_server.Server(PINION, self.engine, "--max_batch_size", CLIENTS, *flags) as server:
            start = time.monotonic()
            answers, left = asyncio.run(load(server.port, self.requests, SECONDS, leavers=5))
            took = time.monotonic() - start
            wrong = sorted({i for i, text in answers if text != self.alone[i]})
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
            self.assertEqual([i for i, text in again if text != self.alone[i]], [])
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


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
