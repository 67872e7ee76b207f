"""ExecutorConfig as TensorRT-LLM's guides write it: the limits of a run, given to LLM(executor_config=…)."""
from __future__ import annotations

import dataclasses
from typing import Any, Optional, Union

from ._config import WHOLE_PROMPTS, BuildConfig, KvCacheConfig, SchedulerConfig, Settings


@dataclasses.dataclass
class ExecutorConfig:
    max_batch_size: Optional[int] = None
    max_num_tokens: Optional[int] = None
    max_seq_len: Optional[int] = None
    max_beam_width: int = 1
    max_queue_size: Optional[int] = None
    enable_chunked_context: bool = True
    kv_cache_config: Union[KvCacheConfig, dict[str, Any], None] = None
    scheduler_config: Optional[SchedulerConfig] = None

    def settings(self) -> Settings:
        cache = self.kv_cache_config
        if isinstance(cache, dict):
            cache = KvCacheConfig(**cache)
        limits = BuildConfig(self.max_batch_size, self.max_num_tokens, self.max_seq_len, None, self.max_beam_width)
        out: Settings = {"max_queue": self.max_queue_size}
        if not self.enable_chunked_context:
            out["chunk_tokens"] = WHOLE_PROMPTS
        for config in (limits, cache, self.scheduler_config):
            out |= config.settings() if config else {}
        return out


__all__ = ["ExecutorConfig"]
