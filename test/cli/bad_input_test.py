#!/usr/bin/env python3
"""Damaged and hostile files, wrong arguments, full disks: each ends with one line that names the file or the field and
what to do, with the right status, and with nothing half-written. Usage: bad_input_test.py PINION DEMO_MODEL"""
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import struct
import subprocess
import unittest

import command
from command import CommandTest, pinion


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def flip(path, offset, bit):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.unlink()
    path.write_bytes(data)


def f32(shape, begin, end, **more):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]} | more


class Weights(CommandTest):
    SHARD = "model-00002-of-00003.safetensors"

    def build(self, model, **options):
        return self.refused("build", "--checkpoint_dir", model, "--output_dir", self.dir / "engine", "--no_timing",
                            **options)

    def test_truncated(self):
        model = self.model()
        whole = (model / self.SHARD).read_bytes()
        header = 8 + struct.unpack("<Q", whole[:8])[0]
        for size in (0, 7, 8, 9, header - 1, header, len(whole) // 2, len(whole) - 1):
            (model / self.SHARD).write_bytes(whole[:size])
            with self.subTest(size=size):
                self.build(model, names=self.SHARD)
        (model / self.SHARD).write_bytes(whole + b"x")
        self.build(model, names=self.SHARD)

    def test_bit_flips_in_the_header(self):
        """Every flip is refused, or changes nothing that is checked (the metadata); none crashes."""
        model = self.model()
        whole = (model / self.SHARD).read_bytes()
        header = 8 + struct.unpack("<Q", whole[:8])[0]
        draw = random.Random(1)
        for offset in [*range(8), *(draw.randrange(8, header) for _ in range(24))]:
            flip(model / self.SHARD, offset, draw.randrange(8))
            with self.subTest(offset=offset):
                run = pinion("convert", "--model_dir", model, "--output_dir", self.dir / "out", "--json")
                if run.returncode != 0:
                    self.build(model)
                self.assertIn(run.returncode, (0, 2), run.stderr)
                shutil.rmtree(self.dir / "out", ignore_errors=True)
            (model / self.SHARD).write_bytes(whole)

    def test_hostile_headers(self):
        hostile = {
            "length of 2^64-1": struct.pack("<Q", 2**64 - 1) + b"{}",
            "length of 2^63": struct.pack("<Q", 2**63) + b"{}",
            "length past the limit": struct.pack("<Q", 100_000_001) + b"{}",
            "an array": safetensors([]),
            "not UTF-8": safetensors(b'{"\xff":1}'),
            "text behind": safetensors(b'{}x'),
            "a name twice": safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(f32([1], 0, 4)).encode(),) * 2), b"1234"),
            "overlap": safetensors({"a": f32([1], 0, 4), "b": f32([1], 2, 6)}, b"123456"),
            "a hole": safetensors({"a": f32([1], 0, 4), "b": f32([1], 8, 12)}, b"x" * 12),
            "end before begin": safetensors({"a": f32([1], 4, 0)}, b"1234"),
            "offsets past the end": safetensors({"a": f32([2**40], 0, 2**42)}),
            "overflowing shape": safetensors({"a": f32([2**62, 2**62], 0, 4)}, b"1234"),
            "negative dimension": safetensors({"a": f32([-1], 0, 4)}, b"1234"),
            "float dimension": safetensors(b'{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', b"1234"),
            "unknown dtype": safetensors({"a": f32([1], 0, 4, dtype="F31")}, b"1234"),
            "missing offsets": safetensors({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
            "deeply nested": safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
            "metadata of numbers": safetensors({"__metadata__": {"a": 1}}),
            "half a byte": safetensors({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
        }
        model = self.model()
        for what, data in hostile.items():
            (model / self.SHARD).write_bytes(data)
            with self.subTest(what=what):
                self.build(model, names=self.SHARD)

    def test_shards(self):
        model = self.model()
        (model / self.SHARD).unlink()
        self.build(model, names=[self.SHARD, model])
        (model / self.SHARD).mkdir()
        self.build(model, names=self.SHARD)
        (model / self.SHARD).rmdir()
        os.mkfifo(model / self.SHARD)
        self.build(model, names=self.SHARD)
        (model / self.SHARD).unlink()
        index = model / "model.safetensors.index.json"
        good = json.loads(index.read_text())
        for hostile in ("../outside.safetensors", "/etc/passwd", "a/../../x.safetensors", "", "x\0.safetensors", 7,
                        None):
            index.write_text(json.dumps(good | {"weight_map": good["weight_map"] | {"lm_head.weight": hostile}}))
            with self.subTest(file=hostile):
                self.build(model)
        for text in ("", "{", "[]", "{}", '{"weight_map":[]}', "\0", '{"weight_map":' + "[" * 100_000):
            index.write_text(text)
            with self.subTest(index=text[:20]):
                self.build(model, names="model.safetensors.index.json")

    def test_pickles_and_other_models(self):
        model = self.model()
        for file in model.glob("model*"):
            file.unlink()
        (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
        self.build(model, names=["safetensors", "pytorch_model.bin"])
        (model / "pytorch_model.bin").unlink()
        self.build(model, names=["model.safetensors", model])
        self.build(self.dir / "nowhere", names="nowhere")
        self.build("nobody/nothing", names="hf download nobody/nothing")


class Config(CommandTest):
    def test_values(self):
        model = self.model()
        good = json.loads((model / "config.json").read_text())
        wrong = {
            "vocab_size": (0, -1, 2**31, 1.5, "x", None, [], {}, 1e300),
            "hidden_size": (0, -5, 2**62, "384", True),
            "num_hidden_layers": (0, 10**9, -1, "8"),
            "num_attention_heads": (0, 7.5, 2**40),
            "num_key_value_heads": (0, 4, -2),
            "head_dim": (0, 63, 10**6),
            "intermediate_size": (0, "big"),
            "max_position_embeddings": (0, 2**62, "4k"),
            "rope_theta": (0, -1, "x", 1e400),
            "rms_norm_eps": (-1, "small"),
            "hidden_act": ("warp", 3),
            "torch_dtype": ("int3", 16),
            "rope_scaling": ({"rope_type": "warp"}, [1], {"rope_type": "linear", "factor": 0}, {"rope_type": 3}),
            "tie_word_embeddings": ("yes", 2),
            "quantization_config": ({"quant_method": "magic"},),
            "architectures": ([], ["WarpForCausalLM"], "LlamaForCausalLM", [5], None),
            "sliding_window": (-1, "x"),
            "eos_token_id": (-1, 2**31, "x", [4096]),
        }
        if (model / "generation_config.json").exists():
            (model / "generation_config.json").unlink()
        for field, values in wrong.items():
            for value in values:
                text = json.dumps(good | {field: value}).replace("Infinity", "1e400")
                (model / "config.json").write_text(text)
                with self.subTest(field=field, value=value):
                    self.refused("build", "--checkpoint_dir", model, "--output_dir", self.dir / "engine", "--no_timing",
                                 names=["config.json"])

    def test_files(self):
        model = self.model()
        hostile = ("", "{", "[]", "3", '{"a":1}', "\ufeff{}", '{"a":1,"a":2}', "{" + '"a":{' * 100_000, "NaN",
                   '{"vocab_size": NaN}', "\0" * 100, '{"x":"' + "y" * (17 << 20) + '"}')
        for text in hostile:
            (model / "config.json").write_text(text)
            with self.subTest(text=text[:30]):
                for verb in (("build", "--output_dir", self.dir / "engine", "--checkpoint_dir"),
                             ("convert", "--output_dir", self.dir / "out", "--model_dir")):
                    self.refused(*verb, model, names="config.json")
                self.refused("plan", model / "config.json", "--gpu", "h100", names="config.json")
        (model / "config.json").unlink()
        self.refused("generate", model, "--prompt", "x", names=["config.json", model])
        (model / "config.json").mkdir()
        self.refused("generate", model, "--prompt", "x", names="config.json")

    def test_weights_that_do_not_fit(self):
        model = self.model()
        good = json.loads((model / "config.json").read_text())
        for field, value, tensor in (("hidden_size", 512, "embed_tokens"), ("intermediate_size", 1000, "gate_proj"),
                                     ("num_hidden_layers", 9, "layers.8"), ("vocab_size", 4097, "embed_tokens"),
                                     ("num_key_value_heads", 3, "k_proj")):
            (model / "config.json").write_text(json.dumps(good | {field: value}))
            with self.subTest(field=field):
                self.refused("build", "--checkpoint_dir", model, "--output_dir", self.dir / "engine", "--no_timing",
                             names=tensor)

    def test_code_from_the_checkpoint(self):
        model = self.model()
        good = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(good | {"auto_map": {"AutoModelForCausalLM": "modeling_x.XModel"},
                                                              "architectures": ["XModel"]}))
        self.refused("build", "--checkpoint_dir", model, "--output_dir", self.dir / "engine",
                     names=["auto_map", "config.json"])

    def test_sizes_beyond_any_memory(self):
        """A config of 10^14 parameters: refused before anything of that size is touched."""
        model = self.dir / "config.json"
        good = json.loads(pathlib.Path(command.DEMO, "config.json").read_text())
        model.write_text(json.dumps(good | {"hidden_size": 1 << 20, "num_attention_heads": 8192, "head_dim": 128,
                                            "num_key_value_heads": 8192, "intermediate_size": 1 << 22,
                                            "num_hidden_layers": 100}))
        run = pinion("plan", model, "--gpu", "h100", "--json")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertFalse(json.loads(run.stdout)["fits"])


class TokenizerFiles(CommandTest):
    def test_damaged(self):
        model = self.dir / "tokenizer"
        model.mkdir()
        good = pathlib.Path(command.DEMO, "tokenizer.json").read_text()
        parsed = json.loads(good)

        def changed(**fields):
            return json.dumps(parsed | fields)

        texts = ["", "{", "[]", "null", good[:len(good) // 2], good[:-2], good + "x", changed(model=None),
                 changed(model={"type": "Magic"}), changed(model=parsed["model"] | {"vocab": 3}),
                 changed(model=parsed["model"] | {"merges": [["not", "there"]]}),
                 changed(model=parsed["model"] | {"merges": "x"}),
                 changed(model=parsed["model"] | {"vocab": parsed["model"]["vocab"] | {"huge": 2**40}}),
                 changed(model=parsed["model"] | {"vocab": parsed["model"]["vocab"] | {"below": -1}}),
                 changed(pre_tokenizer={"type": "Magic"}), changed(decoder={"type": "Magic"}),
                 changed(normalizer={"type": "Magic"}), changed(post_processor={"type": "Magic"}),
                 changed(added_tokens=[{"id": -1, "content": "x"}]), changed(added_tokens={"x": 1}),
                 "{" + '"a":{' * 100_000]
        for text in texts:
            (model / "tokenizer.json").write_text(text)
            with self.subTest(text=text[-60:]):
                self.refused("tokenize", model, stdin='{"text":"x"}\n', names="tokenizer.json")
        (model / "tokenizer.json").unlink()
        self.refused("tokenize", model, stdin='{"text":"x"}\n', names="tokenizer.json")

    def test_lines(self):
        for line in ("x", "{}", '{"text":1}', "[]", '{"text":"a"', '{"text":"\\ud800"}'):
            with self.subTest(line=line):
                self.refused("tokenize", command.DEMO, stdin=line + "\n", names="line 1")
        for line in ('{"ids":"x"}', '{"ids":[-1]}', '{"ids":[1.5]}', '{"ids":[99999999999]}', '{"text":"x"}'):
            with self.subTest(line=line):
                self.refused("tokenize", command.DEMO, "--decode", stdin=line + "\n", names="line 1")

    def test_templates(self):
        messages = self.dir / "messages.json"
        messages.write_text('[{"role":"user","content":"hello"}]')
        template = self.dir / "t.jinja"
        for text, name in (("{{", "line 1"), ("{% for x in y %}", "line 1"), ("{{ raise_exception('no') }}", "no"),
                           ("{% for i in range(10**9) %}x{% endfor %}", ""), ("{{ 'x' * 10**10 }}", ""),
                           ("{{ x | nofilter }}", "nofilter"), ("(" * 10_000 + "{{" + "(" * 10_000, "")):
            template.write_text(text)
            with self.subTest(text=text[:30]):
                self.refused("render", command.DEMO, "--messages", messages, "--chat_template", template, names=name)
        for text in ("", "{", '{"role":1}', "[3]"):
            messages.write_text(text)
            with self.subTest(messages=text):
                self.refused("render", command.DEMO, "--messages", messages)


class Engines(CommandTest):
    @classmethod
    def setUpClass(cls):
        cls.scratch = command.tempfile.TemporaryDirectory(prefix="pinion-cli-")
        cls.engine = pathlib.Path(cls.scratch.name) / "engine"
        built = pinion("build", "--checkpoint_dir", command.DEMO, "--output_dir", cls.engine, "--no_timing")
        assert built.returncode == 0, built.stderr

    @classmethod
    def tearDownClass(cls):
        cls.scratch.cleanup()

    def copy(self):
        shutil.rmtree(self.dir / "engine", ignore_errors=True)
        return pathlib.Path(shutil.copytree(self.engine, self.dir / "engine"))

    def test_damage_is_named(self):
        engine = self.copy()
        size = (engine / "rank0.engine").stat().st_size
        ask = ("generate", engine, "--input_ids", "5,6", "--max_tokens", "1")
        for cut in (0, 100, 4096, size // 2, size - 1):
            os.truncate(self.copy() / "rank0.engine", cut)
            with self.subTest(cut=cut):
                self.refused(*ask, names="rank0.engine")
        draw = random.Random(2)
        for offset in (0, 9, 5000, size - 100, *(draw.randrange(8192, size - 65536) for _ in range(4))):
            flip(self.copy() / "rank0.engine", offset, draw.randrange(8))
            with self.subTest(flip=offset):
                self.refused(*ask, names="rank0.engine")
        for file in ("rank0.engine", "tokenizer.json"):
            (self.copy() / file).unlink()
            with self.subTest(missing=file):
                self.refused(*ask, names=file)
        top = json.loads((engine / "engine.json").read_text())
        self.copy()
        for change in ({"format": 999}, {"format": "x"}, {"format": None}, {"files": None}, {"files": {}},
                       {"manifest": 3}):
            (engine / "engine.json").write_text(json.dumps(top | change))
            with self.subTest(change=change):
                self.refused(*ask, names="engine.json")
        for text in ("", "{", "[]", "\0", "{" + '"a":{' * 100_000):
            (engine / "engine.json").write_text(text)
            with self.subTest(text=text[:10]):
                self.refused(*ask, names="engine.json")
                self.refused("inspect", engine, names="engine.json")
                self.refused("serve", engine, "--port", "0", names="engine.json")

    def test_arguments(self):
        e = self.engine
        build = ("build", "--checkpoint_dir", command.DEMO, "--output_dir", self.dir / "x")
        for args, names in (
            (("generate", e, "--input_ids", "1,x"), "--input_ids"),
            (("generate", e, "--input_ids", "5000"), "5000"),
            (("generate", e, "--input_ids", "-1"), "--input_ids"),
            (("generate", e, "--input_ids", ",".join(["5"] * 4097)), "4097"),
            (("generate", e, "--prompt", "word " * 6000), "max_seq_len"),
            (("generate", e), "--prompt"),
            (("generate", e, "--prompt", "x", "--max_seq_len", "5000"), "--max_seq_len"),
            (("generate", e, "--prompt", "x", "--temperature", "-1"), "--temperature"),
            (("generate", e, "--prompt", "x", "--max_tokens", "many"), "--max_tokens"),
            (("generate", e, "--prompt", "x", "--warp"), "--warp"),
            (("generate", e, "--prompt", "x", "--target", "tpu"), "--target"),
            (("generate", e, "--prompt", "x", "--isa", "mmx"), "mmx"),
            (("generate", e, "--prompt", "x", "--dtype", "float32"), "--dtype"),
            (("generate", e, "--prompt", "x", "--tokens_per_block", "16"), "--tokens_per_block"),
            (("generate", e, "--prompt", "x", "--rope_theta", "5"), "--rope_theta"),
            (("generate", e, "--input", self.dir / "none.jsonl"), "none.jsonl"),
            (("generate", self.dir / "none", "--prompt", "x"), "none"),
            (("serve", e, "--port", "99999"), "--port"),
            (("serve", e, "--host", "no.such.host.invalid", "--port", "0"), "no.such.host.invalid"),
            (("logits", e, "--input_ids", "1,2", "--output", self.dir / "no" / "dir" / "x.safetensors"), "no/dir"),
            (("inspect", self.dir / "none"), "none"),
            (("diff", e), "--checkpoint_dir"),
            (("build", "--checkpoint_dir", command.DEMO), "--output_dir"),
            ((*build, "--tokens_per_block", "7"), "--tokens_per_block"),
            ((*build, "--disable_pass", "warp"), "warp"),
            ((*build, "--kv_cache_type", "continuous"), "--kv_cache_type"),
            ((*build, "--dtype", "int3"), "--dtype"),
            (("convert", "--model_dir", command.DEMO, "--output_dir", self.dir / "x", "--tp_size", "5"), "--tp_size"),
            (("plan", e, "--gpu", "z80"), "--gpu"),
            (("warp",), "warp"),
            ((), "--help"),
        ):
            with self.subTest(args=[str(a)[:60] for a in args]):
                self.refused(*args, names=names)

    def test_port_in_use(self):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            self.refused("serve", self.engine, "--port", port, names=[f"127.0.0.1:{port}", "--port"])

    def test_output_that_is_a_file(self):
        (self.dir / "file").write_text("mine")
        for verb in (("build", "--checkpoint_dir"), ("convert", "--model_dir")):
            self.refused(*verb, command.DEMO, "--output_dir", self.dir / "file", names="file")
        self.assertEqual((self.dir / "file").read_text(), "mine")


class Conversions(CommandTest):
    def test_one_rank_is_no_model(self):
        ranks = self.dir / "ranks"
        run = pinion("convert", "--model_dir", command.DEMO, "--output_dir", ranks, "--tp_size", "2")
        self.assertEqual(run.returncode, 0, run.stderr)
        for where in (ranks / "rank0", ranks / "rank1"):
            self.refused("build", "--checkpoint_dir", where, "--output_dir", self.dir / "engine", names=[where, "above"])
            self.refused("generate", where, "--prompt", "x", names=[where, "rank"])
        (ranks / "rank1" / "model.safetensors").unlink()
        self.refused("build", "--checkpoint_dir", ranks, "--output_dir", self.dir / "engine", names=["rank1", "weights"])

    def test_overflow_is_not_silent(self):
        model = self.dir / "model"
        run = pinion("convert", "--model_dir", command.DEMO, "--output_dir", model, "--dtype", "float32")
        self.assertEqual(run.returncode, 0, run.stderr)
        weights = model / "model.safetensors"
        data = bytearray(weights.read_bytes())
        header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
        name = "model.layers.3.mlp.up_proj.weight"
        at = 8 + struct.unpack("<Q", data[:8])[0] + header[name]["data_offsets"][0]
        data[at:at + 4] = struct.pack("<f", 1e6)
        weights.write_bytes(data)
        for verb in (("convert", "--model_dir"), ("build", "--no_timing", "--checkpoint_dir")):
            self.refused(*verb, model, "--output_dir", self.dir / "out", "--dtype", "float16", names=["--dtype", name])
        run = pinion("convert", "--model_dir", model, "--output_dir", self.dir / "out", "--dtype", "bfloat16")
        self.assertEqual(run.returncode, 0, run.stderr)

    def test_limits_given_to_a_build_are_said_to_have_no_effect(self):
        limits = {"--max_batch_size": 8, "--max_input_len": 512, "--max_seq_len": 1024, "--max_num_tokens": 2048,
                  "--workers": 2}
        run = pinion("build", "--checkpoint_dir", command.DEMO, "--output_dir", self.dir / "engine", "--no_timing",
                     "--json", *(x for pair in limits.items() for x in pair))
        self.assertEqual(run.returncode, 0, run.stderr)
        json.loads(run.stdout)  # the note is on standard error
        for flag, value in limits.items():
            self.assertRegex(run.stderr, f"{flag} {value} changes nothing")

    def test_deterministic_engines(self):
        engine = self.dir / "engine"
        run = pinion("build", "--checkpoint_dir", command.DEMO, "--output_dir", engine, "--no_timing")
        self.assertEqual(run.returncode, 0, run.stderr)
        ask = ("generate", engine, "--input_ids", "5,6,7,8", "--max_tokens", "8", "--json")
        env = os.environ | {"PINION_CACHE": str(self.dir / "cache")}
        plain, chosen = pinion(*ask, env=env), pinion(*ask, "--deterministic", env=env)  # selects anew, into the cache
        self.assertEqual((plain.returncode, chosen.returncode), (0, 0), chosen.stderr)
        self.assertIn("re-selecting kernels", chosen.stderr)
        self.assertNotIn("re-selecting kernels", pinion(*ask, "--deterministic", env=env).stderr)
        self.assertNotIn("re-selecting kernels", plain.stderr)
        again = json.loads(pinion("inspect", engine, "--json").stdout)
        self.assertFalse(again["manifest"]["deterministic"])  # the engine itself is as it was


class FullDisk(CommandTest):
    VERBS = (("build", "--no_timing", "--checkpoint_dir", command.DEMO, "--output_dir"),
             ("convert", "--model_dir", command.DEMO, "--output_dir"))

    def test_file_size_limit(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

        for verb in self.VERBS:
            with self.subTest(verb=verb[0]):
                self.refused(*verb, self.dir / "out", status=1, names=[self.dir / "out", "File too large"],
                             preexec_fn=limit)

    def test_full_file_system(self):
        """In a mount namespace of its own: nothing of this machine sees the small file system."""
        small = self.dir / "small"
        small.mkdir()
        script = 'mount -t tmpfs -o size=8m none "$0" && "$@"; s=$?; ls -A "$0"; exit $s'
        mount = ["unshare", "-m", "sh", "-c", script, small]
        if subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
            self.skipTest("mounting a file system needs root; the file size limit is tested in any case")
        for verb in self.VERBS:
            with self.subTest(verb=verb[0]):
                run = subprocess.run([*mount, command.PINION, *verb, small / "out"], capture_output=True, text=True,
                                     timeout=120)
                self.assertEqual(run.returncode, 1, run.stderr)
                self.assertRegex(run.stderr.splitlines()[-1],
                                 r"error: .*No space left on device \(.*/small/out/.*\) — free some")
                self.assertEqual(run.stdout, "", "files were left behind")


if __name__ == "__main__":
    command.main()
