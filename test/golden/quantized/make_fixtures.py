#!/usr/bin/env python3
"""Writes the fixtures: tiny models quantised by the tools' own code, each with logits by an independent reader.

    python3 -m venv VENV && VENV/bin/pip install torch numpy safetensors transformers accelerate compressed-tensors gguf
    VENV/bin/pip install --no-deps autoawq auto-gptq
    VENV/bin/python make_fixtures.py DIR && ../pack DIR checkpoints.tar.xz

Each folder is a checkpoint as its tool writes it (config.json, model.safetensors; gguf/ holds a file) with
expected.safetensors, whose metadata says in `origin` who computed what:
  input_ids          a prompt
  logits             of its last positions by transformers in float32, the linears' weights as the tool unpacks them
  logits_inputs      the same with the linears' inputs rounded, where the format rounds them
  rows.LINEAR        the first rows of a linear's dense weight
All fixtures share one random float model (but those that need other shapes), so that the archive keeps it once.
"""
import importlib.util
import json
import os
import sys
import types

import gguf
import numpy as np
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor, unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize, fake_quantize
from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp
from safetensors.torch import save_file

OUT = sys.argv[1]
SITE = next(p for p in sys.path if p.endswith("site-packages"))
LAYER = "model.layers.0."
LINEARS = [LAYER + name for name in ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj",
                                     "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj")]
UP, DOWN, O = LAYER + "mlp.up_proj", LAYER + "mlp.down_proj", LAYER + "self_attn.o_proj"
PROMPT = [5, 17, 30, 3, 14, 14, 9, 12, 28, 7, 23, 21]
KEPT = 8  # positions whose logits are kept
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 64,
         "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
         "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
         "tie_word_embeddings": True, "dtype": "bfloat16"}
transformers.logging.set_verbosity_error()


def float_model(**changed):
    """Random weights by name: the same ones for the same shapes."""
    config = LLAMA | changed
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    weights = {}
    for seed, (name, p) in enumerate(empty.named_parameters()):
        torch.manual_seed(seed)
        w = torch.randn(p.shape) / 8 if p.dim() == 2 else 1 + torch.randn(p.shape) * 0.2
        steps = 256 if p.dim() == 2 else 64
        weights[name] = torch.round(w * steps) / steps  # few numbers, which compress
        assert torch.equal(weights[name], weights[name].bfloat16().float()), name
    return config, weights


def run(config, weights, rounded=None, prompt=PROMPT):
    """The last positions' logits. rounded: a function per linear that rounds its input."""
    cls = getattr(transformers, config["architectures"][0])
    model = cls(cls.config_class(**{k: v for k, v in config.items() if k != "dtype"}, attn_implementation="eager")).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    for name, function in (rounded or {}).items():
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, f=function: (f(args[0]),))
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -KEPT:].float()


def steady_prompt(config, weights, rounded):
    """A prompt none of whose inputs lies near the border of two codes: sums in another order round alike."""
    for seed in range(200):
        prompt = np.random.default_rng(seed).integers(0, config["vocab_size"], len(PROMPT)).tolist()
        torn = []

        def watch(f):
            def rounds(x):
                y, most = f(x), x.abs().amax(-1, keepdim=True)
                torn.extend((f(x + d * most) - y).abs().gt(1e-4 * most).any() for d in (-1e-6, 1e-6))
                return y
            return rounds
        run(config, weights, {name: watch(f) for name, f in rounded.items()}, prompt)
        if not any(torn):
            return prompt
    raise AssertionError("no prompt is steady")


def coarse(logits):
    """In steps of 2^-13, which compress: an error of 6e-5."""
    return torch.round(logits * 8192) / 8192


def write(folder, config, quantization, quantized, weights, dense, origin, side_file=None, rounded=None,
          rounded_origin=""):
    """quantized: tensors of the checkpoint; weights: the float model; dense: what the linears stand for."""
    path = os.path.join(OUT, folder)
    os.makedirs(path, exist_ok=True)
    plain = {k: v.bfloat16() for k, v in weights.items() if k.removesuffix(".weight") not in dense}
    if side_file:
        with open(os.path.join(path, side_file), "w") as f:
            json.dump(quantization, f, indent=1)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config if side_file else config | {"quantization_config": quantization}, f, indent=1)
    save_file({k: v.contiguous() for k, v in (plain | quantized).items()}, os.path.join(path, "model.safetensors"))
    full = weights | {f"{name}.weight": w.float().contiguous() for name, w in dense.items()}
    prompt = steady_prompt(config, full, rounded) if rounded else PROMPT
    expect(path, prompt, run(config, full, prompt=prompt), {UP: dense[UP][:2]}, origin + "; logits: transformers",
           run(config, full, rounded, prompt) if rounded else None, rounded_origin)


def expect(path, prompt, logits, rows, origin, logits_inputs=None, rounded_origin=""):
    out = {"input_ids": torch.tensor(prompt, dtype=torch.int32), "logits": coarse(logits)}
    out |= {f"rows.{name}": w.float().contiguous() for name, w in rows.items()}
    note = ""
    if logits_inputs is not None:
        out["logits_inputs"] = coarse(logits_inputs)
        origin += "; inputs: " + rounded_origin
        note = f", inputs move them by {(logits_inputs - logits).abs().max():.3f}"
    save_file(out, os.path.join(path, "expected.safetensors"), {"origin": origin})
    print(f"{os.path.basename(path)}: logits up to {logits.abs().max():.2f}{note}")


# ---- inputs ----

FP8, INT8 = {"num_bits": 8, "type": "float"}, {"num_bits": 8, "type": "int"}


def input_ranges(config, weights):
    """The largest magnitude of each linear's input over the prompt, those of one input together."""
    most = {}
    watch = {name: lambda x, n=name: (most.__setitem__(n, x.abs().max().item()), x)[1] for name in LINEARS}
    run(config, weights, watch)
    return most


def per_token(args):
    a = QuantizationArgs(**args, strategy="token", dynamic=True)

    def f(x):
        scale, zero = compute_dynamic_scales_and_zp(x, a, None)
        if args["type"] == "int":  # the scale as the kernels that serve such checkpoints take it, not 2 / 255
            scale = x.abs().amax(-1, keepdim=True) / 127
        return fake_quantize(x, scale, zero, a)
    return f


def static(args, scale):
    return lambda x: fake_quantize(x, torch.tensor([scale]), None, QuantizationArgs(**args, strategy="tensor", dynamic=False))


def per_128(x):
    parts = []
    for part in x.split(128, -1):
        scale = part.abs().amax(-1, keepdim=True) / 448
        parts.append((part / scale).to(torch.float8_e4m3fn).float() * scale)
    return torch.cat(parts, -1)


def static_scales(config, weights):
    """A scale per linear that lets a few inputs exceed the range: they are clamped."""
    return {name: float(torch.tensor(0.9 * most / 448).bfloat16()) for name, most in input_ranges(config, weights).items()}


# ---- the tools ----

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
    config, weights = float_model(num_key_value_heads=2)  # the tool packs 32 outputs at a time
    tensors, dense, g = {}, {}, 32
    for prefix in LINEARS:
        w = weights[prefix + ".weight"]
        n, k = w.shape
        linear = torch.nn.Linear(k, n, bias=False)
        lo, hi = groups(w, g).amin(-1), groups(w, g).amax(-1)
        scales = ((hi - lo).clamp(min=1e-5) / 15).half().float()
        zeros = (-torch.round(lo / scales)).clamp(0, 15)
        q = (torch.round(groups(w, g) / scales[..., None]) + zeros[..., None]).clamp(0, 15)
        linear.weight.data = ((q - zeros[..., None]) * scales[..., None]).reshape(n, k)
        packed = gemm.WQLinear_GEMM.from_linear(linear, 4, g, scales=scales.t().contiguous(), zeros=zeros.t().contiguous())
        tensors |= {f"{prefix}.{p}": getattr(packed, p) for p in ("qweight", "qzeros", "scales")}
        dense[prefix] = packing.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales.float(), 4, g).t()
    write("awq", config, {"quant_method": "awq", "bits": 4, "group_size": g, "zero_point": True, "version": "gemm"}, tensors,
          weights, dense, "autoawq WQLinear_GEMM.from_linear and dequantize_gemm")


def gptq():
    linear_module = load_source("qlinear_cuda", "auto_gptq/nn_modules/qlinear/qlinear_cuda.py")
    g = 32
    for name, bits, act_order, version in (("gptq_4bit", 4, False, 1), ("gptq_4bit_act_order", 4, True, 1),
                                           ("gptq_3bit", 3, False, 1), ("gptq_8bit_v2", 8, False, 2)):
        config, weights = float_model(num_key_value_heads=2)  # the tool packs 32 outputs at a time
        tensors, dense = {}, {}
        torch.manual_seed(99)
        for prefix in LINEARS:
            w = weights[prefix + ".weight"]
            n, k = w.shape
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
            tensors |= {f"{prefix}.{p}": getattr(packed, p) for p in ("qweight", "qzeros", "g_idx")}
            tensors[f"{prefix}.scales"] = packed.scales.half()
            if version == 2:  # the stored zero point is the zero point: add the one that the first version took away
                words = tensors[f"{prefix}.qzeros"].numpy().view(np.uint8)
                tensors[f"{prefix}.qzeros"] = torch.from_numpy((words + 1).astype(np.uint8).view(np.int32))
            packed.autogptq_cuda_available = False
            dense[prefix] = ((q - z) * s) if version == 2 else packed(torch.eye(k)).t().float()
        quantization = {"quant_method": "gptq", "bits": bits, "group_size": g, "desc_act": act_order, "sym": sym,
                        "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
        write(name, config, quantization, tensors, weights, dense, "auto-gptq QuantLinear.pack"
              + (" and forward" if version == 1 else ", zero points made version 2; the values before packing"))


def ct_linear(w, fmt, args):
    """The tensors of one linear in compressed-tensors' format, and its dense weight."""
    a = QuantizationArgs(**args)
    scheme = QuantizationScheme(targets=["Linear"], weights=a)
    n, k = w.shape
    top = 2.0 ** (args["num_bits"] - 1) - 1 if args["type"] == "int" else 448.0 if args["num_bits"] == 8 else 6.0
    state, strategy, zero = {"weight": w}, args["strategy"], None
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
        dense = dequantize(unpack_fp4_from_uint8(packed["weight_packed"], n, k).float(), stored, args=a,
                           global_scale=packed.get("weight_global_scale"), dtype=torch.float32)
    else:
        dense = compressor.decompress(dict(packed), scheme)["weight"]
    if strategy not in ("tensor_group", "block") and packed["weight_scale"].dtype == torch.float32:
        packed["weight_scale"] = packed["weight_scale"].bfloat16()
    return packed, dense


def ct_model(weights, fmt, args, names=LINEARS):
    tensors, dense = {}, {}
    for prefix in names:
        packed, dense[prefix] = ct_linear(weights[prefix + ".weight"], fmt, args)
        tensors |= {f"{prefix}.{name}": t for name, t in packed.items()}
    return tensors, dense


NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
# Wide enough for two blocks of 128 each way, the second cut short; hidden states of 32 keep it small.
BLOCKY = {"hidden_size": 32, "intermediate_size": 144}


def compressed_tensors():
    def one(folder, fmt, args, inputs=None, shapes={}, floats=()):
        config, weights = float_model(**shapes)
        names = [n for n in LINEARS if n not in floats]
        tensors, dense = ct_model(weights, fmt, args, names)
        rounded = None
        if inputs and inputs.get("dynamic"):
            rounded = {name: per_token({k: inputs[k] for k in ("num_bits", "type")}) for name in names}
        elif inputs:
            scales = static_scales(config, weights)
            tensors |= {f"{name}.input_scale": torch.tensor([scales[name]]) for name in names}
            rounded = {name: static(FP8, scales[name]) for name in names}
        quantization = {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed",
                        "ignore": ["lm_head", *floats], "kv_cache_scheme": None, "version": "0.20.0",
                        "config_groups": {"group_0": {"targets": ["Linear"], "format": fmt,
                                                      "weights": json.loads(QuantizationArgs(**args).model_dump_json()),
                                                      "input_activations": inputs, "output_activations": None}}}
        write(folder, config, quantization, tensors, weights, dense, "compressed-tensors compress and decompress",
              rounded=rounded, rounded_origin="compressed-tensors fake_quantize"
              + (", scales of absmax / 127" if inputs and inputs["type"] == "int" else ""))
        check_loaded(folder, config, weights, dense)

    one("ct_fp8_tensor", "float-quantized", FP8 | {"strategy": "tensor"}, FP8 | {"strategy": "tensor", "dynamic": False})
    one("ct_fp8_channel", "float-quantized", FP8 | {"strategy": "channel"}, FP8 | {"strategy": "token", "dynamic": True})
    one("ct_fp8_block", "float-quantized", FP8 | {"strategy": "block", "block_structure": [128, 128]}, shapes=BLOCKY)
    one("ct_w8a8", "int-quantized", INT8 | {"strategy": "channel"}, INT8 | {"strategy": "token", "dynamic": True})
    int4 = {"num_bits": 4, "type": "int", "strategy": "group"}
    one("ct_w4a16", "pack-quantized", int4 | {"group_size": 32})
    one("ct_w4a16_asym", "pack-quantized", int4 | {"group_size": 64, "symmetric": False}, floats=(O, DOWN))
    one("ct_w8a16", "pack-quantized", INT8 | {"strategy": "channel"})
    one("ct_w3a16", "pack-quantized", {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 32})
    one("ct_nvfp4", "nvfp4-pack-quantized", NVFP4)
    one("ct_mxfp4", "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32})


def check_loaded(folder, config, weights, dense):
    """transformers' own loader takes the checkpoint, expands it in bfloat16, and gives about the same logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        os.path.join(OUT, folder), dtype=torch.float32,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True))
    with torch.no_grad():
        got = model(torch.tensor([PROMPT])).logits[0, -KEPT:].float()
    want = run(config, weights | {f"{n}.weight": w for n, w in dense.items()})
    assert (got - want).abs().max() < 0.01 * want.abs().max(), folder


def fp8_checkpoints():
    """Three ways to keep what compressed-tensors encodes as well; their own writers need a GPU."""
    origin = "codes by compressed-tensors, weights by its decompress"
    config, weights = float_model(**BLOCKY)
    tensors, dense = ct_model(weights, "float-quantized", FP8 | {"strategy": "block", "block_structure": [128, 128]})
    write("hf_fp8_block", config, {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                   "weight_block_size": [128, 128]},
          {n.replace("weight_scale", "weight_scale_inv"): t for n, t in tensors.items()}, weights, dense, origin,
          rounded={name: per_128 for name in LINEARS}, rounded_origin="torch, by definition")

    config, weights = float_model()
    scales = static_scales(config, weights)
    tensors, dense = ct_model(weights, "float-quantized", FP8 | {"strategy": "tensor"})
    tensors = {n: t.float().reshape(()) if n.endswith("_scale") else t for n, t in tensors.items()}
    tensors |= {f"{n}.input_scale": torch.tensor(s) for n, s in scales.items()}
    rounded = {name: static(FP8, s) for name, s in scales.items()}
    write("hf_fp8_tensor", config, {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
          tensors, weights, dense, origin, rounded=rounded, rounded_origin="compressed-tensors fake_quantize")

    tensors, dense = ct_model(weights, "float-quantized", FP8 | {"strategy": "channel"})
    write("fbgemm_fp8", config, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
          {n: t.float() if n.endswith("_scale") else t for n, t in tensors.items()}, weights, dense, origin,
          rounded={name: per_token(FP8) for name in LINEARS}, rounded_origin="compressed-tensors fake_quantize")


def modelopt():
    config, weights = float_model()
    rng = np.random.default_rng(7)
    tensors, dense, g = {}, {}, 32
    for prefix in LINEARS:
        w = weights[prefix + ".weight"].numpy()
        n, k = w.shape
        multiplier = rng.uniform(0.5, 2, k).astype(np.float32)
        scaled = (w / multiplier).reshape(n, -1, g)
        scale = (np.abs(scaled).max(-1) / 7).astype(np.float32)
        q = np.clip(np.rint(scaled / scale[..., None]), -8, 7).astype(np.int8).reshape(n, k)
        tensors |= {f"{prefix}.weight": torch.from_numpy(((q[0::2] & 15) | ((q[1::2] & 15) << 4)).astype(np.uint8)),
                    f"{prefix}.weight_scale": torch.from_numpy(scale),
                    f"{prefix}.pre_quant_scale": torch.from_numpy(multiplier)}
        dense[prefix] = torch.from_numpy(q * scale.repeat(g, 1) * multiplier)
    write("modelopt_w4a16_awq", config,
          {"producer": {"name": "modelopt", "version": "0.40"},
           "quantization": {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None, "group_size": g, "has_zero_point": False,
                            "pre_quant_scale": True, "exclude_modules": ["lm_head"]}},
          tensors, weights, dense, "numpy, from the format's definition", side_file="hf_quant_config.json")

    def nvfp4(names):
        packed, dense = ct_model(weights, "nvfp4-pack-quantized", NVFP4, names)
        tensors = {}
        for name in names:
            tensors |= {f"{name}.weight": packed[name + ".weight_packed"],
                        f"{name}.weight_scale": packed[name + ".weight_scale"],
                        f"{name}.weight_scale_2": 1 / packed[name + ".weight_global_scale"].reshape(()),
                        f"{name}.input_scale": torch.tensor(0.01)}
        return tensors, dense

    origin = "codes by compressed-tensors, weights by its dequantize"
    tensors, dense = nvfp4(LINEARS)
    write("modelopt_nvfp4", config,
          {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"], "producer": {"name": "modelopt"},
           "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 16}}}},
          tensors, weights, dense, origin)

    tensors, dense = nvfp4([DOWN])
    names = [n for n in LINEARS if n != DOWN]
    scales = static_scales(config, weights)
    packed, values = ct_model(weights, "float-quantized", FP8 | {"strategy": "tensor"}, names)
    tensors |= {n: t.float().reshape(()) if n.endswith("_scale") else t for n, t in packed.items()}
    tensors |= {f"{n}.input_scale": torch.tensor(scales[n]) for n in names}
    write("modelopt_mixed", config,
          {"producer": {"name": "modelopt", "version": "0.40"},
           "quantization": {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None,
                            "quantized_layers": {n: {"quant_algo": "FP8"} for n in names} |
                            {DOWN: {"quant_algo": "NVFP4", "group_size": 16}}}},
          tensors, weights, dense | values, origin, side_file="hf_quant_config.json",
          rounded={n: static(FP8, scales[n]) for n in names},
          rounded_origin="compressed-tensors fake_quantize, those of fp8 linears alone")


def mxfp4():
    """gpt-oss's experts, by transformers' own loader."""
    _, base = float_model()
    experts, hidden, inner = 3, 64, 32
    config = {"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "vocab_size": 32, "hidden_size": hidden,
              "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
              "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "num_local_experts": experts,
              "num_experts_per_tok": 2, "sliding_window": 8, "layer_types": ["sliding_attention"], "swiglu_limit": 7.0,
              "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "attention_bias": True,
              "tie_word_embeddings": True, "dtype": "bfloat16"}
    torch.manual_seed(31)
    tensors = {k: v for k, v in base.items() if ".mlp." not in k}
    for name, rows in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16), ("o_proj", 64)):
        tensors[f"{LAYER}self_attn.{name}.bias"] = torch.randn(rows) * 0.2
    tensors[LAYER + "self_attn.sinks"] = torch.randn(2)
    tensors[LAYER + "mlp.router.weight"] = torch.randn(experts, hidden) / 8
    tensors[LAYER + "mlp.router.bias"] = torch.randn(experts) * 0.2
    dense = {}
    for name, rows, cols in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
        x = f"{LAYER}mlp.experts.{name}"
        packed, value = ct_linear(torch.randn(experts * rows, cols) / 8, "mxfp4-pack-quantized",
                                  {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32})
        tensors[x + "_blocks"] = packed["weight_packed"].reshape(experts, rows, cols // 32, 16)
        tensors[x + "_scales"] = packed["weight_scale"].reshape(experts, rows, cols // 32)
        tensors[x + "_bias"] = torch.randn(experts, rows) * 0.2
        dense[x] = value
    path = os.path.join(OUT, "mxfp4")
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump(config | {"quantization_config": {
            "quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}}, f, indent=1)
    save_file({k: v.contiguous() if v.dtype == torch.uint8 else v.bfloat16().contiguous() for k, v in tensors.items()},
              os.path.join(path, "model.safetensors"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True, modules_to_not_convert=["lm_head"])).eval()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, -KEPT:].float()
    x = LAYER + "mlp.experts.gate_up_proj"
    expect(path, PROMPT, logits, {x: dense[x][:2]}, "compressed-tensors compress; logits: transformers' loader, dequantize=True")


def gguf_file():
    """One file of all block types, as llama.cpp's mixtures are; blocks that gguf-py does not encode are random."""
    Q = gguf.GGMLQuantizationType
    hidden, inner, heads, dim, vocab = 256, 32, 2, 16, 32
    path = os.path.join(OUT, "gguf")
    os.makedirs(path, exist_ok=True)
    file = os.path.join(path, "model.gguf")
    w = gguf.GGUFWriter(file, "llama")
    w.add_context_length(64), w.add_embedding_length(hidden), w.add_block_count(1), w.add_feed_forward_length(inner)
    w.add_head_count(heads), w.add_head_count_kv(1), w.add_key_length(dim), w.add_value_length(dim)
    w.add_rope_dimension_count(dim), w.add_rope_freq_base(10000.0), w.add_layer_norm_rms_eps(1e-5), w.add_vocab_size(vocab)
    rng = np.random.default_rng(20261122)

    def random_blocks(kind, rows, cols):
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        # Rows share their codes, which compresses; each has scales of its own.
        blocks = rng.integers(0, 256, (8, cols // elements, size), dtype=np.uint8)[np.arange(rows) % 8]
        scales = {Q.Q4_K: (4e-4, 3e-3), Q.Q5_K: (2e-4, 3e-3), Q.Q6_K: (3e-5,)}[kind]
        for i, s in enumerate(scales):
            at = 208 if kind == Q.Q6_K else 2 * i
            d = (rng.uniform(0.5, 1.5, blocks.shape[:2]) * s).astype(np.float16)
            blocks[:, :, at:at + 2] = d[..., None].view(np.uint8)
        return blocks.reshape(rows, -1)

    def add(name, kind, rows, cols):
        if kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K):
            w.add_tensor(name, random_blocks(kind, rows, cols), raw_dtype=kind)
        else:
            values = rng.standard_normal((rows, cols)) / 16
            if name != "token_embd.weight":
                values = values[np.arange(rows) % 16] * rng.uniform(0.5, 1.5, (rows, 1))
            values = values.astype(np.float32)
            w.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    norm = lambda: (1 + 0.2 * rng.standard_normal(hidden)).astype(np.float32)
    add("token_embd.weight", Q.Q4_0, vocab, hidden)
    w.add_tensor("output_norm.weight", norm())
    w.add_tensor("blk.0.attn_norm.weight", norm())
    w.add_tensor("blk.0.ffn_norm.weight", norm())
    add("blk.0.attn_q.weight", Q.Q4_K, heads * dim, hidden)
    add("blk.0.attn_k.weight", Q.Q5_K, dim, hidden)
    add("blk.0.attn_v.weight", Q.Q6_K, dim, hidden)
    add("blk.0.attn_output.weight", Q.Q4_0, hidden, heads * dim)
    add("blk.0.ffn_gate.weight", Q.Q6_K, inner, hidden)
    add("blk.0.ffn_up.weight", Q.Q5_K, inner, hidden)
    add("blk.0.ffn_down.weight", Q.Q8_0, hidden, inner)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, gguf_file="model.gguf", dtype=torch.float32,
                                                              attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, -KEPT:].float()
    expect(path, PROMPT, logits, {}, "gguf-py's writer; logits: transformers' loader of GGUF files")


if __name__ == "__main__":
    compressed_tensors()
    fp8_checkpoints()
    modelopt()
    mxfp4()
    gguf_file()
    awq()  # stubs of packages from here
    gptq()
