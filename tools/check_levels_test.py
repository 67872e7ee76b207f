#!/usr/bin/env python3
"""Plants violations in a small tree and sees that check_levels.py finds each of them, and nothing in the clean tree."""
import os
import tempfile
import unittest

import check_levels

LIBRARIES = {"base": 0, "graph": 2, "backend": 3, "backend/cpu": 4, "backend/reference": 4, "backend/cuda": 4,
             "backend/all": 5, "compiler": 5, "runtime": 5}


class Levels(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        for name, level in LIBRARIES.items():
            self.write(f"{name}/CMakeLists.txt", f"pinion_library(NAME {name} LEVEL {level}\n  SRCS a.cc)\n")
        self.write("cli/CMakeLists.txt", "add_executable(pinion main.cc)\n")
        self.write("base/a.h", "#include <vector>\n")
        self.write("graph/a.cc", '#include "graph/a.h"\n\n#include "base/a.h"\n')
        self.write("backend/cpu/kernels/a.cc", '#include "backend/cpu/a.h"\n#include "backend/kernel.h"\n')
        self.write("backend/all/a.cc", '#include "backend/cpu/a.h"\n#include "backend/reference/a.h"\n')
        self.write("backend/cuda/a.cu", "#include <cuda_runtime.h>\n")
        self.write("cli/main.cc", '#include "compiler/a.h"\n#include "runtime/a.h"\n')

    def write(self, path, text):
        full = os.path.join(self.dir.name, "src", path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as f:
            f.write(text)

    def expect(self, where, why):
        found, _ = check_levels.check_tree(self.dir.name)
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(f"src/{where}: "), found)
        self.assertIn(why, found[0])

    def test_clean(self):
        found, count = check_levels.check_tree(self.dir.name)
        self.assertEqual((found, count), ([], 6))

    def test_higher_level(self):
        self.write("base/b.cc", '// idea\n#include "graph/a.h"\n')
        self.expect("base/b.cc:2", "base [0] may not include graph [2]")

    def test_backend_siblings(self):
        self.write("backend/cpu/b.cc", '#include "backend/reference/a.h"\n')
        self.expect("backend/cpu/b.cc:1", "siblings")

    def test_compiler_and_runtime(self):
        self.write("runtime/b.cc", '#include "base/a.h"\n  #  include "compiler/a.h"\n')
        self.expect("runtime/b.cc:2", "never include each other")

    def test_cuda_outside_its_folder(self):
        self.write("runtime/b.h", "#include <cuda_runtime.h>\n")
        self.expect("runtime/b.h:1", "only under backend/cuda")

    def test_relative_include(self):
        self.write("graph/b.cc", '#include "a.h"\n')
        self.expect("graph/b.cc:1", "from src/")

    def test_folder_without_level(self):
        self.write("misc/b.cc", '#include "base/a.h"\n')
        self.expect("misc/b.cc:1", "no level")


if __name__ == "__main__":
    unittest.main()
