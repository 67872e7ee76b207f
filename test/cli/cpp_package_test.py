#!/usr/bin/env python3
"""examples/ against an installed tree: cpp_package_test.py PINION MODEL BUILD_DIR CMAKE. What is built is installed."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

PINION, MODEL, BUILD, CMAKE = (sys.argv.pop(1) for _ in range(4))
EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


def run(*command):
    made = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600)
    if made.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {made.stdout}{made.stderr}")
    return made.stdout


class Package(unittest.TestCase):
    def test_an_example_is_built_and_answers_as_the_program_does(self):
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            run(CMAKE, "--install", BUILD, "--prefix", root / "prefix")
            run(CMAKE, "-G", "Ninja", "-S", EXAMPLES, "-B", root / "build", f"-DCMAKE_PREFIX_PATH={root / 'prefix'}")
            run(CMAKE, "--build", root / "build")
            run(PINION, "build", "--checkpoint_dir", MODEL, "--output_dir", root / "engine", "--no_timing")
            prompt = "The capital of France is"
            wanted = run(root / "prefix" / "bin" / "pinion", "generate", root / "engine", "--raw", "--prompt", prompt,
                         "--temperature", 0, "--max_tokens", 32)
            said = run(root / "build" / "generate", root / "engine", prompt)
            self.assertGreater(len(said.strip()), 3)
            self.assertEqual(said.strip(), wanted.strip())


if __name__ == "__main__":
    unittest.main()
