#!/usr/bin/env python3
"""The wheel of ./python builds, holds its types, passes mypy --strict with a program that uses it, and runs the guides'
examples. Usage: python_wheel_test.py PINION MODEL PACKAGE_DIRECTORY, with the clients' environment."""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile

import pinion_server

PINION, MODEL, PACKAGE = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
EXAMPLE = pathlib.Path(__file__).with_name("llm_api_example.py")
LONG = """
import sys
from pinion import LLM, SamplingParams
llm = LLM(sys.argv[1], kv_cache_free_gpu_memory_fraction=0.1)
print(llm._process.pid, flush=True)
llm.generate([[5, 6, 7]] * 4, SamplingParams(max_tokens=4000, ignore_eos=True))
"""


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Wheel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        root = pathlib.Path(cls.directory.name)
        shutil.copytree(PACKAGE, root / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        cls.run_ok("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w",
                   root / "wheels", root / "source")
        cls.wheel, = (root / "wheels").glob("pinion-*.whl")
        cls.installed = root / "installed"
        with zipfile.ZipFile(cls.wheel) as wheel:
            cls.names = wheel.namelist()
            wheel.extractall(cls.installed)
        cls.environment = os.environ | {"PYTHONPATH": str(cls.installed), "PINION_BINARY": PINION}
        cls.engine = pinion_server.build(PINION, MODEL, root / "engine")

    @classmethod
    def run_ok(cls, *command, **options):
        made = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, **options)
        if made.returncode != 0:
            raise AssertionError(f"{command}: {made.stdout}{made.stderr}")
        return made.stdout

    def test_the_wheel_says_that_it_has_types(self):
        self.assertIn("pinion/py.typed", self.names)
        self.assertTrue(self.wheel.name.endswith("-py3-none-any.whl"))

    def test_types_hold_strictly(self):
        self.run_ok("-m", "mypy", "--strict", "--cache-dir", self.directory.name + "/mypy",
                    self.installed / "pinion", EXAMPLE, env=self.environment)

    def test_the_guides_examples_run(self):
        out = self.run_ok(EXAMPLE, self.engine, env=self.environment, cwd=self.directory.name)
        self.assertIn("Prompt: 'The capital of France is', Generated text: ", out)
        self.assertIn("lora_dir", out)

    def test_no_process_is_left(self):
        for how, status in ((signal.SIGINT, None), (signal.SIGKILL, -signal.SIGKILL)):
            program = subprocess.Popen([sys.executable, "-c", LONG, self.engine], env=self.environment, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            child = int(program.stdout.readline())
            time.sleep(0.3)
            self.assertTrue(alive(child))
            program.send_signal(how)
            got = program.wait(60)
            program.stdout.close()
            if status is not None:
                self.assertEqual(got, status)
            else:
                self.assertNotEqual(got, 0)
            end = time.monotonic() + 10
            while alive(child) and time.monotonic() < end:
                time.sleep(0.02)
            self.assertFalse(alive(child), f"after {how.name} the model's process {child} runs on")


if __name__ == "__main__":
    unittest.main(verbosity=2)
