"""The program as the command-line tests run it, and what every refusal has in common."""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

PINION, DEMO = sys.argv[1:3]
ERROR = re.compile(r"error: .+ \(.+\) — .+")


def pinion(*args, stdin="", **options):
    return subprocess.run([PINION, *map(str, args)], input=stdin, capture_output=True, text=True, errors="replace",
                          timeout=120, **options)


class CommandTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="pinion-cli-")
        self.addCleanup(scratch.cleanup)
        self.dir = pathlib.Path(scratch.name)

    def model(self, name="model"):
        """A copy of the demo model that a test may damage; its weights are links until they are written anew."""
        copy = self.dir / name
        copy.mkdir()
        for file in pathlib.Path(DEMO).iterdir():
            if file.is_file():
                shutil.copy(file, copy)
        return copy

    def refused(self, *args, names=(), status=2, stdin="", **options):
        """Runs the command: it must end with `status` and one line `error: what (where) — what to do` that holds
        all of `names`; nothing on standard output, no temporary file left in the scratch directory. Returns the line."""
        before = self.files()
        run = pinion(*args, stdin=stdin, **options)
        what = f"pinion {' '.join(map(str, args))}\nstatus {run.returncode}\n{run.stdout[:500]}{run.stderr[:2000]}"
        self.assertEqual(run.returncode, status, what)
        lines = run.stderr.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, what)
        self.assertEqual(lines[-1], errors[0], what)  # a log line may come before it, nothing behind
        self.assertEqual(run.stdout, "", what)
        self.assertRegex(errors[0], ERROR, what)
        self.assertNotIn("bug in Pinion", errors[0], what)
        self.assertLess(len(errors[0]), 2000, what)
        for name in (names,) if isinstance(names, str) else names:
            self.assertIn(str(name), errors[0], what)
        self.assertEqual(self.files() - before, set(), "files were left behind: " + what)
        return errors[0]

    def files(self):
        return {str(p) for p in self.dir.rglob("*")}


def main():
    unittest.main(argv=sys.argv[:1], verbosity=1)
