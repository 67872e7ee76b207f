#!/usr/bin/env python3
"""The official openai client against a running server: python3 openai_client_test.py [http://127.0.0.1:8000] [--key K].

With --serve PINION MODEL it starts `PINION serve MODEL` on a free port itself, and ends it with SIGTERM.
"""
import argparse
import asyncio
import sys
import unittest

import openai
import pinion_server

BASE = "http://127.0.0.1:8000"
KEY = "none"


def client(**options):
    return openai.OpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0, timeout=120, **options)


def hello(words="Hello"):
    return [{"role": "user", "content": words}]


class Embeddings(unittest.TestCase):
    def setUp(self):
        self.client = client()
        self.model = self.client.models.list().data[0].id

    def embed(self, text, **options):
        answer = self.client.embeddings.create(model=self.model, input=text, **options)
        return [row.embedding for row in answer.data]

    def test_vectors_have_length_one_and_tell_texts_apart(self):
        texts = ["The capital of France is Paris.", "What is 2 + 2?"]
        for pooling in ("last", "mean"):
            together = self.embed(texts, extra_body={"pooling": pooling})
            for text, vector in zip(texts, together):
                self.assertAlmostEqual(sum(v * v for v in vector), 1, places=4)
                alone = self.embed(text, extra_body={"pooling": pooling})[0]
                self.assertLess(max(abs(a - b) for a, b in zip(vector, alone)), 1e-4)
            self.assertLess(sum(a * b for a, b in zip(*together)), 0.999)

    def test_encodings_say_the_same(self):
        # the client asks for base64 by itself and decodes it
        for a, b in zip(self.embed("one")[0], self.embed("one", encoding_format="float")[0]):
            self.assertAlmostEqual(a, b, places=6)

    def test_usage_and_what_is_refused(self):
        answer = self.client.embeddings.create(model=self.model, input=[[5, 6, 7], [8]])
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.total_tokens), (4, 4))
        with self.assertRaisesRegex(openai.BadRequestError, "dimensions"):
            self.embed("one", dimensions=8)


class Chat(unittest.TestCase):
    def setUp(self):
        self.client = client()
        self.model = self.client.models.list().data[0].id

    def chat(self, **options):
        return self.client.chat.completions.create(**({"model": self.model, "messages": hello(), "max_tokens": 8,
                                                       "temperature": 0} | options))

    def test_answer(self):
        answer = self.chat()
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertGreater(answer.usage.prompt_tokens, 0)
        self.assertLessEqual(answer.usage.completion_tokens, 8)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_stream_equals_answer(self):
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], whole.choices[0].finish_reason)
        self.assertEqual(len({c.id for c in chunks}), 1)

    def test_choices_and_logprobs(self):
        answer = self.chat(n=2, logprobs=True, top_logprobs=3)
        self.assertEqual([c.index for c in answer.choices], [0, 1])
        for choice in answer.choices:
            for token in choice.logprobs.content:
                self.assertLessEqual(token.logprob, 0)
                self.assertEqual(len(token.top_logprobs), 3)
                self.assertAlmostEqual(token.top_logprobs[0].logprob, token.logprob, places=4)  # greedy

    def test_seed_repeats(self):
        first, second = (self.chat(temperature=1, seed=7, max_tokens=16) for _ in range(2))
        self.assertEqual(first.choices[0].message.content, second.choices[0].message.content)

    def test_stop(self):
        whole = self.chat(max_tokens=32).choices[0].message.content
        if len(whole) < 4:
            self.skipTest("the model says too little")
        cut = whole[2]
        answer = self.chat(max_tokens=32, stop=[cut]).choices[0]
        self.assertEqual(answer.message.content, whole[:whole.index(cut)])
        self.assertEqual(answer.finish_reason, "stop")

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as bad:
            self.chat(temperature=-1)
        self.assertEqual(bad.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as bad:
            self.chat(messages=hello("word " * 200000), max_tokens=1)
        self.assertEqual(bad.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError) as missing:
            self.client.chat.completions.create(model="no-such-model", messages=hello())
        self.assertEqual(missing.exception.code, "model_not_found")

    def test_leaving_a_stream_early(self):
        stream = self.chat(stream=True, max_tokens=64)
        next(iter(stream))
        stream.close()
        self.assertTrue(self.chat().choices)

    def test_many_at_once(self):
        async def ask():
            many = openai.AsyncOpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0, timeout=300)
            jobs = [many.chat.completions.create(model=self.model, messages=hello(), max_tokens=8, temperature=0)
                    for _ in range(16)]
            return [a.choices[0].message.content for a in await asyncio.gather(*jobs)]

        self.assertEqual(sum(bool(text) for text in asyncio.run(ask())), 16)


class Completions(unittest.TestCase):
    def setUp(self):
        self.client = client()
        self.model = self.client.models.list().data[0].id

    def complete(self, prompt, **options):
        return self.client.completions.create(**({"model": self.model, "prompt": prompt, "max_tokens": 6,
                                                  "temperature": 0} | options))

    def test_prompts(self):
        one = self.complete("The sea")
        two = self.complete(["The sea", "A tree"])
        self.assertEqual([c.index for c in two.choices], [0, 1])
        self.assertEqual(two.choices[0].text, one.choices[0].text)
        self.assertTrue(self.complete([5, 6, 7]).choices)
        self.assertEqual(len(self.complete([[5, 6], [7]]).choices), 2)

    def test_echo_and_logprobs(self):
        plain = self.complete("The sea")
        echo = self.complete("The sea", echo=True, logprobs=2)
        self.assertEqual(echo.choices[0].text, "The sea" + plain.choices[0].text)
        logprobs = echo.choices[0].logprobs
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertEqual(len(logprobs.tokens), len(logprobs.token_logprobs))
        self.assertEqual(len(logprobs.tokens), echo.usage.total_tokens)
        scored = self.complete("The sea", echo=True, logprobs=0, max_tokens=0)
        self.assertEqual(scored.usage.completion_tokens, 0)

    def test_stream(self):
        text = "".join(c.choices[0].text for c in self.complete("The sea", stream=True))
        self.assertEqual(text, self.complete("The sea").choices[0].text)


def main():
    global BASE, KEY
    parser = argparse.ArgumentParser()
    parser.add_argument("url", nargs="?", default=BASE)
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--serve", nargs=2, metavar=("PINION", "MODEL"))
    args = parser.parse_args()
    BASE, KEY = args.url.rstrip("/"), args.key
    if not args.serve:
        return run()
    with pinion_server.Server(*args.serve) as server:  # must end with status 0 on SIGTERM
        BASE = f"http://127.0.0.1:{server.port}"
        return run()


def run():
    result = unittest.main(argv=sys.argv[:1], exit=False, verbosity=2).result
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main())
