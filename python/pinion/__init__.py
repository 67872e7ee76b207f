"""Compile Hugging Face language models and run them, with the names of TensorRT-LLM's LLM API."""
from ._config import BuildConfig, KvCacheConfig, QuantConfig, SamplingParams, SchedulerConfig
from ._errors import Aborted, Exhausted, InvalidArgument, PinionError
from ._llm import LLM
from ._request import CompletionOutput, GenerationResult, RequestOutput

__all__ = ["LLM", "SamplingParams", "KvCacheConfig", "SchedulerConfig", "BuildConfig", "QuantConfig", "RequestOutput",
           "CompletionOutput", "GenerationResult", "PinionError", "InvalidArgument", "Exhausted", "Aborted"]
__version__ = "0.1.0"
