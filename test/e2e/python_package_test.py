#!/usr/bin/env python3
"""The Python package against the program: python3 python_package_test.py PINION MODEL PACKAGE_DIRECTORY."""
import asyncio
import sys
import tempfile
import unittest

import pinion_server

PINION, MODEL = sys.argv.pop(1), sys.argv.pop(1)
sys.path.insert(0, sys.argv.pop(1))
from pinion import LLM, BuildConfig, KvCacheConfig, PinionError, SamplingParams  # noqa: E402


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.engine = pinion_server.build(PINION, MODEL, cls.directory.name + "/engine")
        cls.llm = LLM(model=cls.engine, binary=PINION, kv_cache_config=KvCacheConfig(free_gpu_memory_fraction=0.1),
                      build_config=BuildConfig(max_batch_size=8, max_num_tokens=512))

    @classmethod
    def tearDownClass(cls):
        cls.llm.shutdown()
        cls.directory.cleanup()

    def test_several_prompts_keep_their_order_and_equal_each_alone(self):
        prompts = ["The capital of France is", "What is 2 + 2?", "Hello"]
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

    def test_the_guides_example(self):
        params = SamplingParams(temperature=0.8, top_p=0.95, seed=1, n=2, max_tokens=6, logprobs=0)
        output = self.llm.generate(["The future of AI is"], params)[0]
        self.assertEqual(len(output.outputs), 2)
        for choice in output.outputs:
            self.assertEqual(len(choice.logprobs), choice.length)
            self.assertAlmostEqual(choice.cumulative_logprob, sum(choice.logprobs))

    def test_streams_and_awaits(self):
        whole = self.llm.generate("What is 2 + 2?", SamplingParams(max_tokens=8)).outputs[0]
        pieces = list(self.llm.generate_async("What is 2 + 2?", SamplingParams(max_tokens=8), streaming=True))
        self.assertEqual(pieces[-1].outputs[0].text, whole.text)
        self.assertEqual(pieces[-1].outputs[0].token_ids, whole.token_ids)
        self.assertEqual("".join(p.outputs[0].text_diff for p in pieces), whole.text)

        async def ask():
            answers = await asyncio.gather(*[self.llm.generate_async("What is 2 + 2?", SamplingParams(max_tokens=8))
                                             for _ in range(4)])
            last = None
            async for last in self.llm.generate_async("What is 2 + 2?", SamplingParams(max_tokens=8), streaming=True):
                pass
            return [*answers, last]

        self.assertEqual({a.outputs[0].text for a in asyncio.run(ask())}, {whole.text})

    def test_chat(self):
        talk = [{"role": "user", "content": "What is 2 + 2?"}]
        one = self.llm.chat(talk, SamplingParams(max_tokens=8))
        self.assertEqual([o.outputs[0].text for o in self.llm.chat([talk, talk], SamplingParams(max_tokens=8))],
                         [one.outputs[0].text] * 2)

    def test_what_is_wrong_is_named(self):
        with self.assertRaisesRegex(ValueError, "temperature"):
            self.llm.generate("a", SamplingParams(temperature=-1))
        with self.assertRaisesRegex(ValueError, "use_beam_search"):
            self.llm.generate("a", SamplingParams(use_beam_search=True))
        with self.assertRaisesRegex(PinionError, "nothing-there"):
            LLM(model="/nothing-there", binary=PINION)
        with self.assertRaisesRegex(ValueError, "tensor_parallel_size"):
            LLM(model=self.engine, binary=PINION, tensor_parallel_size=2)


if __name__ == "__main__":
    unittest.main()
