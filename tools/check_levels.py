#!/usr/bin/env python3
"""Checks that every #include under src/ obeys the levels: a folder may include only folders of a lower level.

The levels come from the LEVEL of each pinion_library(...) in the CMakeLists.txt files, so they are written once. Also checked:
siblings under backend/ never include each other (backend/all may), compiler/ and runtime/ never include each other, and
CUDA's headers appear only under backend/cuda/. Prints file:line and the rule for each violation; exit status 1 if there is one.

    check_levels.py [ROOT]      ROOT: the repository, by default the one this script lies in
"""
import os
import re
import sys

LIBRARY = re.compile(r"pinion_library\s*\(\s*NAME\s+([\w/]+)\s+LEVEL\s+(\d+)")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')
SOURCES = (".h", ".cc", ".cu", ".cuh", ".inc")
CUDA = re.compile(r"^(cuda|cublas|cudnn|nccl|cute/|cutlass/)")
TOP = 1_000_000  # a program: above every library


def read_levels(src):
    """Folder -> level. A folder whose CMakeLists.txt only makes a program stands above all libraries."""
    levels, programs = {}, []
    for folder, _, files in os.walk(src):
        if "CMakeLists.txt" not in files:
            continue
        with open(os.path.join(folder, "CMakeLists.txt"), encoding="utf-8") as f:
            text = re.sub(r"#.*", "", f.read())
        for name, level in LIBRARY.findall(text):
            levels[name] = int(level)
        if "add_executable" in text:
            programs.append(os.path.relpath(folder, src))
    for name in programs:
        levels.setdefault(name, TOP)
    return levels


def folder_of(path, levels):
    """The library that `path` (relative to src/) belongs to: the longest prefix that has a level; None if none has."""
    parts = path.split("/")[:-1]
    while parts:
        name = "/".join(parts)
        if name in levels:
            return name
        parts.pop()
    return None


def backend_sibling(folder):
    parts = folder.split("/")
    return parts[1] if parts[0] == "backend" and len(parts) > 1 else None


def violation(path, target, quoted, levels):
    """What is wrong with `path` including `target`, or None."""
    own = folder_of(path, levels)
    if CUDA.match(target) and not (own or "").startswith("backend/cuda"):
        return "CUDA's headers appear only under backend/cuda"
    if not quoted:
        return None
    if "/" not in target:
        return 'write the path from src/, as "folder/file.h"'
    other = folder_of(target, levels)
    if own is None:
        return "this folder has no level: give it a pinion_library(NAME ... LEVEL ...)"
    if other is None:
        return "the included folder has no level"
    if own == other:
        return None
    mine, theirs = backend_sibling(own), backend_sibling(other)
    if mine and theirs and mine != theirs and mine != "all":
        return f"backend siblings never include each other: {own}, {other}"
    if {own, other} == {"compiler", "runtime"}:
        return "compiler and runtime never include each other: the engine file is all they share"
    if levels[other] >= levels[own]:
        return f"{own} [{levels[own]}] may not include {other} [{levels[other]}]: only lower levels are allowed"
    return None


def check_tree(root):
    """(violations as printable lines, number of files read)"""
    src = os.path.join(root, "src")
    levels = read_levels(src)
    found, count = [], 0
    for folder, dirs, files in os.walk(src):
        dirs.sort()
        for name in sorted(files):
            if not name.endswith(SOURCES):
                continue
            count += 1
            full = os.path.join(folder, name)
            path = os.path.relpath(full, src)
            with open(full, encoding="utf-8") as f:
                for number, line in enumerate(f, 1):
                    match = INCLUDE.match(line)
                    if not match:
                        continue
                    why = violation(path, match[1] or match[2], match[1] is not None, levels)
                    if why:
                        found.append(f"src/{path}:{number}: {line.strip()} — {why}")
    return found, count


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    found, count = check_tree(root)
    for line in found:
        print(line)
    print(f"levels: {count} files, {len(found)} violations")
    if count == 0:
        print("error: no source files found — is ROOT the repository?", file=sys.stderr)
        return 2
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
