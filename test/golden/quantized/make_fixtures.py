#!/usr/bin/env python3
"""Writes the fixtures of quantised checkpoints: small linears packed by the tools' own code, and what they stand for.

    python3 -m venv VENV && VENV/bin/pip install torch numpy safetensors compressed-tensors
    VENV/bin/pip install --no-deps autoawq auto-gptq
    VENV/bin/python make_fixtures.py DIR && ../pack DIR checkpoints.tar.xz

Each folder is a checkpoint (config.json with the tool's quantization_config, model.safetensors) with expected.safetensors:
per linear the dense float32 weight, by the tool's own unpacking where it has one, and by numpy from the format's
definition where it has none (said in `origin` of its metadata).
"""
import importlib.util
import json
import os
import sys
import types

import numpy as np
import torch
from safetensors.torch import save_file

OUT = sys.argv[1]
SITE = next(p for p in sys.path if p.endswith("site-packages"))
UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
torch.manual_seed(20)


def weight(n, k):
    return torch.randn(n, k) * 0.02


def write(folder, quantization, tensors, expected, origin, side_file=None):
    path = os.path.join(OUT, folder)
    os.makedirs(path, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if side_file:
        with open(os.path.join(path, side_file), "w") as f:
            json.dump(quantization, f, indent=1)
    elif quantization:
        config["quantization_config"] = quantization
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config, f, indent=1)
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(path, "model.safetensors"))
    save_file({k: v.float().contiguous() for k, v in expected.items()}, os.path.join(path, "expected.safetensors"),
              {"origin": origin})


def load_source(name, path, **stubs):
    """A module of a package whose own __init__ needs a GPU."""
    for stub, members in stubs.items():
        parts = stub.split("__")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        for key, value in members.items():
            setattr(sys.modules[".".join(parts)], key, value)
    spec = importlib.util.spec_from_file_location(name, os.path.join(SITE, path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def groups(w, g):
    return w.reshape(w.shape[0], -1, g)


def awq():
    packing = load_source("packing_utils", "awq/utils/packing_utils.py")
    gemm = load_source("awq_gemm", "awq/modules/linear/gemm.py",
                       awq__utils__module={"try_import": lambda name: (None, "")},
                       awq__utils__utils={"get_best_device": lambda: "cpu"},
                       awq__utils__packing_utils={"dequantize_gemm": packing.dequantize_gemm})
    tensors, expected = {}, {}
    for prefix, n, k, g in ((UP, 32, 64, 32), (DOWN, 64, 96, 32)):
        linear = torch.nn.Linear(k, n, bias=False)
        w = weight(n, k)
        lo, hi = groups(w, g).amin(-1), groups(w, g).amax(-1)
        scales = ((hi - lo).clamp(min=1e-5) / 15).half().float()
        zeros = (-torch.round(lo / scales)).clamp(0, 15)
        q = (torch.round(groups(w, g) / scales[..., None]) + zeros[..., None]).clamp(0, 15)
        linear.weight.data = ((q - zeros[..., None]) * scales[..., None]).reshape(n, k)
        packed = gemm.WQLinear_GEMM.from_linear(linear, 4, g, scales=scales.t().contiguous(), zeros=zeros.t().contiguous())
        tensors |= {f"{prefix}.{p}": getattr(packed, p) for p in ("qweight", "qzeros", "scales")}
        expected[prefix] = packing.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, g).t()
    tensors["model.norm.weight"] = torch.ones(64)
    write("awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, tensors,
          expected, "autoawq WQLinear_GEMM.from_linear and dequantize_gemm")


def gptq():
    conv = type("Conv1D", (), {})
    linear_module = load_source("qlinear_cuda", "auto_gptq/nn_modules/qlinear/qlinear_cuda.py",
                                transformers__pytorch_utils={"Conv1D": conv})
    sys.modules["transformers"].pytorch_utils = sys.modules["transformers.pytorch_utils"]
    for name, bits, g, act_order, version in (("gptq_4bit", 4, 32, False, 1), ("gptq_4bit_act_order", 4, 32, True, 1),
                                              ("gptq_3bit", 3, 32, False, 1), ("gptq_8bit_v2", 8, 64, False, 2)):
        n, k = 32, 128
        w = weight(n, k)
        index = torch.arange(k) // g
        if act_order:
            index = index[torch.randperm(k)]
        sym = act_order
        scales, zeros = torch.zeros(n, k // g), torch.zeros(n, k // g)
        for i in range(k // g):
            part = w[:, index == i]
            lo, hi = part.amin(1), part.amax(1)
            if sym:
                scales[:, i] = torch.maximum(-lo, hi) * 2 / (2**bits - 1)
                zeros[:, i] = 2 ** (bits - 1)
            else:
                scales[:, i] = (hi - lo) / (2**bits - 1)
        scales = scales.half().float()
        if not sym:
            for i in range(k // g):
                zeros[:, i] = torch.round(-w[:, index == i].amin(1) / scales[:, i]).clamp(1, 2**bits - 1)
        s, z = scales[:, index], zeros[:, index]
        q = (torch.round(w / s) + z).clamp(0, 2**bits - 1)
        linear = torch.nn.Linear(k, n, bias=False)
        linear.weight.data = (q - z) * s
        packed = linear_module.QuantLinear(bits, g, k, n, False, weight_dtype=torch.float32)
        packed.pack(linear, scales, zeros, index.int())
        tensors = {f"{UP}.{p}": getattr(packed, p) for p in ("qweight", "qzeros", "g_idx")}
        tensors[f"{UP}.scales"] = packed.scales.half()
        if version == 2:  # the stored zero point is the zero point: add the one that the first version took away
            words = tensors[f"{UP}.qzeros"].numpy().view(np.uint8)
            tensors[f"{UP}.qzeros"] = torch.from_numpy((words + 1).astype(np.uint8).view(np.int32))
        x = torch.eye(k)
        packed.autogptq_cuda_available = False
        expected = {UP: ((q - z) * s) if version == 2 else packed(x).t().float()}
        config = {"quant_method": "gptq", "bits": bits, "group_size": g, "desc_act": act_order, "sym": sym,
                  "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
        write(name, config, tensors, expected, "auto-gptq QuantLinear.pack"
              + (" and forward" if version == 1 else ", zero points made version 2; the values before packing"))


def compressed_tensors():
    from compressed_tensors.compressors import BaseCompressor, unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    def one(folder, fmt, args, inputs=None, shape=(32, 128)):
        a = QuantizationArgs(**args)
        scheme = QuantizationScheme(targets=["Linear"], weights=a)
        w = weight(*shape)
        n, k = shape
        top = {"int": lambda b: 2.0 ** (b - 1) - 1, "float": lambda b: 448.0 if b == 8 else 6.0}[args["type"]](args["num_bits"])
        state = {"weight": w}
        strategy = args["strategy"]
        zero = None
        if strategy == "tensor":
            scale = w.abs().amax().reshape(1) / top
        elif strategy == "channel":
            scale = w.abs().amax(1, keepdim=True) / top
        elif strategy == "block":
            br, bc = args["block_structure"]
            padded = torch.nn.functional.pad(w, (0, -k % bc, 0, -n % br))
            scale = padded.reshape(padded.shape[0] // br, br, -1, bc).abs().amax((1, 3)) / top
        else:
            g = args["group_size"]
            if args.get("symmetric", True):
                scale = groups(w, g).abs().amax(-1) / top
            else:
                lo, hi = groups(w, g).amin(-1), groups(w, g).amax(-1)
                scale = (hi - lo) / (2 ** args["num_bits"] - 1)
                zero = (torch.round(-lo / scale) - 2 ** (args["num_bits"] - 1)).to(torch.int8)
        if strategy == "tensor_group":
            state["weight_global_scale"] = (448 * 6 / w.abs().amax()).reshape(1)
            scale = (scale * state["weight_global_scale"]).to(torch.float8_e4m3fn).float()
        elif args["num_bits"] == 4 and args["type"] == "float":
            scale = torch.exp2(torch.floor(torch.log2(scale * 6)) - 2)
        else:
            scale = scale.bfloat16().float()
        state["weight_scale"] = scale
        if zero is not None:
            state["weight_zero_point"] = zero
        compressor = BaseCompressor.get_value_from_registry(fmt)
        packed = compressor.compress(dict(state), scheme)
        if args["num_bits"] == 4 and args["type"] == "float":  # decompress() computes in bfloat16
            stored = packed["weight_scale"]
            stored = torch.exp2(stored.float() - 127) if stored.dtype == torch.uint8 else stored.float()
            expected = dequantize(unpack_fp4_from_uint8(packed["weight_packed"], n, k).float(), stored, args=a,
                                  global_scale=packed.get("weight_global_scale"), dtype=torch.float32)
        else:
            expected = compressor.decompress(dict(packed), scheme)["weight"]
        if strategy not in ("tensor_group",) and packed["weight_scale"].dtype == torch.float32 and strategy != "block":
            packed["weight_scale"] = packed["weight_scale"].bfloat16()
        if inputs and not inputs.get("dynamic"):
            packed["input_scale"] = torch.tensor([0.0123])
        config = {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed",
                  "ignore": ["lm_head"], "kv_cache_scheme": None, "version": "0.20.0",
                  "config_groups": {"group_0": {"targets": ["Linear"], "weights": json.loads(a.model_dump_json()),
                                                "input_activations": inputs, "output_activations": None, "format": fmt}}}
        write(folder, config, {f"{UP}.{name}": t for name, t in packed.items()}, {UP: expected},
              "compressed-tensors compress and decompress")

    fp8 = {"num_bits": 8, "type": "float"}
    one("ct_fp8_tensor", "float-quantized", fp8 | {"strategy": "tensor"}, fp8 | {"strategy": "tensor", "dynamic": False})
    one("ct_fp8_channel", "float-quantized", fp8 | {"strategy": "channel"}, fp8 | {"strategy": "token", "dynamic": True})
    one("ct_fp8_block", "float-quantized", fp8 | {"strategy": "block", "block_structure": [128, 128]}, shape=(144, 192))
    one("ct_w8a8", "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"},
        {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True})
    one("ct_w4a16", "pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32})
    one("ct_w4a16_asym", "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": False}, shape=(24, 128))
    one("ct_w8a16", "pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"})
    one("ct_w3a16", "pack-quantized", {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 32})
    one("ct_nvfp4", "nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16})
    one("ct_mxfp4", "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32})


E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)


def from_definition():
    """Formats whose writers need a GPU or a whole model: random codes, and their values by numpy."""
    rng = np.random.default_rng(7)
    origin = "random codes, valued by numpy from the format's definition"
    f8 = lambda n, k: torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32) * 100).to(torch.float8_e4m3fn)

    codes = f8(144, 192)
    scale = torch.from_numpy(rng.uniform(0.001, 0.01, (2, 2)).astype(np.float32))
    value = codes.float() * scale.repeat_interleave(128, 0)[:144].repeat_interleave(128, 1)[:, :192]
    write("hf_fp8_block", {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
          {f"{UP}.weight": codes, f"{UP}.weight_scale_inv": scale, f"{DOWN}.weight": torch.ones(4, 4)}, {UP: value}, origin)

    codes = f8(8, 32)
    write("hf_fp8_tensor", {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
          {f"{UP}.weight": codes, f"{UP}.weight_scale": torch.tensor(0.004), f"{UP}.input_scale": torch.tensor(0.02)},
          {UP: codes.float() * 0.004}, origin)

    scale = torch.from_numpy(rng.uniform(0.001, 0.01, (8, 1)).astype(np.float32))
    write("fbgemm_fp8", {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
          {f"{UP}.weight": codes, f"{UP}.weight_scale": scale}, {UP: codes.float() * scale}, origin)

    n, k, g = 8, 64, 32
    q = rng.integers(-8, 8, (n, k)).astype(np.int8)
    packed = ((q[0::2] & 15) | ((q[1::2] & 15) << 4)).astype(np.uint8)
    scale = rng.uniform(0.001, 0.01, (n, k // g)).astype(np.float32)
    multiplier = rng.uniform(0.5, 2, k).astype(np.float32)
    write("modelopt_w4a16_awq",
          {"producer": {"name": "modelopt", "version": "0.40"},
           "quantization": {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None, "group_size": g, "has_zero_point": False,
                            "pre_quant_scale": True, "exclude_modules": ["lm_head"]}},
          {f"{UP}.weight": torch.from_numpy(packed), f"{UP}.weight_scale": torch.from_numpy(scale),
           f"{UP}.pre_quant_scale": torch.from_numpy(multiplier)},
          {UP: torch.from_numpy(q * scale.repeat(g, 1) * multiplier)}, origin, side_file="hf_quant_config.json")

    codes = rng.integers(0, 16, (n, k)).astype(np.uint8)
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8)
    scale = torch.from_numpy(rng.uniform(1, 400, (n, k // 16)).astype(np.float32)).to(torch.float8_e4m3fn)
    value = torch.from_numpy(E2M1[codes]) * scale.float().repeat_interleave(16, 1) * 0.00025
    write("modelopt_nvfp4",
          {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"], "producer": {"name": "modelopt"},
           "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 16}}}},
          {f"{UP}.weight": torch.from_numpy(packed), f"{UP}.weight_scale": scale, f"{UP}.weight_scale_2": torch.tensor(0.00025),
           f"{UP}.input_scale": torch.tensor(0.01)}, {UP: value}, origin)

    f8s, small = f8(n, k), torch.tensor(0.002)
    static = lambda: torch.tensor(0.01)
    write("modelopt_mixed",
          {"producer": {"name": "modelopt", "version": "0.40"},
           "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8",
                            "quantized_layers": {UP: {"quant_algo": "FP8"}, DOWN: {"quant_algo": "NVFP4", "group_size": 16}}}},
          {f"{UP}.weight": f8s, f"{UP}.weight_scale": small, f"{UP}.input_scale": static(),
           f"{DOWN}.weight": torch.from_numpy(packed), f"{DOWN}.weight_scale": scale,
           f"{DOWN}.weight_scale_2": torch.tensor(0.00025), f"{DOWN}.input_scale": static()},
          {UP: f8s.float() * small, DOWN: value}, origin, side_file="hf_quant_config.json")

    experts, rows, blocks = 3, 6, 2
    codes = rng.integers(0, 16, (experts, rows, blocks, 32)).astype(np.uint8)
    packed = (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)
    exponents = rng.integers(118, 124, (experts, rows, blocks)).astype(np.uint8)
    value = E2M1[codes] * np.exp2(exponents.astype(np.float32) - 127)[..., None]
    x = "model.layers.0.mlp.experts.gate_up_proj"
    write("mxfp4", {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
          {f"{x}_blocks": torch.from_numpy(packed), f"{x}_scales": torch.from_numpy(exponents)},
          {x: torch.from_numpy(value.reshape(experts * rows, blocks * 32).astype(np.float32))}, origin)


if __name__ == "__main__":
    compressed_tensors()  # before the stubs of transformers that the others need
    awq()
    gptq()
    from_definition()
