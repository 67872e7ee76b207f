#!/usr/bin/env python3
"""Serving as operators set it up: python3 operations_test.py PINION MODEL.

A Triton model repository with the official tritonclient, metrics read by prometheus_client, and HTTPS with API keys
from a configuration file, asked by the official openai client.
"""
import http.server
import json
import pathlib
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.error
import urllib.request

import httpx
import numpy
import openai
import pinion_server
import tritonclient.http
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

PINION, MODEL = sys.argv.pop(1), sys.argv.pop(1)
GUIDE_METRICS = ["nv_inference_request_success", "nv_inference_request_failure", "nv_inference_queue_duration_us",
                 "nv_inference_compute_input_duration_us", "nv_inference_compute_output_duration_us",
                 "nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_trt_llm_kv_cache_block_used",
                 "nv_trt_llm_active_request_count"]


def samples(text):
    """{name: {labels as sorted pairs: value}} of a scrape; fails where it is no valid exposition."""
    out = {}
    written = {re.split(r"[{ ]", line, maxsplit=1)[0] for line in text.splitlines()}
    for family in text_string_to_metric_families(text):
        for s in family.samples:
            name = s.name if s.name in written else s.name.removesuffix("_total")  # the parser appends it to counters
            key = tuple(sorted(s.labels.items()))
            if key in out.setdefault(name, {}):
                raise AssertionError(f"{name} {key} is there twice")
            out[name][key] = s.value
    return out


def prompt(text):
    text_input = tritonclient.http.InferInput("text_input", [1, 1], "BYTES")
    text_input.set_data_from_numpy(numpy.array([[text]], dtype=object))
    max_tokens = tritonclient.http.InferInput("max_tokens", [1, 1], "INT32")
    max_tokens.set_data_from_numpy(numpy.array([[8]], dtype=numpy.int32))
    return [text_input, max_tokens]


class Repository(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        root = pathlib.Path(cls.directory.name)
        cls.engine = pinion_server.build(PINION, MODEL, root / "engine")
        cls.repository = root / "repository"
        subprocess.run([PINION, "triton-repo", "--engine_dir", cls.engine, "--model-repo", cls.repository], check=True,
                       stdout=subprocess.DEVNULL)
        # a second engine under a name of its own, with the guides' keys
        (cls.repository / "small" / "2").mkdir(parents=True)
        (cls.repository / "small" / "config.pbtxt").write_text(
            f"""backend: "tensorrtllm"
            max_batch_size: 4
            model_transaction_policy {{ decoupled: true }}
            parameters {{ key: "gpt_model_path" value {{ string_value: "{cls.engine}" }} }}
            parameters {{ key: "executor_worker_path" value {{ string_value: "/opt/trtllmExecutorWorker" }} }}
            parameters {{ key: "kv_cache_free_gpu_mem_fraction" value {{ string_value: "0.1" }} }}
            parameters {{ key: "enable_chunked_context" value {{ string_value: "true" }} }}
            parameters {{ key: "exclude_input_in_output" value {{ string_value: "true" }} }}""")
        cls.server = pinion_server.Server(PINION, None, "--model_repository", cls.repository, "--metrics_port", 0,
                                          "--grpc_port", 0)
        cls.server.__enter__()
        cls.client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{cls.server.port}", network_timeout=300)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__(None, None, None)
        cls.directory.cleanup()

    def states(self):
        return {m["name"]: m["state"] for m in self.client.get_model_repository_index()}

    def test_every_model_is_ready_and_answers_alike(self):
        self.assertEqual(self.states(), dict.fromkeys(
            ["ensemble", "postprocessing", "preprocessing", "small", "tensorrt_llm"], "READY"))
        self.assertTrue(self.client.is_server_ready())
        answers = {m: self.client.infer(m, prompt("The capital of France is")).as_numpy("text_output")[0, 0]
                   for m in ("ensemble", "tensorrt_llm", "small")}
        self.assertEqual(answers["ensemble"], answers["tensorrt_llm"])
        self.assertEqual(answers["ensemble"], b"The capital of France is" + answers["small"])
        self.assertEqual(self.client.get_model_metadata("small")["versions"], ["2"])
        with self.assertRaisesRegex(InferenceServerException, "runs inside"):
            self.client.infer("preprocessing", prompt("a"))

    def test_unload_load_and_what_does_not_load(self):
        self.client.unload_model("small")
        self.assertFalse(self.client.is_model_ready("small"))
        with self.assertRaisesRegex(InferenceServerException, "unknown model"):
            self.client.infer("small", prompt("a"))
        self.client.load_model("small")
        self.assertTrue(self.client.is_model_ready("small"))
        (self.repository / "broken" / "1").mkdir(parents=True)
        (self.repository / "broken" / "config.pbtxt").write_text('backend: "onnxruntime"')
        with self.assertRaisesRegex(InferenceServerException, "onnxruntime"):
            self.client.load_model("broken")
        with self.assertRaises(InferenceServerException):
            self.client.load_model("nothing")

    def test_metrics_of_the_guides(self):
        def scrape():
            with urllib.request.urlopen(f"http://127.0.0.1:{self.server.metrics_port}/metrics") as answer:
                self.assertEqual(answer.headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
                return samples(answer.read().decode())

        before = scrape()
        for name in GUIDE_METRICS:
            self.assertIn(name, before)
        label = (("model", "ensemble"), ("version", "1"))
        self.client.infer("ensemble", prompt("What is 2 + 2?"))
        after = scrape()
        grown = {name: after[name][label] - before[name][label] for name in GUIDE_METRICS[:1] + GUIDE_METRICS[2:5]}
        self.assertEqual(grown["nv_inference_request_success"], 1)
        for name in ("nv_inference_compute_input_duration_us", "nv_inference_compute_output_duration_us"):
            self.assertGreater(grown[name], 0, name)
        self.assertGreaterEqual(grown["nv_inference_queue_duration_us"], 0)
        self.assertEqual(after["nv_trt_llm_active_request_count"][label], 0)
        for used in after["nv_gpu_memory_used_bytes"].values():
            self.assertGreater(used, 1 << 20)
        for share in after["nv_gpu_utilization"].values():
            self.assertTrue(0 <= share <= 1)
        name = ("engine", "0"), ("model_name", "ensemble")
        self.assertEqual(after["vllm:num_requests_running"][name], 0)
        self.assertGreater(after["vllm:time_to_first_token_seconds_count"][name], 0)


    def bench(self, *flags, model="small"):
        made = subprocess.run([PINION, "bench", "serve", "--url", f"http://127.0.0.1:{self.server.port}/v1", "--model",
                               model, "--input_len", "16", "--output_len", "4", *flags], capture_output=True, text=True,
                              timeout=300)
        return made.returncode, made.stdout, made.stderr

    def test_bench_serve(self):
        html = pathlib.Path(self.directory.name) / "report.html"
        status, out, log = self.bench("--concurrency", "1,2", "--num_requests", "6", "--goodput", "e2el:60000",
                                      "--price-per-hour", "3.6", "--json", "--html", html)
        self.assertEqual(status, 0, log)
        points = json.loads(out)["points"]
        self.assertEqual([p["concurrency"] for p in points], [1, 2])
        for p in points:
            self.assertEqual((p["completed"], p["failed"]), (6, 0))
            self.assertEqual((p["input_tokens"], p["output_tokens"]), (6 * 16, 6 * 4))
            self.assertLessEqual(p["ttft_ms"]["p50"], p["e2el_ms"]["p50"])
            self.assertAlmostEqual(p["goodput"], p["request_throughput"])
            self.assertAlmostEqual(p["cost_per_million_output_tokens"], 1000 / p["output_throughput"], delta=0.01)
        self.assertIn("<svg", html.read_text())
        status, out, log = self.bench("--request_rate", "inf", "--num_requests", "4", "--chat", "--json")
        self.assertEqual(status, 0, log)
        self.assertEqual(json.loads(out)["points"][0]["completed"], 4)
        self.assertIn("model_not_found", self.bench(model="nobody")[2])


class Secured(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        root = pathlib.Path(cls.directory.name)
        engine = pinion_server.build(PINION, MODEL, root / "engine")
        cls.certificate, key = pinion_server.certificate(root)
        cls.log = root / "access.jsonl"
        (root / "config.yaml").write_text(f"""
            served_model_name: demo
            tls_certificate: {cls.certificate}
            tls-key: {key}
            access_log: {cls.log}
            executor_config:
              max_batch_size: 8
              max_num_tokens: 512
              enable_chunked_prefill: true
              kv_cache_config: {{free_gpu_memory_fraction: 0.1, enable_block_reuse: true}}
            api_keys:
              - {{key: secret, name: team}}
              - {{key: slow, name: slow, requests_per_minute: 1}}""")
        cls.server = pinion_server.Server(PINION, engine, "--config", root / "config.yaml")
        cls.server.__enter__()
        cls.tls = ssl.create_default_context(cafile=cls.certificate)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)
        cls.directory.cleanup()

    def client(self, key="secret"):
        return openai.OpenAI(base_url=f"https://127.0.0.1:{self.server.port}/v1", api_key=key, max_retries=0,
                             http_client=httpx.Client(verify=self.tls, timeout=120))

    def test_chat_and_responses_over_tls(self):
        client = self.client()
        self.assertEqual([m.id for m in client.models.list()], ["demo"])
        chat = client.chat.completions.create(model="demo", max_tokens=8, temperature=0,
                                              messages=[{"role": "user", "content": "What is 2 + 2?"}])
        answer = client.responses.create(model="demo", input="What is 2 + 2?", max_output_tokens=8, temperature=0)
        self.assertEqual(answer.output_text, chat.choices[0].message.content)
        self.assertEqual(answer.usage.output_tokens, chat.usage.completion_tokens)
        text, types = "", []
        for event in client.responses.create(model="demo", input="What is 2 + 2?", max_output_tokens=8, temperature=0,
                                             stream=True):
            types.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
        self.assertEqual(text, answer.output_text)
        self.assertEqual(types[0], "response.created")
        self.assertIn(types[-1], ("response.completed", "response.incomplete"))
        with self.assertRaises(openai.BadRequestError) as refused:
            client.responses.create(model="demo", input="a", previous_response_id="resp_1")
        self.assertEqual(refused.exception.param, "previous_response_id")
        large = client.completions.create(model="demo", prompt="a " * 200, max_tokens=4, echo=True)
        self.assertTrue(large.choices[0].text.startswith("a a a"))

    def test_keys_limits_and_the_log(self):
        with self.assertRaises(openai.AuthenticationError):
            self.client("wrong").models.list()
        slow = self.client("slow")
        slow.completions.create(model="demo", prompt="a", max_tokens=1)
        with self.assertRaises(openai.RateLimitError) as limited:
            slow.completions.create(model="demo", prompt="a", max_tokens=1)
        self.assertGreater(int(limited.exception.response.headers["retry-after"]), 0)
        trace = "0af7651916cd43dd8448eb211c80319c"
        request = urllib.request.Request(f"https://127.0.0.1:{self.server.port}/v1/models",
                                         headers={"Authorization": "Bearer secret", "X-Request-Id": "mine",
                                                  "traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        with urllib.request.urlopen(request, context=self.tls) as answer:
            self.assertTrue(answer.headers["traceparent"].startswith(f"00-{trace}-"))
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        self.assertEqual([(x["key"], x["trace_id"], x["status"]) for x in lines if x["request_id"] == "mine"],
                         [("team", trace, 200)])
        self.assertEqual([x["status"] for x in lines if x.get("key") == "slow"], [200, 429])

    def test_no_answer_without_tls(self):
        with self.assertRaises((urllib.error.URLError, OSError)):
            urllib.request.urlopen(f"http://127.0.0.1:{self.server.port}/health", timeout=10).read()


class Spans(unittest.TestCase):
    def test_a_collector_gets_them(self):
        got = []

        class Collector(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                got.append((self.path, body["resourceSpans"][0]))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector, \
                tempfile.TemporaryDirectory() as directory:
            threading.Thread(target=collector.serve_forever, daemon=True).start()
            engine = pinion_server.build(PINION, MODEL, directory + "/engine")
            with pinion_server.Server(PINION, engine, "--otlp_traces_endpoint",
                                      f"http://127.0.0.1:{collector.server_port}") as server:
                trace = "0af7651916cd43dd8448eb211c80319c"
                status, head, _ = server.request("POST", "/v1/completions", {"prompt": "a b c", "max_tokens": 4},
                                                 {"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
                self.assertEqual(status, 200)
            collector.shutdown()  # the server has ended, and delivered before
        spans = [s for _, resource in got for s in resource["scopeSpans"][0]["spans"] if s["traceId"] == trace]
        self.assertEqual([s["name"] for s in spans], ["POST /v1/completions", "queue", "prefill", "decode"])
        self.assertEqual(spans[0]["spanId"], head["traceparent"].split("-")[2])
        self.assertEqual({s["parentSpanId"] for s in spans[1:]}, {spans[0]["spanId"]})
        self.assertEqual(got[0][0], "/v1/traces")
        self.assertIn({"key": "service.name", "value": {"stringValue": "pinion"}}, got[0][1]["resource"]["attributes"])
        made = subprocess.run([PINION, "serve", MODEL, "--otlp-traces-endpoint", "grpc://x:4317"], capture_output=True,
                              text=True, timeout=120)
        self.assertEqual(made.returncode, 2, made.stderr)
        self.assertIn("--otlp_traces_endpoint", made.stderr)


class HostTier(unittest.TestCase):
    def test_an_evicted_prompt_comes_back(self):
        with pinion_server.Server(PINION, MODEL, "--max_seq_len", 1024, "--kv_cache_max_tokens", 1024,
                                  "--kv_cache_host_memory_bytes", 100_000_000) as server:
            def ask(first):
                answer = server.complete(prompt=[first, *range(10, 610)], max_tokens=8, temperature=0)
                return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

            computed = [ask(first) for first in range(3)]
            self.assertEqual([cached for _, cached in computed], [0, 0, 0])
            self.assertEqual(ask(0), (computed[0][0], 576))
            metrics = server.metrics()
        self.assertEqual(metrics["kv_host_hit_blocks_total"], 9)
        self.assertGreater(metrics["kv_host_copied_in_bytes_total"], 0)
        self.assertGreaterEqual(metrics["kv_host_copied_out_bytes_total"], metrics["kv_host_copied_in_bytes_total"])
        self.assertGreaterEqual(metrics["kv_host_blocks_used"], 9)
        self.assertGreater(metrics["kv_host_blocks_total"], metrics["kv_host_blocks_used"])


class ForeignCommands(unittest.TestCase):
    """The flags of commands written for trtllm-serve, run_api_server, tritonserver and vLLM."""

    def test_flags_that_mean_something_here_and_those_that_cannot_be_honoured(self):
        with tempfile.TemporaryDirectory() as directory:
            engine = pinion_server.build(PINION, MODEL, directory + "/engine")
            flags = ["--engine_dir", engine, "--tokenizer", engine, "--backend", "pytorch", "--tp_size", 1, "--pp_size", 1,
                     "--max_batch_size", 8, "--max_num_tokens", 512, "--kv_cache_free_gpu_memory_fraction", 0.1,
                     "--log-verbose", 0, "--disable-auto-complete-config", "--served-model-name", "llama-3.1-8b"]
            with pinion_server.Server(PINION, None, *flags) as server:
                status, _, text = server.request("POST", "/v1/chat/completions", {
                    "model": "llama-3.1-8b", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4})
                self.assertEqual(status, 200, text)
                for path in ("/health", "/version", "/metrics", "/prometheus/metrics", "/v2/health/ready", "/"):
                    self.assertEqual(server.request("GET", path)[0], 200, path)
        for flags, named in ((["--tp_size", "2"], "--tp_size"), (["--rate_limit", "5"], "--rate_limit"), (["--ssl-keyfile", "k.pem"], "--tls_certificate")):
            made = subprocess.run([PINION, "serve", MODEL, *flags], capture_output=True, text=True, timeout=120)
            self.assertEqual(made.returncode, 2, made.stderr)
            self.assertIn(named, made.stderr)


class Configuration(unittest.TestCase):
    def refused(self, text, *flags):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            made = subprocess.run([PINION, "serve", MODEL, "--config", file.name, *flags], capture_output=True, text=True,
                                  timeout=60)
        self.assertEqual(made.returncode, 2, made.stderr)
        return made.stderr

    def test_what_is_wrong_is_named(self):
        self.assertIn("no_such", self.refused("no_such: 1"))
        self.assertIn("executor_config.max_beam_width", self.refused("executor_config: {max_beam_width: 2}"))
        self.assertIn("--kv_cache_host_memory_bytes 8",
                      self.refused("executor_config: {kv_cache_config: {host_cache_size: 8}}"))
        self.assertIn("--kv_cache_host_memory_bytes, --no_prefix_reuse",
                      self.refused("kv_cache_host_memory_bytes: 100000000", "--no_prefix_reuse"))
        self.assertIn("port", self.refused("port: many"))
        self.assertIn("line ", self.refused("a: 1\nb: [1"))
        self.assertIn("api_keys", self.refused("api_keys: 7"))
        bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(
            f"{y}: &{y} [*{x},*{x},*{x},*{x},*{x},*{x},*{x},*{x},*{x},*{x}]" for x, y in zip("abcdefg", "bcdefgh"))
        self.assertIn("too large", self.refused(bomb))


if __name__ == "__main__":
    unittest.main()
