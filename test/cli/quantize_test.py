#!/usr/bin/env python3
"""The verbs about quantisation on the demo model: a quantised model answers from a smaller engine, its loss is measured
and can be refused, a calibration goes on, and what is wrong is named. Usage: quantize_test.py PINION DEMO_MODEL"""
import json
import pathlib

import command
from command import DEMO, CommandTest, pinion


class Quantize(CommandTest):
    def done(self, *args):
        run = pinion(*args)
        self.assertEqual(run.returncode, 0, f"pinion {' '.join(map(str, args))}\n{run.stdout[:500]}{run.stderr[:2000]}")
        return run.stdout

    def quantize(self, qformat, *args):
        to = self.dir / qformat
        report = json.loads(self.done("quantize", "--model_dir", DEMO, "--output_dir", to, "--qformat", qformat, "--json",
                                      *args))
        return to, report

    def calibration(self, lines=6):
        return ("--calib_dataset", pathlib.Path(DEMO) / "calib.jsonl", "--calib_size", lines)

    def build(self, checkpoint, *args):
        to = self.dir / "engine"
        built = json.loads(self.done("build", "--checkpoint_dir", checkpoint, "--output_dir", to, "--no_timing", "--json",
                                     *args))
        return to, built

    def answer(self, engine, question="What is the capital of France?"):
        return self.done("generate", engine, "--prompt", question)

    def test_quantised_models_answer_from_smaller_engines(self):
        _, floats = self.build(DEMO)
        for qformat, ratio, args in (("fp8", 0.65, ()), ("int8_wo", 0.65, ()), ("int8_sq", 0.65, self.calibration()),
                                     ("int4_awq", 0.5, self.calibration())):
            with self.subTest(qformat=qformat):
                checkpoint, report = self.quantize(qformat, *args)
                self.assertEqual(len(report["report"]), report["linears"])
                self.assertTrue(all(0 < line["relative_error"] < 0.05 for line in report["report"]))
                engine, built = self.build(checkpoint)
                self.assertLess(built["weight_bytes"], ratio * floats["weight_bytes"])
                self.assertIn("Paris", self.answer(engine))
                self.assertIn("75", self.answer(engine, "What is 27 + 48?"))

    def test_inputs_are_rounded_as_asked(self):
        for qformat, args, kind in (
                ("fp8", ("--weight_scales", "tensor", "--static_inputs"), "fp8 inputs fp8_static"),
                ("fp8", ("--weight_scales", "block"), "fp8 group 128 inputs fp8_group128"),
                ("int8_sq", ("--static_inputs", "--input_range", "percentile"), "int8 inputs int8_static"),
                ("w4a8_awq", ("--input_dtype", "int8"), "int4 group 128 zeros inputs int8_token")):
            with self.subTest(qformat=qformat, args=args):
                checkpoint, _ = self.quantize(qformat, *args, *(() if "block" in args else self.calibration(4)))
                engine, built = self.build(checkpoint)
                self.assertIn(kind, built["weights"])
                self.assertIn("Paris", self.answer(engine))

    def test_a_build_quantises_by_itself_and_the_cache_too(self):
        for args in (("--qformat", "int8_wo"), ("--kv_cache_dtype", "fp8"), ("--kv_cache_dtype", "int8")):
            with self.subTest(args=args):
                engine, _ = self.build(DEMO, *args)
                self.assertIn("Paris", self.answer(engine))

    def test_the_loss_is_measured_and_can_be_refused(self):
        measured = ("--eval_dataset", pathlib.Path(DEMO) / "eval.jsonl", "--eval_size", 2)
        checkpoint, report = self.quantize("int8_wo", *measured, "--kv_cache_dtype", "fp8", *self.calibration(2))
        kl = report["evaluation"]["kl"]
        self.assertTrue(0 < kl < 1e-3, kl)
        self.build(checkpoint, "--max_kl", 2 * kl)
        self.assertTrue((self.dir / "engine" / "quantization_report.json").exists())
        build = ("build", "--checkpoint_dir", checkpoint, "--output_dir", self.dir / "other", "--no_timing")
        self.refused(*build, "--max_kl", kl / 2, names=("KL divergence", "--max_kl"))
        self.refused("build", "--checkpoint_dir", DEMO, "--output_dir", self.dir / "other", "--max_kl", 1,
                     names="nobody has measured")
        config = json.loads((checkpoint / "config.json").read_text())
        self.assertEqual(config["quantization_config"]["kv_cache_scheme"]["num_bits"], 8)
        engine, _ = self.build(checkpoint, "--kv_cache_dtype", "fp8")
        self.assertIn("Paris", self.answer(engine))

    def test_mixed_precision_meets_a_size(self):
        _, report = self.quantize("int4_wo", "--effective_bits", 5)
        lines = report["report"]
        bits = 8 * sum(l["bytes"] for l in lines) / sum(l["elements"] for l in lines)
        self.assertTrue(4.5 < bits <= 5, bits)
        self.assertEqual({l["scheme"].split()[0] for l in lines}, {"int4", "int8"})
        self.refused("quantize", "--model_dir", DEMO, "--output_dir", self.dir / "less", "--qformat", "int4_wo",
                     "--effective_bits", 3, names="--effective_bits")

    def test_mixed_precision_meets_a_loss(self):
        measured = ("--eval_dataset", pathlib.Path(DEMO) / "eval.jsonl", "--eval_size", 2)
        _, report = self.quantize("int4_wo", *measured, "--max_kl", 0.0008)
        self.assertLessEqual(report["evaluation"]["kl"], 0.0008)
        self.assertEqual({l["scheme"].split()[0] for l in report["report"]}, {"int4", "int8"})

    def test_a_calibration_goes_on(self):
        state = self.dir / "state"
        self.quantize("int4_awq", *self.calibration(3), "--calib_state", state)
        first = (self.dir / "int4_awq" / "model.safetensors").read_bytes()
        run = pinion("quantize", "--model_dir", DEMO, "--output_dir", self.dir / "again", "--qformat", "int4_awq",
                     *self.calibration(3), "--calib_state", state)
        self.assertIn("going on after 3 of 3 texts", run.stderr)
        self.assertEqual((self.dir / "again" / "model.safetensors").read_bytes(), first)
        self.refused("quantize", "--model_dir", DEMO, "--output_dir", self.dir / "other", "--qformat", "int4_awq",
                     *self.calibration(2), "--calib_state", state, names="state")

    def test_choices(self):
        questions = self.dir / "questions.jsonl"
        line = {"question": "What is the capital of France?", "choices": ["Paris", "Rome"], "answer": 0, "subject": "towns"}
        questions.write_text(json.dumps(line) + "\n" + json.dumps(line | {"answer": "B"}) + "\n")
        scores = json.loads(self.done("eval", "choices", DEMO, "--dataset", questions, "--json"))
        self.assertEqual((scores["questions"], scores["right"], scores["accuracy"]), (2, 1, 0.5))
        self.assertEqual(scores["subjects"]["towns"]["questions"], 2)
        questions.write_text('{"question": "a"}\n')
        self.refused("eval", "choices", DEMO, "--dataset", questions, names="questions.jsonl, line 1")

    def test_convert_quantises_as_the_guides_write_it(self):
        to = self.dir / "fp8"
        self.done("convert", "--model_dir", DEMO, "--output_dir", to, "--use_fp8")
        self.assertEqual(json.loads((to / "config.json").read_text())["quantization_config"]["format"], "float-quantized")
        self.refused("convert", "--model_dir", DEMO, "--output_dir", self.dir / "x", "--use_fp8", "--use_weight_only",
                     names="--use_fp8")
        self.refused("convert", "--model_dir", DEMO, "--output_dir", self.dir / "x", "--smoothquant", names="--smoothquant")

    def test_bad_input_is_named(self):
        out = ("quantize", "--model_dir", DEMO, "--output_dir", self.dir / "out")
        self.refused(*out, "--qformat", "int5", names=("int5", "int4_awq"))
        self.refused(*out, "--qformat", "int4_awq", names="--calib_dataset")
        self.refused(*out, "--qformat", "int4_wo", "--group_size", 48, names=("48", "model.layers.0"))
        self.refused(*out, "--qformat", "int4_wo", "--max_kl", 0.1, names="--eval_dataset")
        self.refused(*out, "--qformat", "fp8", "--kv_cache_dtype", "int3", names="int3")
        self.refused(*out, "--qformat", "fp8", "--weight_scales", "row", names=("row", "--weight_scales"))
        self.refused(*out, "--qformat", "int8_wo", "--weight_scales", "tensor", names="--weight_scales")
        self.refused(*out, "--qformat", "int4_awq", "--input_dtype", "int8", names="--input_dtype")
        self.refused(*out, "--qformat", "w4a8_awq", "--input_dtype", "int4", names="int4")
        self.refused(*out, "--qformat", "int8_wo", "--static_inputs", names="--static_inputs")
        self.refused(*out, "--qformat", "fp8", "--static_inputs", names="--calib_dataset")
        self.refused(*out, "--qformat", "fp8", "--input_range", "most", names=("most", "percentile"))
        bad = self.dir / "bad.jsonl"
        bad.write_text('{"text": "good"}\n{"text": 5}\n')
        self.refused(*out, "--qformat", "int4_awq", "--calib_dataset", bad, names="bad.jsonl, line 2")
        self.refused("build", "--checkpoint_dir", DEMO, "--output_dir", self.dir / "e", "--qformat", "int4_awq",
                     names="calibration")
        self.refused("build", "--checkpoint_dir", DEMO, "--output_dir", self.dir / "e", "--kv_cache_dtype", "int4",
                     names="int4")
        gguf = self.dir / "bad.gguf"
        gguf.write_bytes(b"GGUF" + bytes(20))
        self.refused("build", "--checkpoint_dir", gguf, "--output_dir", self.dir / "e", names="bad.gguf")


if __name__ == "__main__":
    command.main()
