"""The names that examples import from tensorrt_llm.llmapi."""
from . import (LLM, BuildConfig, CompletionOutput, KvCacheConfig, QuantConfig, RequestOutput, SamplingParams,
               SchedulerConfig)
from .executor import ExecutorConfig

__all__ = ["LLM", "SamplingParams", "KvCacheConfig", "SchedulerConfig", "BuildConfig", "QuantConfig", "ExecutorConfig",
           "RequestOutput", "CompletionOutput"]
