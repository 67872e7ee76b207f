#!/usr/bin/env python3
"""Memory and readiness of `pinion serve` on half a gigabyte of weights: the peak of its resident memory is what
`pinion plan` said, it is ready only after warm-up, and the first request is as fast as the later ones.
Usage: resources_test.py PINION TOKENIZER_DIR"""
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import unittest

import pinion_server

PINION, TOKENIZER = sys.argv[1:3]
SANITIZED = bool(os.environ.get("PINION_SANITIZER"))  # memory and time are those of the sanitizer then
# Most weights lie in the embedding and the head, so that half a gigabyte of them costs little arithmetic.
CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 65536, "hidden_size": 2048, "intermediate_size": 2048,
          "num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
          "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "tie_word_embeddings": False}
if SANITIZED:
    CONFIG["vocab_size"] = 8192
LIMITS = ("--max_batch_size", 4, "--max_num_tokens", 256, "--kv_cache_max_tokens", 4096, "--tokenizer", TOKENIZER)


def resident(pid, field):
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")


def prompt(seed, length):
    return [3 + (seed * 7919 + i * 104729) % 4000 for i in range(length)]


class Resources(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = pinion_server.scratch()
        path = cls.scratch.__enter__()
        (path / "config.json").write_text(json.dumps(CONFIG))
        cls.engine = pinion_server.build(PINION, path / "config.json", path / "engine", "--load_format", "dummy")

    @classmethod
    def tearDownClass(cls):
        cls.scratch.__exit__(None, None, None)

    def server(self, **options):
        return pinion_server.Server(PINION, self.engine, *LIMITS, **options)

    @unittest.skipIf(SANITIZED, "a sanitizer's own memory is far larger")
    def test_memory_is_what_was_planned(self):
        command = [PINION, "plan", self.engine, *map(str, LIMITS), "--json"]
        planned = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        plan = json.loads(planned.stdout)["bytes"]
        with self.server() as server:
            threads = [threading.Thread(target=server.complete, kwargs={
                "prompt": prompt(i, 1000), "max_tokens": 20, "ignore_eos": True}) for i in range(4)]  # fills the pool
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            peak = resident(server.process.pid, "VmHWM")
        mib = 1 << 20
        print(f"planned {plan['total'] / mib:.0f} MiB, peak {peak / mib:.0f} MiB "
              f"(weights {plan['weights'] / mib:.0f}, KV {plan['kv'] / mib:.0f}, arena {plan['arena'] / mib:.0f}, "
              f"workspace {plan['workspace'] / mib:.0f}, process {plan['overhead'] / mib:.0f})", flush=True)
        self.assertGreater(plan["weights"], 500 * mib)
        self.assertLessEqual(peak, plan["weights"] + plan["kv"] + plan["arena"] + plan["workspace"] + 200 * mib)
        self.assertLessEqual(abs(plan["total"] - peak), 0.05 * peak)

    def test_ready_only_after_warm_up(self):
        """Between listening and readiness requests are refused with 503; then the first one is answered."""
        short = {"prompt": [5], "max_tokens": 1}
        with self.server(wait=False) as server:
            seen = []  # what a request got, and what the server said of itself after that
            while not seen or seen[-1][1] != 200:
                port = server.port or listening_port(server.process.pid)
                try:
                    if port:
                        server.port = port
                        answered = server.request("POST", "/v1/completions", short)[0]
                        seen.append((answered, server.request("GET", "/health/ready")[0]))
                        self.assertEqual(server.request("GET", "/health")[0], 200)  # alive, though not ready
                except OSError:
                    pass
                self.assertIsNone(server.process.poll(), server.log)
                time.sleep(0.002)
            # Readiness may come between a refusal and the question, never the other way round.
            self.assertLessEqual(set(seen), {(503, 503), (503, 200), (200, 200)})
            self.assertIn(503, [answered for answered, _ in seen])
            self.assertEqual(server.request("POST", "/v1/completions", short)[0], 200)
            server.wait_until_ready()

    @unittest.skipIf(SANITIZED, "a sanitizer's first touches are slow")
    def test_first_request_is_as_fast_as_later_ones(self):
        """A cost that only the first request pays shows in every start; a disturbance from outside does not."""
        ratios = []
        for start in range(5):
            with self.server() as server:
                times = []
                for i in range(8):
                    begin = time.perf_counter()
                    server.complete(prompt=prompt(100 * start + i, 100), max_tokens=12, ignore_eos=True, temperature=0)
                    times.append(time.perf_counter() - begin)
            ratios.append(times[0] / statistics.median(times[1:]))
            if ratios[-1] <= 1.2:
                break
        print("first request over the steady time:", *(f"{r:.2f}" for r in ratios), flush=True)
        self.assertLessEqual(min(ratios), 1.2)


def listening_port(pid):
    """The port that the process listens on, from the kernel's table: it is announced only when the server is ready."""
    try:
        inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        with open(f"/proc/{pid}/net/tcp") as table:
            for line in table:
                part = line.split()
                if part[3] == "0A" and f"socket:[{part[9]}]" in inodes:
                    return int(part[1].split(":")[1], 16)
    except OSError:
        pass
    return None


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
