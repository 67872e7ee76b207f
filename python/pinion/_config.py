"""Settings as plain data. Each knows what it means for the engine: settings of a load, or the sampling of a request."""
from __future__ import annotations

import dataclasses
from typing import Any, Callable, Optional, Union

from ._engine import Options, Sampling

Settings = dict[str, Any]  # by the names of _engine.Options
MAX_CHOICES = 128  # of one prompt
WHOLE_PROMPTS = 1 << 20  # chunk_tokens where prompts are not cut


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
    prompt_logprobs: Optional[int] = None
    logit_bias: Optional[dict[int, float]] = None
    skip_special_tokens: bool = True
    add_special_tokens: bool = True
    truncate_prompt_tokens: Optional[int] = None
    use_beam_search: bool = False

    @property
    def sequences(self) -> int:
        """How many are drawn, of which n are given."""
        return self.n if self.best_of is None else self.best_of

    def check(self, streaming: bool) -> None:
        """What the engine does not see of a request."""
        if self.use_beam_search:
            raise ValueError("use_beam_search: beams are not implemented")
        if not 1 <= self.n <= self.sequences <= MAX_CHOICES:
            raise ValueError(f"n, best_of: {self.n} of {self.sequences} — choose 1 to {MAX_CHOICES}, and n not above best_of")
        if streaming and self.sequences > self.n:
            raise ValueError("best_of: more than n cannot be streamed")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: {self.max_tokens} — ask for at least one")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            raise ValueError(f"truncate_prompt_tokens: {self.truncate_prompt_tokens} — keep at least one")

    def sampling(self, defaults: Sampling, encode: Callable[[str], list[int]]) -> Sampling:
        """For the engine. `defaults`, the model's own, are filled in and returned."""
        out = defaults
        if self.temperature is None and self.top_p is None and self.top_k is None and self.min_p is None:
            out.temperature = 0
        else:
            assign(out, "temperature", 1 if self.temperature is None else self.temperature)
        for name in ("top_p", "min_p", "min_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty",
                     "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                assign(out, name, getattr(self, name))
        if self.top_k is not None:
            assign(out, "top_k", 0 if self.top_k == -1 else self.top_k)  # -1: all, as elsewhere
        if self.seed is not None:
            out.seed = self.seed % 2**64
        assign(out, "max_tokens", self.max_tokens)
        out.ignore_eos = self.ignore_eos or self.end_id == -1
        end = [self.end_id] if self.end_id is not None and self.end_id != -1 else []
        assign(out, "stop_token_ids", [*(self.stop_token_ids or []), *end])
        assign(out, "stop", _strings(self.stop))
        out.include_stop = self.include_stop_str_in_output
        out.skip_special_tokens = self.skip_special_tokens
        # A word is banned as it is spelled at the start of a text and after a space.
        out.bad_words = [ids for word in _strings(self.bad) for ids in (encode(word), encode(" " + word)) if ids]
        assign(out, "logit_bias", list((self.logit_bias or {}).items()))
        if self.sequences > self.n:
            out.logprobs = max(out.logprobs, 0)  # to rank them
        return out


def assign(to: Union[Options, Sampling], name: str, value: Any) -> None:
    """Sets what the engine reads; None leaves it as it is."""
    if name.startswith("_") or not hasattr(to, name):
        known = ", ".join(sorted(known for known in dir(to) if not known.startswith("_")))
        raise ValueError(f"{name}: there is no such setting — choose from {known}")
    if value is None:
        return
    try:
        setattr(to, name, value)
    except TypeError:
        raise ValueError(f"{name}: {value!r} is of the wrong type or out of range") from None


def _strings(value: Union[str, list[str], None]) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _name(value: object) -> str:
    """TensorRT-LLM writes some settings as members of an enumeration: QuantAlgo.FP8."""
    return str(value).split(".")[-1]


@dataclasses.dataclass
class KvCacheConfig:
    free_gpu_memory_fraction: Optional[float] = None
    max_tokens: Optional[int] = None
    enable_block_reuse: bool = True
    host_cache_size: Optional[int] = None  # bytes of host memory for blocks that leave the cache

    def settings(self) -> Settings:
        return {"kv_cache_free_gpu_memory_fraction": self.free_gpu_memory_fraction,
                "kv_cache_max_tokens": self.max_tokens, "kv_cache_host_memory_bytes": self.host_cache_size,
                "no_prefix_reuse": None if self.enable_block_reuse else True}


@dataclasses.dataclass
class SchedulerConfig:
    capacity_scheduler_policy: str = "max_utilization"

    def settings(self) -> Settings:
        return {"batch_scheduler_policy": _name(self.capacity_scheduler_policy).lower()}


@dataclasses.dataclass
class BuildConfig:
    """Limits: here they belong to the run, and changing them needs no rebuild."""

    max_batch_size: Optional[int] = None
    max_num_tokens: Optional[int] = None
    max_seq_len: Optional[int] = None
    max_input_len: Optional[int] = None  # the prompt alone: part of max_seq_len here
    max_beam_width: int = 1

    def settings(self) -> Settings:
        if self.max_beam_width != 1:
            raise ValueError("max_beam_width: beams are not implemented")
        return {"max_batch_size": self.max_batch_size, "max_num_tokens": self.max_num_tokens,
                "max_seq_len": self.max_seq_len}


@dataclasses.dataclass
class QuantConfig:
    """Weights are quantised while the model is compiled. quant_algo: FP8, W8A16, W4A16, NVFP4, or a name of
    `pinion build --qformat`."""

    quant_algo: Optional[str] = None
    kv_cache_quant_algo: Optional[str] = None

    def settings(self) -> Settings:
        out: Settings = {}
        if self.kv_cache_quant_algo is not None:
            cache = _name(self.kv_cache_quant_algo).lower()
            if cache not in ("fp8", "int8"):
                raise ValueError(f"kv_cache_quant_algo: {cache} is not implemented, FP8 and INT8 are")
            out["kv_cache_dtype"] = cache
        if self.quant_algo is not None:
            name = _name(self.quant_algo)
            known = {"FP8": "fp8", "W8A16": "int8_wo", "W4A16": "int4_wo", "NVFP4": "nvfp4"}
            out["qformat"] = known.get(name.upper(), name.lower())
        return out
