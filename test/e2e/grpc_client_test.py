#!/usr/bin/env python3
"""The official tritonclient over gRPC, and bare grpcio, against `pinion serve`: grpc_client_test.py PINION MODEL."""
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import grpc
import numpy
import pinion_server
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

PINION, MODEL = sys.argv.pop(1), sys.argv.pop(1)
PROMPTS = ["The capital of France is", "What is 2 + 2?"]
SERVICE = "/inference.GRPCInferenceService/"
LONG = 400


def tensor(name, kind, values):
    out = tritonclient.grpc.InferInput(name, [len(values), 1], kind)
    dtype = {"BYTES": object, "INT32": numpy.int32, "BOOL": bool}[kind]
    out.set_data_from_numpy(numpy.array([[v] for v in values], dtype=dtype))
    return out


def inputs(prompts, *more, tokens=8):
    return [tensor("text_input", "BYTES", prompts), tensor("max_tokens", "INT32", [tokens] * len(prompts)), *more]


STREAM = lambda: tensor("stream", "BOOL", [True])


class Grpc(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.engine = pinion_server.build(PINION, MODEL, cls.directory.name + "/engine")
        cls.server = pinion_server.Server(PINION, cls.engine, "--grpc_port", 0, "--max_body_bytes", 1 << 20).__enter__()
        cls.address = f"127.0.0.1:{cls.server.grpc_port}"
        cls.client = tritonclient.grpc.InferenceServerClient(cls.address)
        cls.channel = grpc.insecure_channel(cls.address)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.channel.close()
        cls.server.__exit__(None, None, None)
        cls.directory.cleanup()

    def stream(self, *requests, client=None, headers=None):
        """What the requests' stream brings, by id: [(text, final)]; an error's text in the place of a text."""
        client = client or self.client
        answers = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        for i, (prompt, fields) in enumerate(requests):
            client.async_stream_infer("ensemble", request_id=str(i), **({"inputs": inputs([prompt], STREAM())} | fields))
        out = {str(i): [] for i in range(len(requests))}
        while not all(texts and texts[-1][1] for texts in out.values()):
            result, error = answers.get(timeout=60)
            if error is not None:
                out["0"].append((error.message(), True))
                continue
            response = result.get_response()
            text = result.as_numpy("text_output")
            out[response.id].append((None if text is None else text[0, 0].decode(),
                                     response.parameters["triton_final_response"].bool_param))
        client.stop_stream()
        return out

    def bare(self, method, message=b"", timeout=10):
        return self.channel.unary_unary(method)(message, timeout=timeout)

    def refused(self, code, call, *args, **options):
        with self.assertRaises(grpc.RpcError) as caught:
            call(*args, **options)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return caught.exception.details()

    def test_health_metadata_and_configuration(self):
        self.assertTrue(self.client.is_server_live())
        self.assertTrue(self.client.is_server_ready())
        self.assertTrue(self.client.is_model_ready("ensemble", "1"))
        self.assertEqual(self.client.get_server_metadata().name, "pinion")
        metadata = self.client.get_model_metadata("ensemble")
        self.assertEqual((metadata.inputs[0].name, metadata.inputs[0].datatype, list(metadata.inputs[0].shape)),
                         ("text_input", "BYTES", [-1, 1]))
        config = self.client.get_model_config("ensemble").config
        self.assertTrue(config.model_transaction_policy.decoupled)
        self.assertEqual((config.input[0].name, config.input[0].data_type), ("text_input", 13))
        self.assertEqual(self.client.get_model_repository_index().models[0].state, "READY")
        self.assertEqual(self.bare("/grpc.health.v1.Health/Check"), b"\x08\x01")

    def test_a_batch_equals_its_rows_alone_and_rest(self):
        together = self.client.infer("ensemble", inputs(PROMPTS), request_id="7")
        self.assertEqual(together.get_response().id, "7")
        texts = together.as_numpy("text_output")
        self.assertEqual(texts.shape, (2, 1))
        for prompt, text in zip(PROMPTS, texts[:, 0]):
            self.assertEqual(text, self.client.infer("ensemble", inputs([prompt])).as_numpy("text_output")[0, 0])
            status, _, rest = self.server.request("POST", "/v2/models/ensemble/generate",
                                                  {"text_input": prompt, "max_tokens": 8})
            self.assertEqual(status, 200, rest)
            self.assertEqual(text.decode(), json.loads(rest)["text_output"])

    def test_typed_contents_equal_raw_ones(self):
        request = tritonclient.grpc.service_pb2.ModelInferRequest(model_name="ensemble")
        for name, datatype in (("text_input", "BYTES"), ("max_tokens", "INT32")):
            request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        request.inputs[0].contents.bytes_contents.append(PROMPTS[0].encode())
        request.inputs[1].contents.int_contents.append(8)
        answer = tritonclient.grpc.service_pb2.ModelInferResponse.FromString(
            self.bare(SERVICE + "ModelInfer", request.SerializeToString(), 60))
        raw = self.client.infer("ensemble", inputs(PROMPTS[:1])).get_response()
        self.assertEqual(list(answer.raw_output_contents), list(raw.raw_output_contents))

    def test_streams_of_one_call_are_answered_apart(self):
        whole = [self.client.infer("ensemble", inputs([p], tensor("exclude_input_in_output", "BOOL", [True])))
                 .as_numpy("text_output")[0, 0].decode() for p in PROMPTS]
        answers = self.stream(*((p, {}) for p in PROMPTS))
        for i, text in enumerate(whole):
            pieces = answers[str(i)]
            self.assertEqual("".join(t for t, _ in pieces), text)
            self.assertEqual([final for _, final in pieces], [False] * (len(pieces) - 1) + [True])
        self.assertGreater(len(answers["0"]), 1)

    def test_more_requests_than_a_stream_has_under_way(self):
        answers = self.stream(*((PROMPTS[0], {}) for _ in range(100)))
        texts = {"".join(text for text, _ in pieces) for pieces in answers.values()}
        self.assertEqual((len(answers), len(texts)), (100, 1))

    def test_an_error_of_a_stream_leaves_the_stream(self):
        answers = self.stream((PROMPTS[0], {"inputs": [tensor("text_input", "BYTES", PROMPTS[:1])]}), (PROMPTS[0], {}))
        self.assertIn("max_tokens", answers["0"][0][0])
        self.assertGreater(len(answers["1"]), 1)

    def test_statistics_count(self):
        count = lambda: self.client.get_inference_statistics("ensemble").model_stats[0].inference_count
        before = count()
        self.client.infer("ensemble", inputs(PROMPTS))
        self.assertEqual(count(), before + 2)

    def test_what_is_wrong_is_named_with_its_status(self):
        with self.assertRaisesRegex(InferenceServerException, "max_tokens") as caught:
            self.client.infer("ensemble", [tensor("text_input", "BYTES", PROMPTS)])
        self.assertIn("INVALID_ARGUMENT", caught.exception.status())
        with self.assertRaisesRegex(InferenceServerException, "beam_width"):
            self.client.infer("ensemble", inputs(PROMPTS[:1], tensor("beam_width", "INT32", [4])))
        with self.assertRaisesRegex(InferenceServerException, "ModelStreamInfer"):
            self.client.infer("ensemble", inputs(PROMPTS[:1], STREAM()))
        with self.assertRaisesRegex(InferenceServerException, "not allowed") as caught:
            self.client.load_model("other")
        self.assertIn("UNAVAILABLE", caught.exception.status())
        with self.assertRaises(InferenceServerException) as caught:
            self.client.get_model_metadata("ensemble", "3")
        self.assertIn("NOT_FOUND", caught.exception.status())
        for method, named in (("SystemSharedMemoryStatus", "system shared memory"), ("LogSettings", "log settings"),
                              ("CudaSharedMemoryRegister", "CUDA shared memory"), ("TraceSetting", "trace settings"),
                              ("Nothing", "Nothing")):
            self.assertIn(named, self.refused(grpc.StatusCode.UNIMPLEMENTED, self.bare, SERVICE + method))

    def test_damaged_and_large_messages(self):
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, self.bare, SERVICE + "ModelInfer", b"\xff\xff\xff")
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, self.bare, SERVICE + "ModelReady", b"\x0a\x7f")
        self.refused(grpc.StatusCode.RESOURCE_EXHAUSTED, self.bare, SERVICE + "ModelInfer", bytes(2 << 20))
        self.assertTrue(self.client.is_server_live())

    def test_a_deadline_cancels(self):
        started = time.monotonic()
        with self.assertRaisesRegex(InferenceServerException, "Deadline"):
            self.client.infer("ensemble", inputs(PROMPTS[:1], tensor("end_id", "INT32", [-1]), tokens=LONG),
                              client_timeout=0.05)
        self.assertLess(time.monotonic() - started, 5)
        self.server.wait_idle()

    def test_a_client_that_is_killed_frees_its_blocks(self):
        script = ("import sys, tritonclient.grpc as t, numpy as n, time\n"
                  "c = t.InferenceServerClient(sys.argv[1])\n"
                  "def one(name, kind, dtype, value):\n"
                  "    i = t.InferInput(name, [1, 1], kind); i.set_data_from_numpy(n.array([[value]], dtype)); return i\n"
                  "c.start_stream(lambda result, error: print('piece', flush=True))\n"
                  "c.async_stream_infer('ensemble', [one('text_input', 'BYTES', object, 'a'), one('stream', 'BOOL', bool, True),\n"
                  "    one('max_tokens', 'INT32', n.int32, int(sys.argv[2])), one('end_id', 'INT32', n.int32, -1)])\n"
                  "time.sleep(60)\n")
        client = subprocess.Popen([sys.executable, "-c", script, self.address, str(LONG)], stdout=subprocess.PIPE)
        client.stdout.readline()
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        client.stdout.close()
        metrics = self.server.wait_idle()
        self.assertEqual(metrics["kv_cache_usage_perc"], 0)

    def test_keys_are_asked_for(self):
        with pinion_server.Server(PINION, self.engine, "--grpc_port", 0, "--api_key", "secret") as server:
            with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
                self.assertTrue(client.is_server_ready())
                for call in (lambda **o: client.get_model_metadata("m", **o),
                             lambda **o: client.infer("m", inputs(PROMPTS[:1]), **o)):
                    with self.assertRaises(InferenceServerException) as caught:
                        call()
                    self.assertIn("UNAUTHENTICATED", caught.exception.status())
                    call(headers={"authorization": "Bearer secret"})

    def test_tls_with_the_certificate_of_https(self):
        certificate, key = map(str, pinion_server.certificate(self.directory.name))
        with pinion_server.Server(PINION, self.engine, "--grpc_port", 0, "--api_key", "secret", "--tls_certificate",
                                  certificate, "--tls_key", key) as server:
            address, headers = f"127.0.0.1:{server.grpc_port}", {"authorization": "Bearer secret"}
            wanted = self.client.infer("ensemble", inputs(PROMPTS[:1])).as_numpy("text_output")[0, 0]
            with tritonclient.grpc.InferenceServerClient(address, ssl=True, root_certificates=certificate) as client:
                self.assertTrue(client.is_server_ready())
                with self.assertRaises(InferenceServerException) as caught:
                    client.infer("ensemble", inputs(PROMPTS[:1]))
                self.assertIn("UNAUTHENTICATED", caught.exception.status())
                answer = client.infer("ensemble", inputs(PROMPTS[:1]), headers=headers)
                self.assertEqual(answer.as_numpy("text_output")[0, 0], wanted)
                answers = self.stream((PROMPTS[0], {}), client=client, headers=headers)
                self.assertEqual(PROMPTS[0] + "".join(text for text, _ in answers["0"]), wanted.decode())
            for options in ({}, {"ssl": True}):  # without TLS, and without the authority
                with tritonclient.grpc.InferenceServerClient(address, **options) as client:
                    with self.assertRaises(InferenceServerException) as caught:
                        client.infer("ensemble", inputs(PROMPTS[:1]), headers=headers)
                    self.assertIn("UNAVAILABLE", caught.exception.status())

    def ended(self, requests, tokens, *flags):
        """SIGTERM while one stream has requests: their texts or errors by id, what ends the stream, and the seconds."""
        with pinion_server.Server(PINION, self.engine, "--grpc_port", 0, "--max_batch_size", 2, *flags) as server:
            client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
            answers, texts, done = queue.Queue(), [""] * requests, set()
            client.start_stream(lambda result, error: answers.put((result, error)))
            for i in range(requests):
                endless = tensor("end_id", "INT32", [-1])
                client.async_stream_infer("ensemble", inputs([PROMPTS[i % 2]], STREAM(), endless, tokens=tokens),
                                          request_id=str(i))
            accepted = lambda m: m["num_requests_running"] + m["num_requests_waiting"] >= requests
            end = time.monotonic() + 60
            while not accepted(server.metrics()):
                self.assertLess(time.monotonic(), end, "the requests were answered before they were all there")
                time.sleep(0.002)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            while True:
                result, error = answers.get(timeout=60)
                if error is not None and error.status() is not None:
                    break
                if error is not None:  # of one request of the stream
                    done.add(error.message())
                    continue
                response = result.get_response()
                texts[int(response.id)] += result.as_numpy("text_output")[0, 0].decode()
                if response.parameters["triton_final_response"].bool_param:
                    done.add(response.id)
            seconds = time.monotonic() - began
            status = server.process.wait(60)
            client.stop_stream()
            client.close()
            self.assertEqual(status, 0, server.log)
            return texts, done, error, seconds

    def test_sigterm_finishes_what_streams_asked_for(self):
        alone = [self.client.infer("ensemble", inputs([p], *(tensor(n, *v) for n, v in (
            ("end_id", ("INT32", [-1])), ("exclude_input_in_output", ("BOOL", [True])))), tokens=200))
            .as_numpy("text_output")[0, 0].decode() for p in PROMPTS]
        texts, done, error, _ = self.ended(6, 200)
        self.assertEqual(texts, alone * 3)
        self.assertEqual(done, set(map(str, range(6))))
        self.assertIn("UNAVAILABLE", error.status())  # the stream itself would have taken more
        self.assertIn("the server ends", error.message())

    def test_the_limit_of_a_drain_holds_for_streams(self):
        _, done, error, seconds = self.ended(16, 3500, "--drain_timeout", 1)
        self.assertIn("the server ends", done)
        self.assertIn("UNAVAILABLE", error.status())
        self.assertTrue(1 <= seconds < 5, seconds)  # the limit, and a moment to tell

    def test_a_repository_over_grpc(self):
        repository = self.directory.name + "/repository"
        subprocess.run([PINION, "triton-repo", "--engine_dir", self.engine, "--model-repo", repository], check=True,
                       stdout=subprocess.DEVNULL)
        with pinion_server.Server(PINION, None, "--model_repository", repository, "--grpc_port", 0, "--metrics_port",
                                  0) as server:
            with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
                client.unload_model("ensemble")
                states = lambda: {m.name: m.state for m in client.get_model_repository_index().models}
                self.assertEqual(states()["ensemble"], "UNAVAILABLE")
                with self.assertRaises(InferenceServerException) as caught:
                    client.infer("ensemble", inputs(PROMPTS[:1]))
                self.assertIn("NOT_FOUND", caught.exception.status())
                client.load_model("ensemble")
                self.assertEqual(states()["ensemble"], "READY")
                client.infer("ensemble", inputs(PROMPTS[:1]))
                with self.assertRaisesRegex(InferenceServerException, "config"):
                    client.load_model("ensemble", config="{}")


if __name__ == "__main__":
    unittest.main()
