"""Settings as plain data. Each knows what it means for the program: a flag, or a field of a request."""
from __future__ import annotations

import dataclasses
from typing import Any, Optional, Union


@dataclasses.dataclass
class SamplingParams:
    """How tokens are chosen. Without temperature, top_p and top_k the choice is greedy."""

    max_tokens: int = 32
    temperature: Optional[float] = None
    top_k: Optional[int] = None
    top_p: Optional[float] = None
    min_p: Optional[float] = None
    seed: Optional[int] = None
    n: int = 1
    best_of: Optional[int] = None
    stop: Union[str, list[str], None] = None
    stop_token_ids: Optional[list[int]] = None
    include_stop_str_in_output: bool = False
    bad: Union[str, list[str], None] = None
    min_tokens: Optional[int] = None
    ignore_eos: bool = False
    end_id: Optional[int] = None
    repetition_penalty: Optional[float] = None
    presence_penalty: Optional[float] = None
    frequency_penalty: Optional[float] = None
    logprobs: Optional[int] = None
    logit_bias: Optional[dict[int, float]] = None
    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    truncate_prompt_tokens: Optional[int] = None
    use_beam_search: bool = False

    def fields(self) -> dict[str, Any]:
        """The fields of an OpenAI request, those that are not set left out."""
        if self.use_beam_search:
            raise ValueError("use_beam_search: beams are not implemented")
        out: dict[str, Any] = {"max_tokens": self.max_tokens, "n": self.n,
                               "skip_special_tokens": self.skip_special_tokens}
        greedy = self.temperature is None and self.top_p is None and self.top_k is None and self.min_p is None
        out["temperature"] = 0 if greedy else 1 if self.temperature is None else self.temperature
        for name in ("top_k", "top_p", "min_p", "seed", "best_of", "stop", "stop_token_ids", "min_tokens",
                     "repetition_penalty", "presence_penalty", "frequency_penalty", "truncate_prompt_tokens"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        if self.include_stop_str_in_output:
            out["include_stop_str_in_output"] = True
        if self.ignore_eos or self.end_id == -1:
            out["ignore_eos"] = True
        elif self.end_id is not None:
            out["stop_token_ids"] = [*(self.stop_token_ids or []), self.end_id]
        if self.bad:
            out["bad_words"] = [self.bad] if isinstance(self.bad, str) else self.bad
        if self.logit_bias:
            out["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        return out


@dataclasses.dataclass
class KvCacheConfig:
    free_gpu_memory_fraction: Optional[float] = None
    max_tokens: Optional[int] = None
    enable_block_reuse: bool = True
    host_cache_size: Optional[int] = None

    def flags(self) -> list[str]:
        if self.host_cache_size:
            raise ValueError("host_cache_size: there is no host tier")
        out = []
        if self.free_gpu_memory_fraction is not None:
            out += ["--kv_cache_free_gpu_memory_fraction", str(self.free_gpu_memory_fraction)]
        if self.max_tokens is not None:
            out += ["--kv_cache_max_tokens", str(self.max_tokens)]
        return out if self.enable_block_reuse else [*out, "--no_prefix_reuse"]


@dataclasses.dataclass
class SchedulerConfig:
    capacity_scheduler_policy: str = "max_utilization"

    def flags(self) -> list[str]:
        return ["--batch_scheduler_policy", str(self.capacity_scheduler_policy).split(".")[-1].lower()]


@dataclasses.dataclass
class BuildConfig:
    """Limits: here they belong to the run, and changing them needs no rebuild."""

    max_batch_size: Optional[int] = None
    max_num_tokens: Optional[int] = None
    max_seq_len: Optional[int] = None
    max_input_len: Optional[int] = None  # the prompt alone: part of max_seq_len here
    max_beam_width: int = 1

    def flags(self) -> list[str]:
        if self.max_beam_width != 1:
            raise ValueError("max_beam_width: beams are not implemented")
        out = []
        for name in ("max_batch_size", "max_num_tokens", "max_seq_len"):
            if getattr(self, name) is not None:
                out += ["--" + name, str(getattr(self, name))]
        return out


@dataclasses.dataclass
class QuantConfig:
    """Weights are quantised while the model is compiled. quant_algo: FP8, W8A16, W4A16, NVFP4, or a name of
    `pinion build --qformat`."""

    quant_algo: Optional[str] = None
    kv_cache_quant_algo: Optional[str] = None

    def flags(self) -> list[str]:
        flags: list[str] = []
        if self.kv_cache_quant_algo is not None:
            cache = str(self.kv_cache_quant_algo).split(".")[-1].lower()
            if cache not in ("fp8", "int8"):
                raise ValueError(f"kv_cache_quant_algo: {cache} is not implemented, FP8 and INT8 are")
            flags += ["--kv_cache_dtype", cache]
        if self.quant_algo is not None:
            name = str(self.quant_algo).split(".")[-1]
            known = {"FP8": "fp8", "W8A16": "int8_wo", "W4A16": "int4_wo", "NVFP4": "nvfp4"}
            flags += ["--qformat", known.get(name.upper(), name.lower())]
        return flags
