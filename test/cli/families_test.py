#!/usr/bin/env python3
"""Every golden family through the verbs, as a user goes: convert, build, generate; the tokens are those that transformers
chooses. Then divided over two tensor-parallel ranks: put together by what the ranks' config.json say, here and by build
itself, they give the same engine, byte for byte, and so the same tokens.

usage: families_test.py PINION GOLDEN_DIR [FAMILY...]
"""
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

TOKENS = 12
SIZES = {"BF16": 2, "F16": 2, "F32": 4}


def read_tensors(path):
    """name -> (dtype, shape, bytes) of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: (t["dtype"], t["shape"], data[start + t["data_offsets"][0] : start + t["data_offsets"][1]])
        for name, t in header.items()
    }


def write_tensors(path, tensors):
    header, blobs, at = {}, [], 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        blobs.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def put_together(ranks):
    """The tensors of a checkpoint from its ranks' directories; every element comes from some rank, and alike from all."""
    whole = {}
    for rank in ranks:
        slices = json.loads((rank / "config.json").read_text())["pinion"]["slices"]
        for name, (dtype, shape, data) in read_tensors(rank / "model.safetensors").items():
            axis, begin, end, length = slices.get(name, [0, 0, shape[0], shape[0]])
            size = SIZES[dtype]
            full = shape[:axis] + [length] + shape[axis + 1 :]
            before, after = 1, size
            for n in shape[:axis]:
                before *= n
            for n in shape[axis + 1 :]:
                after *= n
            run = (end - begin) * after
            assert len(data) == before * run, f"{name}: the slice is not of the size that config.json says"
            kind, dims, into, covered = whole.setdefault(
                name, (dtype, full, bytearray(before * length * after), bytearray(before * length))
            )
            assert (kind, dims) == (dtype, full), f"{name}: the ranks do not agree"
            for b in range(before):
                to, piece = (b * length + begin) * after, data[b * run : (b + 1) * run]
                for i in range(begin, end):
                    if covered[b * length + i]:
                        at = (b * length + i) * after
                        assert into[at : at + after] == piece[(i - begin) * after :][:after], f"{name}: ranks differ"
                    covered[b * length + i] = 1
                into[to : to + run] = piece
    for name, (_, _, _, covered) in whole.items():
        assert all(covered), f"{name}: no rank holds all of it"
    return {name: (dtype, shape, bytes(data)) for name, (dtype, shape, data, _) in whole.items()}


def check_family(pinion, golden, scratch):
    def run(*args):
        done = subprocess.run([pinion, *map(str, args)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"pinion {' '.join(map(str, args))}: {done.stderr}"
        return done.stdout

    def generate(model):
        ids = struct.iter_unpack("<i", tensors["mid.input_ids"][2])
        out = run("generate", model, "--input_ids", ",".join(str(i) for (i,) in ids), "--max_new_tokens", TOKENS,
                  "--temperature", 0, "--ignore_eos", "--threads", 1, "--json")
        return json.loads(out)["tokens"]

    tensors = read_tensors(golden / "golden.safetensors")
    want = [i for (i,) in struct.iter_unpack("<i", tensors["mid.greedy"][2])][:TOKENS]
    source = scratch / "source"  # what is published, without the answers beside it
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / name, source)
    checkpoint, engine, divided = scratch / "checkpoint", scratch / "engine", scratch / "divided"
    build = ("--dtype", "float32", "--no_timing", "--threads", 1)
    run("convert", "--model_dir", source, "--output_dir", checkpoint, "--dtype", "float32")
    run("build", "--checkpoint_dir", checkpoint, "--output_dir", engine, *build)
    got = generate(engine)
    assert got == want, f"tokens {got}, transformers has {want}"

    run("convert", "--model_dir", source, "--output_dir", divided, "--tp_size", 2)
    again = scratch / "again"
    again.mkdir()
    config = json.loads((divided / "config.json").read_text())
    del config["pinion"]
    (again / "config.json").write_text(json.dumps(config))
    write_tensors(again / "model.safetensors", put_together([divided / "rank0", divided / "rank1"]))
    for name, checkpoint in (("again-engine", again), ("divided-engine", divided)):
        run("build", "--checkpoint_dir", checkpoint, "--output_dir", scratch / name, *build)
        a, b = engine / "rank0.engine", scratch / name / "rank0.engine"
        assert a.read_bytes() == b.read_bytes(), f"the ranks put together ({name}) are other weights"
    assert generate(scratch / "divided-engine") == want, "the ranks put together give other tokens"


def main():
    pinion, golden = sys.argv[1], pathlib.Path(sys.argv[2]) / "families"
    families = sorted(d.name for d in golden.iterdir() if (d / "golden.safetensors").exists())
    assert len(families) >= 41, f"only {len(families)} golden families in {golden}"
    families = sys.argv[3:] or families

    def one(family):
        with tempfile.TemporaryDirectory(prefix="pinion-family-") as scratch:
            try:
                check_family(pinion, golden / family, pathlib.Path(scratch))
            except Exception as e:  # every family is reported
                return f"{family}: {e}"
        return None

    with ThreadPoolExecutor(2) as pool:
        failed = [f for f in pool.map(one, families) if f]
    print(*failed, sep="\n")
    print(f"{len(families) - len(failed)} of {len(families)} families convert, build, generate and divide")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
