#!/usr/bin/env python3
"""Every row of docs/guide/migration.md is run: migration_test.py PINION MODEL REPOSITORY. A row without a case here fails,
and so does a case without a row. What a row says last decides where that may change: what it calls refused must be."""
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

import pinion_server

PINION, MODEL, REPOSITORY = sys.argv.pop(1), sys.argv.pop(1), pathlib.Path(sys.argv.pop(1))
PAGE = (REPOSITORY / "docs/guide/migration.md").read_text()
ROWS = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = [row for row in ROWS if row[0] != "there"]
CASES = {}  # by a row's beginning


def row(beginning):
    def add(function):
        CASES[beginning] = function
        return function
    return add


def elsewhere(beginning, name):
    """A row that a test of its own tries: the one that CMake calls `name`."""
    def run(test, text):
        listed = (REPOSITORY / "test/CMakeLists.txt").read_text()
        test.assertRegex(listed, rf"pinion_script\({name} ")
    CASES[beginning] = run


def pinion(test, *arguments, status=0, says=()):
    run = subprocess.run([PINION, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    test.assertEqual(run.returncode, status, f"pinion {' '.join(map(str, arguments))}\n{run.stderr[-2000:]}")
    for what in says:
        test.assertIn(what, run.stderr + run.stdout)
    return run.stdout


def refused(test, *arguments, names):
    pinion(test, *arguments, status=2, says=["error: ", *names])


# ---- commands


@row("`convert_checkpoint.py --model_dir HF --output_dir C --dtype float16`")
def _(test, text):
    pinion(test, "convert", "--model_dir", MODEL, "--output_dir", test.dir / "c16", "--dtype", "float16")
    config = json.loads((test.dir / "c16/config.json").read_text())
    test.assertIn("float16", (config.get("dtype"), config.get("torch_dtype")))
    pinion(test, "build", "--checkpoint_dir", MODEL, "--output_dir", test.dir / "e", "--no_timing")


@row("`… --use_weight_only")
def _(test, text):
    pinion(test, "convert", "--model_dir", MODEL, "--output_dir", test.dir / "c8", "--use_weight_only",
           "--weight_only_precision", "int8", says=["int8_wo"])
    pinion(test, "build", "--checkpoint_dir", MODEL, "--output_dir", test.dir / "e8", "--no_timing", "--qformat", "int8_wo",
           says=["int8"])


@row("`… --tp_size 2`")
def _(test, text):
    pinion(test, "convert", "--model_dir", MODEL, "--output_dir", test.dir / "c2", "--tp_size", 2, says=["2 ranks"])
    pinion(test, "build", "--checkpoint_dir", test.dir / "c2", "--output_dir", test.dir / "e2", "--no_timing")
    whole = pinion(test, "generate", test.engine, "--prompt", "a", "--max_tokens", 4)
    test.assertEqual(pinion(test, "generate", test.dir / "e2", "--prompt", "a", "--max_tokens", 4).split("\n[")[0],
                     whole.split("\n[")[0])
    refused(test, "build", "--checkpoint_dir", test.dir / "c2/rank0", "--output_dir", test.dir / "no", names=["rank"])


@row("`quantize.py --qformat fp8 / int4_awq / int8_sq / nvfp4")
def _(test, text):  # calibrated with next to nothing: quantize_verbs looks at what comes out
    for name in re.findall(r"fp8|int4_awq|int8_sq|nvfp4", text[0]):
        few = ["--calib_size", 1, "--calib_max_seq_length", 16]
        pinion(test, "quantize", "--model_dir", MODEL, "--output_dir", test.dir / name, "--qformat", name, *few,
               "--calib_dataset", f"{MODEL}/calib.jsonl", *(["--exclude_modules", "*.mlp.*", "*.[1-9]*"]
                                                             if name == "int4_awq" else []), says=[name])


@row("`trtllm-build --checkpoint_dir C --output_dir E`")
def _(test, text):
    pinion(test, "build", "--checkpoint_dir", MODEL, "--output_dir", test.dir / "e1", "--no_timing")


@row("`--max_batch_size`, `--max_input_len`")
def _(test, text):
    flags = {"--max_batch_size": 8, "--max_input_len": 512, "--max_seq_len": 1024, "--max_num_tokens": 2048}
    pinion(test, "build", "--checkpoint_dir", MODEL, "--output_dir", test.dir / "el", "--no_timing",
           *(x for pair in flags.items() for x in pair), says=[f"{f} {v} changes nothing" for f, v in flags.items()])


@row("`--gemm_plugin`")
def _(test, text):
    flags = ["--gemm_plugin", "auto", "--gpt_attention_plugin", "fp8", "--context_fmha", "enable", "--workers", "2",
             "--strongly_typed"]
    pinion(test, "build", "--checkpoint_dir", MODEL, "--output_dir", test.dir / "ep", "--no_timing", *flags,
           "--tp_size", 1, says=[f"{f} " for f in flags if f.startswith("--")] + ["changes nothing"])
    refused(test, "build", "--checkpoint_dir", MODEL, "--output_dir", test.dir / "no", "--tp_size", 4, names=["--tp_size"])


TRTLLM_SERVE = {"--backend": "pytorch", "--max_batch_size": 8, "--max_num_tokens": 512,
                "--kv_cache_free_gpu_memory_fraction": 0.1, "--tp_size": 1, "--pp_size": 1, "--ep_size": 1,
                "--otlp_traces_endpoint": "http://127.0.0.1:9/v1/traces"}


@row("`trtllm-serve E --tokenizer T")
def _(test, text):
    with test.serve(test.engine, "--tokenizer", test.engine, *(x for pair in TRTLLM_SERVE.items() for x in pair)) as server:
        test.assertTrue(server.complete(prompt="a", max_tokens=2)["choices"][0]["text"])


for beginning in ("`--backend pytorch`", "`--max_batch_size`, `--max_num_tokens`, `--kv_cache_free_gpu_memory_fraction`"):
    @row(beginning)
    def _(test, text):  # the server above was started with them
        test.assertLessEqual(set(re.findall(r"--\w+", text[0])), TRTLLM_SERVE.keys())


@row("`--tp_size`, `--pp_size`, `--ep_size` of a server")
def _(test, text):
    for flag in ("--tp_size", "--pp_size", "--ep_size"):
        refused(test, "serve", test.engine, flag, 2, names=[flag])


@row("`--otlp_traces_endpoint`")
def _(test, text):
    refused(test, "serve", test.engine, "--otlp-traces-endpoint", "grpc://x:4317", names=["--otlp_traces_endpoint"])


@row("`run_api_server --engine_dir E")
def _(test, text):
    with test.serve(None, "--engine_dir", test.engine) as server:
        test.assertEqual(server.request("GET", "/health")[0], 200)


@row("`prepare_triton.py")
def _(test, text):
    pinion(test, "triton-repo", "--engine_dir", test.engine, "--model_repo", test.dir / "r", "--tokenizer", test.engine)
    test.assertTrue((test.dir / "r/ensemble/config.pbtxt").exists())


@row("`tritonserver --model-repository R")
def _(test, text):
    pinion(test, "triton-repo", "--engine_dir", test.engine, "--model_repo", test.dir / "r2")
    with test.serve(None, "--model-repository", test.dir / "r2", "--log-verbose", 0, "--disable-auto-complete-config",
                    "--metrics-port", 0, "--grpc-port", 0) as server:
        test.assertEqual(server.request("GET", "/v2/health/ready")[0], 200)
        test.assertEqual(server.request("GET", "/v2/models/tensorrt_llm/ready")[0], 200)
    test.assertIn("--http_port", pinion(test, "serve", "--help"))


elsewhere("`tritonserver --grpc-port 8001`", "grpc_client")


@row("`vllm serve MODEL --api-key K")
def _(test, text):
    certificate, key = pinion_server.certificate(test.dir)
    with test.serve(test.engine, "--api-key", "k", "--served-model-name", "n", "--ssl-certfile", certificate,
                    "--ssl-keyfile", key) as server:
        test.assertIn("https://", server.log)


@row("`vllm bench serve")
def _(test, text):
    out = pinion(test, "bench", "serve", "--url", f"http://127.0.0.1:{test.server.port}/v1", "--input_len", 8, "--output_len",
                 2, "--request-rate", 50, "--burstiness", 0.5, "--goodput", "ttft:20000", "--num_requests", 4, "--json")
    test.assertEqual(json.loads(out)["points"][0]["completed"], 4)


# ---- settings


def configured(test, settings, accepted, name):
    """Whether a configuration file with these settings of executor_config starts a server."""
    file = test.dir / "config.json"
    file.write_text(json.dumps({"executor_config": settings}))
    if not accepted:
        return refused(test, "serve", test.engine, "--config", file, names=[name])
    with test.serve(test.engine, "--config", file) as server:
        server.complete(prompt="a", max_tokens=1)


EXECUTOR_CONFIG = {"max_batch_size": 8, "max_num_tokens": 512, "enable_chunked_prefill": True,
                   "enable_chunked_context": False,
                   "scheduler_config": {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"},
                   "kv_cache_config": {"free_gpu_memory_fraction": 0.1, "enable_block_reuse": False, "max_tokens": 4096}}


@row("`executor_config` of the guides")
def _(test, text):
    configured(test, EXECUTOR_CONFIG, True, "")


for beginning in ("`max_batch_size`, `max_num_tokens` |", "`enable_chunked_prefill`", "`kv_cache_config.free_gpu_memory",
                  "`kv_cache_config.enable_block_reuse`", "`kv_cache_config.max_tokens`",
                  "`scheduler_config.capacity_scheduler_policy`"):
    @row(beginning)
    def _(test, text):  # the server above was started with them, and the flags that the row names exist
        known = EXECUTOR_CONFIG | EXECUTOR_CONFIG["kv_cache_config"] | EXECUTOR_CONFIG["scheduler_config"]
        test.assertLessEqual(set(re.findall(r"`(?:\w+\.)?(\w+)`", text[0])), known.keys())
        flags = pinion(test, "serve", "--help")
        for flag in re.findall(r"--\w+", text[1]):
            test.assertIn(flag, flags)


@row("`kv_cache_config.host_cache_size`")
def _(test, text):
    configured(test, {"kv_cache_config": {"host_cache_size": 1 << 24}}, "refused" not in text[1], "host_cache_size")


def repository(test, models):
    """{name: (parameters, what else its config.pbtxt says)} as a repository of the demo's engine; served, its index by name."""
    directory = pathlib.Path(tempfile.mkdtemp(dir=test.dir))
    for name, (parameters, body) in models.items():
        (directory / name / "1").mkdir(parents=True)
        for key, value in ({"engine_dir": test.engine} | parameters).items():
            body += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        (directory / name / "config.pbtxt").write_text('backend: "tensorrtllm"\n' + body)
    with test.serve(None, "--model_repository", directory, "--metrics_port", 0, "--grpc_port", 0) as server:
        end = time.monotonic() + 60
        while True:
            index = {m["name"]: m for m in json.loads(server.request("POST", "/v2/repository/index", {})[2])}
            if all(m["state"] in ("READY", "UNAVAILABLE") for m in index.values()) or time.monotonic() > end:
                break
            time.sleep(0.02)
        for name in [n for n, m in index.items() if m["state"] == "READY"]:
            answer = server.request("POST", f"/v2/models/{name}/generate", {"text_input": "a", "max_tokens": 2})
            test.assertEqual(answer[0], 200, answer[2])
        return index


@row("config.pbtxt: `engine_dir`, `gpt_model_path`")
def _(test, text):
    values = {"tokenizer_dir": test.engine, "kv_cache_free_gpu_mem_fraction": "0.1", "max_tokens_in_paged_kv_cache": 4096,
              "kv_cache_host_memory_bytes": 1 << 24, "enable_chunked_context": "true", "enable_kv_cache_reuse": "true",
              "gpt_model_path": test.engine, "batch_scheduler_policy": "guaranteed_no_evict",
              "exclude_input_in_output": "true"}
    named = set(re.findall(r"`(\w+)`", text[0]))
    test.assertLessEqual(named, {"engine_dir", "max_batch_size", *values})
    index = repository(test, {"m": ({k: v for k, v in values.items() if k in named}, "max_batch_size: 4\n")})
    test.assertEqual(index["m"]["state"], "READY", index)


@row("config.pbtxt: `executor_worker_path`")
def _(test, text):
    index = repository(test, {"m": ({"executor_worker_path": "/opt/worker", "gpt_model_type": "inflight_fused_batching",
                                     "gpu_device_ids": ""}, "model_transaction_policy { decoupled: true }\n")})
    test.assertEqual(index["m"]["state"], "READY", index)


@row("config.pbtxt: `decoding_mode`")
def _(test, text):
    wrong = [("decoding_mode", "medusa"), ("decoding_mode", "eagle"), ("decoding_mode", "lookahead"), ("max_beam_width", "4"),
             ("kv_cache_host_memory_bytes", "1000000000")]
    wrong = [(key, value) for key, value in wrong if key in text[0]]
    index = repository(test, {f"m{i}": ({key: value}, "") for i, (key, value) in enumerate(wrong)})
    for i, (key, _) in enumerate(wrong):
        test.assertEqual(index[f"m{i}"]["state"], "UNAVAILABLE")
        test.assertIn(key, index[f"m{i}"]["reason"])


@row("`--lora_dir`, `--lora_plugin`")
def _(test, text):
    build = "build", "--checkpoint_dir", MODEL, "--output_dir", test.dir / "no"
    for command in ((*build, "--lora_plugin", "auto"), (*build, "--speculative_decoding_mode", "medusa"),
                    ("serve", test.engine, "--lora_dir", "x")):
        if command[-2].strip("-") in text[0]:
            refused(test, *command, names=[command[-2]])


elsewhere("Python: `from tensorrt_llm import LLM", "python_package")
elsewhere("Python: `from tensorrt_llm.executor", "python_package")
elsewhere("Python: `LLM(lora_dir=…)`", "python_package")


# ---- endpoints


def asked(test, *requests):
    for method, path, fields in requests:
        status, _, body = test.server.request(method, path, fields)
        test.assertEqual(status, 200, f"{method} {path}: {body[:300]}")
    return body


@row("`POST /v2/models/ensemble/generate`")
def _(test, text):
    body = asked(test, ("POST", "/v2/models/ensemble/generate", {"text_input": "a", "max_tokens": 2, "bad_words": "",
                                                                 "stop_words": ""}))
    test.assertIn("text_output", json.loads(body))


@row("`/v2/models/{m}/infer`")
def _(test, text):
    inputs = [{"name": "text_input", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]},
              {"name": "max_tokens", "datatype": "INT32", "shape": [1, 1], "data": [2]}]
    asked(test, ("POST", "/v2/models/ensemble/infer", {"inputs": inputs}),
          ("POST", "/v2/models/ensemble/generate_stream", {"text_input": "a", "max_tokens": 2, "stream": True}),
          ("GET", "/v2/health/ready", None), ("POST", "/v2/repository/index", {}))


@row("`POST /v1/chat/completions`")
def _(test, text):
    asked(test, ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}),
          ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2}),
          ("POST", "/v1/responses", {"input": "a", "max_output_tokens": 2}), ("GET", "/v1/models", None))


@row("`/health`, `/version`, `/tokenize`")
def _(test, text):
    tokens = json.loads(asked(test, ("GET", "/health", None), ("GET", "/version", None),
                              ("POST", "/tokenize", {"prompt": "a b"})))["tokens"]
    asked(test, ("POST", "/detokenize", {"tokens": tokens}))


@row("`/metrics` of trtllm-serve")
def _(test, text):
    test.assertTrue(asked(test, ("GET", "/metrics", None), ("GET", "/prometheus/metrics", None)).startswith("# HELP"))


@row("Triton's `:8002/metrics`")
def _(test, text):
    test.assertTrue(test.server.metrics_port)


def exported(test, names):
    text = asked(test, ("GET", "/metrics", None))
    for name in names:
        test.assertRegex(text, rf"(?m)^{name}[{{ ]")


@row("`nv_inference_request_success`")
def _(test, text):
    names = [n.replace("…", "nv_inference_request") for n in re.findall(r"`((?:nv_|…)\w+)`", text[0])]
    test.assertEqual(len(names), 9)
    exported(test, names)


@row("`vllm:num_requests_running`")
def _(test, text):
    exported(test, ["vllm:num_requests_running", "vllm:time_to_first_token_seconds_count", "vllm:kv_cache_usage_perc"])


elsewhere("gRPC on 8001", "grpc_client")


@row("`POST /v1/embeddings`")
def _(test, text):
    asked(test, ("POST", "/v1/embeddings", {"input": "a", "pooling": "mean", "normalize": False}))
    test.assertEqual(test.server.request("POST", "/v1/embeddings", {"input": "a", "dimensions": 8})[0], 400)


class Migration(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory(prefix="pinion-migration-")
        cls.addClassCleanup(directory.cleanup)
        cls.dir = pathlib.Path(directory.name)
        cls.engine = pinion_server.build(PINION, MODEL, cls.dir / "engine")
        cls.server = cls.serve(cls.engine, "--metrics_port", 0)
        cls.server.__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        cls.server.complete(prompt="a", max_tokens=2)

    @staticmethod
    def serve(*arguments):
        return pinion_server.Server(PINION, *arguments)

    def test_every_row_holds(self):
        self.assertGreater(len(ROWS), 40)
        rest = dict(CASES)
        for cells in ROWS:
            text = " | ".join(cells)
            found = [beginning for beginning in CASES if text.startswith(beginning)]
            with self.subTest(row=cells[0]):
                self.assertEqual(len(found), 1, "no case, or several, for this row")
                rest.pop(found[0], None)
                CASES[found[0]](self, cells)
                self.assertEqual(cells[2:], ["tried"])
        self.assertEqual(list(rest), [], "cases without a row")


if __name__ == "__main__":
    unittest.main()
