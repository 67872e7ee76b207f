"""Times cuDNN's attention through PyTorch on bench_attention's shapes, contiguous keys and values, and prints both.

    bench_attention time --json a.json; python3 sdpa.py a.json [--json ratios.json]

One layer's call is timed as a chain over layers with keys and values of their own inside one CUDA graph.
"""
import json
import math
import re
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS = 32, 8


def time_graph(call, layers, replays=15):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for layer in range(layers):
            call(layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for layer in range(layers):
            call(layer)
    times = []
    for i in range(replays + 2):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        b.synchronize()
        if i >= 2:
            times.append(a.elapsed_time(b) * 1e3 / layers)
    return sorted(times)[len(times) // 2]


def sdpa_us(batch, tokens, context, dim, layers):
    def random(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    q = random(batch, HEADS, tokens, dim)
    keys = [(random(batch, KV_HEADS, context, dim), random(batch, KV_HEADS, context, dim)) for _ in range(layers)]
    causal = tokens == context and tokens > 1

    def call(layer):
        k, v = keys[layer]
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return time_graph(call, layers)


def shape_of(name):
    if m := re.match(r"decode (\d+)x(\d+)k$", name):
        return int(m[1]), 1, int(m[2]) * 1024, 128
    if m := re.match(r"prefill (\d+)@(\d+) x(\d+)$", name):
        return (1, int(m[1]), int(m[2]), int(m[3])) if m[1] == m[2] else None
    return None


def main():
    measured = json.load(open(sys.argv[1]))
    ceiling, rows, known = measured["read_tbps"], {}, {}
    print(f"read ceiling {ceiling:.3f} TB/s; PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    for name, ours in measured["cases"].items():
        case, kernel = name.rsplit(" ", 1)
        shape = shape_of(case)
        if shape and case not in known:
            batch, tokens, context, dim = shape
            layers = min(64, max(2, math.ceil(1e9 / (batch * context * 4 * KV_HEADS * dim))))
            try:
                known[case] = sdpa_us(*shape, layers if tokens == 1 else 2)
            except RuntimeError as error:
                print(f"{case}: cuDNN refuses: {str(error).splitlines()[0]}")
        rate = f"{ours['tbps']:.2f} TB/s = {ours['tbps'] / ceiling:.3f}" if "decode" in case else f"{ours['tflops']:.0f} TFLOP/s"
        peer = known.get(case)
        row = f"{case:24} {kernel:26} {ours['us']:9.2f} us  {rate:20}"
        if peer:
            row += f"  cuDNN {peer:9.2f} us, ratio {peer / ours['us']:.2f}"
            rows[name] = dict(ours, cudnn_us=peer)
        print(row, flush=True)
        torch.cuda.empty_cache()
    if "--json" in sys.argv:
        json.dump({"read_tbps": ceiling, "cases": rows}, open(sys.argv[sys.argv.index("--json") + 1], "w"), indent=1)


main()
