"""Compile Hugging Face language models and run them, with the names of TensorRT-LLM's LLM API."""
from ._config import BuildConfig, KvCacheConfig, QuantConfig, SamplingParams, SchedulerConfig
from ._llm import LLM, CompletionOutput, GenerationResult, PinionError, RequestOutput

__all__ = ["LLM", "SamplingParams", "KvCacheConfig", "SchedulerConfig", "BuildConfig", "QuantConfig", "RequestOutput",
           "CompletionOutput", "GenerationResult", "PinionError"]
__version__ = "0.1.0"
