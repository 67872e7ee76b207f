#!/usr/bin/env python3
"""Every quantised format on a model and a data set against the same model in float32: quantises, builds, evaluates, and
prints docs/performance/accuracy.md's table. The bounds are 1.25 times what a float32 simulation of each format gives on
demo/eval.jsonl; they mean something for that model and data alone. Status 1: a bound is missed.
Usage: accuracy.py PINION [--model DIR] [--dataset FILE] [--calib FILE] [--limit N] [--only NAME …]"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

AWQ, SQ = ["--qformat", "int4_awq"], ["--qformat", "int8_sq"]
RTN, W4A8 = ["--qformat", "int4_wo"], ["--qformat", "w4a8_awq"]
FP8 = ["--qformat", "fp8"]
STATIC = ["--static_inputs"]
# A bfloat16 checkpoint's weights are float32's, products and sums are float32 anyway, and matrix units take them: a
# bfloat16 build with a float32 cache is the float32 model, sooner.
EXACT = ["--dtype", "bfloat16", "--kv_cache_dtype", "float32"]
REFERENCE = ["--against_dtype", "bfloat16", "--against_kv_cache_dtype", "float32"]
# What, `pinion quantize`'s flags (None: the float model), flags of `pinion eval`, the simulation's KL divergence.
ROWS = [
    ("bfloat16", None, ["--dtype", "bfloat16"], None),
    ("float32", None, ["--dtype", "float32"], 1e-9),
    ("fp8 per tensor, static inputs", FP8 + ["--weight_scales", "tensor"] + STATIC, [], 1.1e-4),
    ("fp8 per channel, inputs per token", FP8, [], 9.9e-5),
    ("fp8 in blocks of 128x128, inputs per token and 128", FP8 + ["--weight_scales", "block"], [], None),
    ("int8_wo", ["--qformat", "int8_wo"], [], 1.1e-5),
    ("W8A8, inputs per token, no smoothing", SQ + ["--smooth_alpha", "0"], [], 6.9e-5),
    ("W8A8, static inputs, no smoothing", SQ + ["--smooth_alpha", "0"] + STATIC, [], 1.4e-3),
    ("int8_sq, inputs per token", SQ, [], 6.9e-5),
    ("int8_sq, static inputs", SQ + STATIC, [], 1.4e-3),
    ("int4_wo group 32, zero points", RTN + ["--group_size", "32"], [], 6.6e-4),
    ("int4_wo group 64, zero points", RTN + ["--group_size", "64"], [], 9.2e-4),
    ("int4_wo group 128, zero points", RTN, [], 1.3e-3),
    ("int4_awq group 128, zero points", AWQ, [], 1.1e-3),
    ("int4_awq group 128, symmetric", AWQ + ["--symmetric"], [], 1.6e-3),
    ("int4_gptq group 128", ["--qformat", "int4_gptq"], [], None),
    ("w4a8_awq, fp8 inputs", W4A8, [], 1.2e-3),
    ("w4a8_awq, int8 inputs", W4A8 + ["--input_dtype", "int8"], [], 1.2e-3),
    ("nvfp4", ["--qformat", "nvfp4"], [], 7.7e-4),
    ("mxfp4", ["--qformat", "mxfp4"], [], 1.7e-3),
    ("KV cache fp8, unit scales", None, ["--dtype", "bfloat16", "--kv_cache_dtype", "fp8"], 2e-5),
    ("KV cache int8", None, ["--dtype", "bfloat16", "--kv_cache_dtype", "int8"], 1e-6),
]
SLACK, MOST_PERPLEXITY = 1.25, 1.0025


def run(*command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"accuracy.py: {' '.join(map(str, command))} ended with {done.returncode}")
    return json.loads(done.stdout)


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("pinion", type=pathlib.Path)
    options.add_argument("--model", default=here / "demo", type=pathlib.Path)
    options.add_argument("--dataset", default=here / "demo/eval.jsonl", type=pathlib.Path)
    options.add_argument("--calib", default=here / "demo/calib.jsonl", type=pathlib.Path)
    options.add_argument("--limit", default=0, type=int, help="lines of the data set; 0: all")
    options.add_argument("--only", nargs="*", default=[], help="rows whose name contains one of these")
    a = options.parse_args()
    missed, reference = [], None
    print("| format | KL divergence per token | simulated | perplexity | same most likely token |\n|---|---|---|---|---|",
          flush=True)
    with tempfile.TemporaryDirectory(prefix="pinion-accuracy-") as scratch:
        scratch = pathlib.Path(scratch)
        os.environ["PINION_CACHE"] = str(scratch / "cache")
        for name, quantize, flags, simulated in ROWS:
            if a.only and not any(part in name for part in a.only):
                continue
            model = a.model
            if quantize is not None:
                model = scratch / "model"
                if "--static_inputs" in quantize or not {"fp8", "int8_wo", "int4_wo", "nvfp4", "mxfp4"} & set(quantize):
                    # One calibration serves all formats.
                    quantize = quantize + ["--calib_dataset", a.calib, "--calib_state", scratch / "state"]
                run(a.pinion, "quantize", "--model_dir", a.model, "--output_dir", model, "--json", *quantize)
            e = run(a.pinion, "eval", "agreement", model, "--against", a.model, "--dataset", a.dataset, "--limit", a.limit,
                    "--no_timing", "--json", *REFERENCE, *(flags or EXACT))
            reference = e["reference_perplexity"]
            bound = "" if simulated is None else f"{simulated:.1e}"
            print(f"| {name} | {e['kl']:.2e} | {bound} | {e['perplexity']:.4f} | {100 * e['top1']:.2f} % |", flush=True)
            if simulated is not None and e["kl"] > SLACK * simulated:
                missed.append(f"{name}: KL divergence {e['kl']:.3g}, at most {SLACK * simulated:.3g}")
            if e["perplexity"] > MOST_PERPLEXITY * reference:
                missed.append(f"{name}: perplexity {e['perplexity']:.4f}, at most {MOST_PERPLEXITY * reference:.4f}")
            tokens = e["tokens"]
    if reference is None:
        sys.exit("accuracy.py: no row has such a name")
    print(f"\n{tokens} tokens, float32 perplexity {reference:.4f}")
    for line in missed:
        print("missed:", line)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
