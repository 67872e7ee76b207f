#!/usr/bin/env python3
"""The official tritonclient against `pinion serve`: python3 triton_client_test.py PINION MODEL."""
import sys
import tempfile
import unittest

import numpy
import pinion_server
import tritonclient.http
from tritonclient.utils import InferenceServerException

PINION, MODEL = sys.argv.pop(1), sys.argv.pop(1)
PROMPTS = ["The capital of France is", "What is 2 + 2?"]


def tensor(name, kind, values):
    out = tritonclient.http.InferInput(name, [len(values), 1], kind)
    dtype = {"BYTES": object, "INT32": numpy.int32, "BOOL": bool}[kind]
    out.set_data_from_numpy(numpy.array([[v] for v in values], dtype=dtype))
    return out


class Triton(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        engine = pinion_server.build(PINION, MODEL, cls.directory.name + "/engine")
        cls.server = pinion_server.Server(PINION, engine).__enter__()
        cls.client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{cls.server.port}")

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__(None, None, None)
        cls.directory.cleanup()

    def infer(self, prompts, *more, **options):
        inputs = [tensor("text_input", "BYTES", prompts), tensor("max_tokens", "INT32", [8] * len(prompts)), *more]
        return self.client.infer("ensemble", inputs, **options)

    def test_health_metadata_and_configuration(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        self.assertTrue(self.client.is_model_ready("ensemble", "1"))
        self.assertEqual(self.client.get_server_metadata()["name"], "pinion")
        self.assertEqual(self.client.get_model_metadata("ensemble")["inputs"][0]["name"], "text_input")
        self.assertGreater(self.client.get_model_config("ensemble")["max_batch_size"], 0)
        self.assertEqual(self.client.get_model_repository_index()[0]["state"], "READY")

    def test_a_batch_equals_its_rows_alone(self):
        together = self.infer(PROMPTS).as_numpy("text_output")
        self.assertEqual(together.shape, (2, 1))
        for prompt, text in zip(PROMPTS, together[:, 0]):
            alone = self.infer([prompt]).as_numpy("text_output")[0, 0]
            self.assertEqual(text, alone)
            self.assertTrue(text.decode().startswith(prompt))

    def test_json_equals_binary_and_the_prompt_can_be_left_out(self):
        wanted = [tritonclient.http.InferRequestedOutput("text_output", binary_data=False)]
        binary = self.infer(PROMPTS[:1]).as_numpy("text_output")[0, 0].decode()
        answer = self.infer(PROMPTS[:1], outputs=wanted, request_id="7").get_response()
        self.assertEqual((answer["id"], answer["outputs"][0]["data"]), ("7", [binary]))
        only = self.infer(PROMPTS[:1], tensor("exclude_input_in_output", "BOOL", [True]))
        self.assertEqual(PROMPTS[0] + only.as_numpy("text_output")[0, 0].decode(), binary)

    def test_log_probabilities(self):
        answer = self.infer(PROMPTS, tensor("return_log_probs", "BOOL", [True, True]))
        scores = answer.as_numpy("output_log_probs")
        self.assertTrue((scores <= 0).all())
        numpy.testing.assert_allclose(scores.sum(axis=2), answer.as_numpy("cum_log_probs"), rtol=1e-4)

    def test_statistics_count(self):
        count = lambda: self.client.get_inference_statistics("ensemble")["model_stats"][0]["inference_count"]
        before = count()
        self.infer(PROMPTS)
        self.assertEqual(count(), before + 2)

    def test_what_is_wrong_is_named(self):
        with self.assertRaisesRegex(InferenceServerException, "max_tokens"):
            self.client.infer("ensemble", [tensor("text_input", "BYTES", PROMPTS)])
        with self.assertRaisesRegex(InferenceServerException, "beam_width"):
            self.infer(PROMPTS[:1], tensor("beam_width", "INT32", [4]))
        with self.assertRaisesRegex(InferenceServerException, "not allowed"):
            self.client.load_model("other")


if __name__ == "__main__":
    unittest.main()
