#!/usr/bin/env python3
"""The Python package in this process: python3 python_package_test.py PINION MODEL WHEEL_DIRECTORY (of build_wheel)."""
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import pinion_server

PINION, MODEL = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, sys.argv.pop(1) + "/installed")
from pinion import (LLM, Aborted, BuildConfig, Exhausted, InvalidArgument, KvCacheConfig, PinionError,  # noqa: E402
                    SamplingParams)

QUESTION = "The capital of France is"
LONG = SamplingParams(max_tokens=2000, ignore_eos=True)


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.engine = pinion_server.build(PINION, MODEL, cls.directory.name + "/engine")
        cls.llm = LLM(model=cls.engine, kv_cache_config=KvCacheConfig(free_gpu_memory_fraction=0.1),
                      build_config=BuildConfig(max_batch_size=8, max_num_tokens=512))

    @classmethod
    def tearDownClass(cls):
        cls.llm.shutdown()
        cls.directory.cleanup()

    def until_idle(self):
        """Every block came back."""
        end = time.monotonic() + 10
        while (stats := self.llm.stats()).running + stats.waiting + stats.blocks_used:
            self.assertLess(time.monotonic(), end, (stats.running, stats.waiting, stats.blocks_used))
            time.sleep(0.01)

    def test_several_prompts_keep_their_order_and_equal_each_alone(self):
        prompts = [QUESTION, "What is 2 + 2?", "Hello"]
        outputs = self.llm.generate(prompts, SamplingParams(max_tokens=8))
        self.assertEqual([o.prompt for o in outputs], prompts)
        for prompt, output in zip(prompts, outputs):
            alone = self.llm.generate(prompt, SamplingParams(max_tokens=8))
            self.assertEqual(output.outputs[0].text, alone.outputs[0].text)
            self.assertEqual(output.outputs[0].token_ids, alone.outputs[0].token_ids)
            ids = self.llm.generate(output.prompt_token_ids, SamplingParams(max_tokens=8))
            self.assertEqual(ids.outputs[0].text, alone.outputs[0].text)
            self.assertTrue(output.finished)
            self.assertIn(output.outputs[0].finish_reason, ("stop", "length"))

    def test_the_text_is_the_programs(self):
        said = subprocess.run([PINION, "generate", self.engine, "--raw", "--prompt", QUESTION, "--temperature", "0",
                               "--max_tokens", "12"], capture_output=True, text=True, check=True, timeout=60).stdout
        self.assertEqual(self.llm.generate(QUESTION, SamplingParams(max_tokens=12)).outputs[0].text.strip(), said.strip())

    def test_the_guides_example(self):
        params = SamplingParams(temperature=0.8, top_p=0.95, seed=1, n=2, max_tokens=6, logprobs=2, prompt_logprobs=0)
        output = self.llm.generate(["The future of AI is"], params)[0]
        self.assertEqual(len(output.outputs), 2)
        self.assertNotEqual(output.outputs[0].token_ids, output.outputs[1].token_ids)
        self.assertEqual(len(output.prompt_logprobs), len(output.prompt_token_ids))
        for choice in output.outputs:
            self.assertEqual(len(choice.logprobs), choice.length)
            self.assertAlmostEqual(choice.cumulative_logprob, sum(choice.logprobs))
            for token, logprob, best in zip(choice.token_ids, choice.logprobs, choice.top_logprobs):
                self.assertGreaterEqual(max(best.values()), logprob - 1e-6)
                self.assertAlmostEqual(best.get(token, logprob), logprob, 5)

    def test_the_best_are_those_of_highest_mean_probability(self):
        def draw(**more):
            return self.llm.generate("Hello", SamplingParams(temperature=1.0, seed=3, max_tokens=5, **more)).outputs
        every = sorted(draw(n=4, logprobs=0), key=lambda o: -o.cumulative_logprob / o.length)
        best = draw(n=2, best_of=4)
        self.assertEqual([o.token_ids for o in best], [o.token_ids for o in every[:2]])
        self.assertEqual([o.index for o in best], [0, 1])

    def test_stops_and_bans(self):
        whole = self.llm.generate(QUESTION, SamplingParams(max_tokens=8)).outputs[0]
        last = whole.token_ids[2]
        ended = self.llm.generate(QUESTION, SamplingParams(max_tokens=8, stop_token_ids=[last])).outputs[0]
        self.assertEqual((ended.finish_reason, ended.stop_reason, ended.token_ids[-1]), ("stop", last, last))
        piece = whole.text.strip()[:4]
        ended = self.llm.generate(QUESTION, SamplingParams(max_tokens=8, stop=piece)).outputs[0]
        self.assertEqual((ended.finish_reason, ended.stop_reason), ("stop", piece))
        self.assertNotIn(piece, ended.text)
        banned = self.llm.generate(QUESTION, SamplingParams(max_tokens=8, logit_bias={whole.token_ids[0]: -100.0})).outputs[0]
        self.assertNotEqual(banned.token_ids[0], whole.token_ids[0])

    def test_streams_and_awaits(self):
        whole = self.llm.generate(QUESTION, SamplingParams(max_tokens=8)).outputs[0]
        pieces = list(self.llm.generate_async(QUESTION, SamplingParams(max_tokens=8), streaming=True))
        self.assertGreater(len(pieces), 1)
        self.assertEqual(pieces[-1].outputs[0].text, whole.text)
        self.assertEqual(pieces[-1].outputs[0].token_ids, whole.token_ids)
        self.assertEqual("".join(p.outputs[0].text_diff for p in pieces), whole.text)

        async def ask():
            answers = await asyncio.gather(*[self.llm.generate_async(QUESTION, SamplingParams(max_tokens=8))
                                             for _ in range(4)])
            last = None
            async for last in self.llm.generate_async(QUESTION, SamplingParams(max_tokens=8), streaming=True):
                pass
            return [*answers, last]

        self.assertEqual({a.outputs[0].text for a in asyncio.run(ask())}, {whole.text})

    def test_what_is_given_up_frees_its_blocks(self):
        request = self.llm.generate_async("Hello", LONG, streaming=True)
        next(iter(request))
        request.abort()
        with self.assertRaises(Aborted):
            request.result(30)

        async def lose_patience():
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(self.llm.generate_async("Hello", LONG), 0.05)
        asyncio.run(lose_patience())
        self.until_idle()

    def test_other_threads_run_meanwhile(self):
        turns, ended = 0, threading.Event()

        def count():
            nonlocal turns
            while not ended.wait(0.001):
                turns += 1
        counter = threading.Thread(target=count)
        counter.start()
        self.llm.generate("Hello", SamplingParams(max_tokens=400, ignore_eos=True))
        ended.set()
        counter.join()
        self.assertGreater(turns, 20)

    def test_many_threads_ask_at_once(self):
        wanted = self.llm.generate(QUESTION, SamplingParams(max_tokens=6)).outputs[0].token_ids
        got = []
        threads = [threading.Thread(target=lambda: got.append(
            self.llm.generate(QUESTION, SamplingParams(max_tokens=6)).outputs[0].token_ids)) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(got, [wanted] * 32)

    def test_chat(self):
        talk = [{"role": "user", "content": QUESTION}]
        one = self.llm.chat(talk, SamplingParams(max_tokens=8))
        parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
        self.assertEqual([o.outputs[0].text for o in self.llm.chat([talk, parts], SamplingParams(max_tokens=8))],
                         [one.outputs[0].text] * 2)
        self.assertIn(QUESTION, self.llm.decode(one.prompt_token_ids))
        with self.assertRaisesRegex(ValueError, r"messages\[0\].role"):
            self.llm.chat([{"role": "nobody", "content": "a"}])
        with self.assertRaisesRegex(ValueError, "image_url"):
            self.llm.chat([{"role": "user", "content": [{"type": "image_url"}]}])

    def test_what_is_wrong_is_named(self):
        for params, named in ((SamplingParams(temperature=-1), "temperature"), (SamplingParams(top_p=2.0), "top_p"),
                              (SamplingParams(max_tokens=10**6), "max_tokens"), (SamplingParams(n=0), "best_of"),
                              (SamplingParams(logit_bias={10**6: 1.0}), "logit_bias"),
                              (SamplingParams(top_k="many"), "top_k"), (SamplingParams(max_tokens=10**12), "max_tokens"),
                              (SamplingParams(use_beam_search=True), "use_beam_search")):
            with self.assertRaisesRegex(ValueError, named):
                self.llm.generate("a", params)
        with self.assertRaisesRegex(InvalidArgument, "outside the vocabulary .* use ids"):
            self.llm.generate([10**6])
        with self.assertRaisesRegex(PinionError, "nothing-there"):
            LLM(model="/nothing-there")
        for setting in ({"tensor_parallel_size": 2}, {"no_such_flag": 1}, {"threads": "all"}, {"max_batch_size": -1},
                        {"target": "abacus"}, {"kv_cache_free_gpu_memory_fraction": 7.0}):
            with self.assertRaisesRegex(ValueError, next(iter(setting))):
                LLM(model=self.engine, **setting)
        with LLM(model=self.engine, max_batch_size=1, max_queue=0, kv_cache_free_gpu_memory_fraction=0.1) as narrow:
            with self.assertRaisesRegex(Exhausted, "max_queue"):
                narrow.generate(["Hello"] * 8, LONG)

    def test_prefixes_come_back_from_the_host(self):
        small = KvCacheConfig(free_gpu_memory_fraction=0.1, max_tokens=256, host_cache_size=16 << 20)
        with LLM(model=self.engine, max_seq_len=256, kv_cache_config=small) as llm:
            prompts = [[5 + i] * 200 for i in range(4)]
            first = [llm.generate(p, SamplingParams(max_tokens=4)).outputs[0].token_ids for p in prompts]
            again = [llm.generate(p, SamplingParams(max_tokens=4)) for p in prompts]
            self.assertEqual([o.outputs[0].token_ids for o in again], first)
            self.assertGreater(min(o.cached_tokens for o in again), 0)
            self.assertGreater(llm.stats().host_hit_blocks, 0)
        with self.assertRaisesRegex(InvalidArgument, "no_prefix_reuse"):
            LLM(model=self.engine, kv_cache_config=KvCacheConfig(host_cache_size=1 << 20, enable_block_reuse=False))

    def test_a_directory_is_compiled_and_its_end_is_final(self):
        with LLM(model=MODEL, no_timing=True, kv_cache_free_gpu_memory_fraction=0.1) as llm:
            request = llm.generate_async("Hello", LONG)
        with self.assertRaises(Aborted):
            request.result(10)
        with self.assertRaisesRegex(PinionError, "shut down"):
            llm.generate("Hello")
        llm.shutdown()

    def test_a_forked_child_is_told(self):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self.llm.generate("Hello")
            except InvalidArgument as error:
                status = 0 if "spawn" in str(error) else 2
            finally:
                self.llm.shutdown()
                os._exit(status)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        self.assertTrue(self.llm.generate("Hello", SamplingParams(max_tokens=2)).finished)


if __name__ == "__main__":
    unittest.main()
