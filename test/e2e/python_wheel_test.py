#!/usr/bin/env python3
"""The wheel of ./python holds its types, passes mypy --strict with a program that uses it, runs the guides' examples, and
its programs end when they are told. Usage: python_wheel_test.py PINION MODEL WHEEL_DIRECTORY (of build_wheel)."""
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile

import pinion_server

PINION, MODEL, WHEEL = sys.argv.pop(1), sys.argv.pop(1), pathlib.Path(sys.argv.pop(1))
EXAMPLE = pathlib.Path(__file__).with_name("llm_api_example.py")
LONG = """
import sys
from pinion import LLM, SamplingParams
llm = LLM(sys.argv[1], kv_cache_free_gpu_memory_fraction=0.1)
params = SamplingParams(max_tokens=1900, ignore_eos=True)
try:
    print("running", flush=True)
    for _ in range(100):
        llm.generate([[5, 6, 7]] * 4, params)
except KeyboardInterrupt:
    while llm.stats().running:
        pass
    print(llm.stats().requests_cancelled, len(llm.generate([5, 6, 7], SamplingParams(max_tokens=3)).outputs))
"""
LOADS = """
import sys
from pinion import LLM
llm = None
try:
    print("loading", flush=True)
    llm = LLM(sys.argv[1])
except KeyboardInterrupt:
    print("nothing" if llm is None else "loaded", flush=True)
"""
ENDS_EARLY = """
import sys
from pinion import LLM, SamplingParams
llm = LLM(sys.argv[1], kv_cache_free_gpu_memory_fraction=0.1)
left = llm.generate_async([5, 6, 7], SamplingParams(max_tokens=1900, ignore_eos=True), streaming=True)
next(iter(left))
sys.exit(7)
"""


class Wheel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.environment = os.environ | {"PYTHONPATH": str(WHEEL / "installed")}
        cls.engine = pinion_server.build(PINION, MODEL, cls.directory.name + "/engine")

    @classmethod
    def run_ok(cls, *command, **options):
        made = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, **options)
        if made.returncode != 0:
            raise AssertionError(f"{command}: {made.stdout}{made.stderr}")
        return made.stdout

    def test_the_wheel_says_that_it_has_types(self):
        wheel, = (WHEEL / "wheels").glob("pinion-*.whl")
        with zipfile.ZipFile(wheel) as content:
            names = content.namelist()
        self.assertLessEqual({"pinion/py.typed", "pinion/_engine.pyi", "pinion/_llm.py"}, set(names))
        self.assertEqual(len([n for n in names if n.endswith(".so")]), 1)
        self.assertFalse([n for n in names if not n.startswith("pinion")], "only the package itself is installed")

    def test_types_hold_strictly(self):
        self.run_ok("-m", "mypy", "--strict", "--cache-dir", self.directory.name + "/mypy",
                    WHEEL / "installed" / "pinion", EXAMPLE, env=self.environment)

    def test_the_guides_examples_run(self):
        out = self.run_ok(EXAMPLE, self.engine, env=self.environment, cwd=self.directory.name)
        self.assertIn("Prompt: 'The capital of France is', Generated text: ", out)
        self.assertIn("lora_dir", out)

    def start(self, program, model=None, **environment):
        return subprocess.Popen([sys.executable, "-c", program, model or self.engine], env=self.environment | environment,
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_ctrl_c_ends_a_generation_and_the_model_goes_on(self):
        program = self.start(LONG)
        self.assertEqual(program.stdout.readline(), "running\n")
        time.sleep(0.3)
        began = time.monotonic()
        program.send_signal(signal.SIGINT)
        out, error = program.communicate(timeout=60)
        self.assertLess(time.monotonic() - began, 10)
        self.assertEqual((program.returncode, out, error), (0, "4 1\n", ""))

    def test_ctrl_c_is_heard_while_a_model_is_compiled(self):
        program = self.start(LOADS, MODEL, PINION_CACHE=self.directory.name + "/cold")
        self.assertEqual(program.stdout.readline(), "loading\n")
        program.send_signal(signal.SIGINT)
        out, error = program.communicate(timeout=60)
        self.assertEqual((program.returncode, out, error), (0, "nothing\n", ""))

    def test_a_program_ends_while_its_model_works(self):
        program = self.start(ENDS_EARLY)
        out, error = program.communicate(timeout=60)
        self.assertEqual((program.returncode, out, error), (7, "", ""))


if __name__ == "__main__":
    unittest.main(verbosity=2)
