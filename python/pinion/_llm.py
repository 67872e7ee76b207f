"""LLM: a model in this process. Prompts go to the engine's thread, which knows no Python; output comes back over one queue."""
from __future__ import annotations

import atexit
import itertools
import json
import os
import weakref
from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional, Sequence, Union, overload

from ._chat import template_messages
from ._config import (WHOLE_PROMPTS, BuildConfig, KvCacheConfig, QuantConfig, SamplingParams, SchedulerConfig, Settings,
                      assign)
from ._engine import Engine, Options, Stats
from ._request import Carrier, GenerationResult, RequestOutput

if TYPE_CHECKING:
    from .executor import ExecutorConfig

Prompt = Union[str, Sequence[int]]
Messages = Sequence[dict[str, Any]]


def _shut_down(reference: weakref.ref[LLM]) -> None:
    if (llm := reference()) is not None:
        llm.shutdown()


class LLM:
    """`model`: an engine, a checkpoint directory, or org/name in the local Hugging Face cache. Other keywords are flags
    of `pinion serve` that concern the model (target="cuda", threads=8, no_timing=True)."""

    def __init__(self, model: Union[str, os.PathLike[str]], tokenizer: Union[str, os.PathLike[str], None] = None, *,
                 dtype: str = "auto", tensor_parallel_size: int = 1, pipeline_parallel_size: int = 1,
                 kv_cache_config: Union[KvCacheConfig, dict[str, Any], None] = None,
                 scheduler_config: Optional[SchedulerConfig] = None, build_config: Optional[BuildConfig] = None,
                 quant_config: Optional[QuantConfig] = None, executor_config: Optional[ExecutorConfig] = None,
                 lora_dir: Union[str, os.PathLike[str], None] = None, max_batch_size: Optional[int] = None,
                 max_num_tokens: Optional[int] = None, max_seq_len: Optional[int] = None,
                 enable_chunked_prefill: bool = True, backend: Optional[str] = None, **settings: Any) -> None:
        if tensor_parallel_size * pipeline_parallel_size != 1:
            raise ValueError("tensor_parallel_size, pipeline_parallel_size: this version runs one rank")
        if lora_dir is not None:
            raise ValueError("lora_dir: adapters are not implemented")
        if isinstance(kv_cache_config, dict):
            kv_cache_config = KvCacheConfig(**kv_cache_config)
        wanted: Settings = {"model": os.fspath(model), "dtype": dtype}
        if tokenizer is not None:
            wanted["tokenizer"] = os.fspath(tokenizer)
        if not enable_chunked_prefill:
            wanted["chunk_tokens"] = WHOLE_PROMPTS
        limits = BuildConfig(max_batch_size=max_batch_size, max_num_tokens=max_num_tokens, max_seq_len=max_seq_len)
        options = Options()
        for config in (executor_config, kv_cache_config, scheduler_config, build_config, quant_config, limits):
            for name, value in (config.settings() if config else {}).items():
                assign(options, name, value)
        for name, value in (wanted | settings).items():
            assign(options, name, value)
        self._engine = Engine.load(options)
        self._carrier = Carrier(self._engine)
        self._requests = itertools.count(1)
        self.model = self._engine.name
        reference = weakref.ref(self)
        self._at_exit: Callable[[], None] = lambda: _shut_down(reference)
        atexit.register(self._at_exit)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        if hasattr(self, "_at_exit"):
            self.shutdown()

    def shutdown(self) -> None:
        """Frees the model and ends its threads: what still runs is cancelled. May be called again."""
        self._engine.close()
        self._carrier.end()
        atexit.unregister(self._at_exit)

    @overload  # a text is a sequence of texts too: the first form is meant
    def generate(self, inputs: Prompt,  # type: ignore[overload-overlap]
                 sampling_params: Union[SamplingParams, None] = None, use_tqdm: bool = False,
                 lora_request: None = None) -> RequestOutput: ...

    @overload
    def generate(self, inputs: Sequence[Prompt],
                 sampling_params: Union[SamplingParams, Sequence[SamplingParams], None] = None, use_tqdm: bool = False,
                 lora_request: None = None) -> list[RequestOutput]: ...

    def generate(self, inputs: Any, sampling_params: Any = None, use_tqdm: bool = False, lora_request: None = None) -> Any:
        """One prompt (a text or token ids) gives one RequestOutput; several give a list in their order. No progress is
        drawn: use_tqdm is there for programs that set it. Ctrl-C aborts what runs."""
        if lora_request is not None:
            raise ValueError("lora_request: adapters are not implemented")
        single = isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], int))
        prompts: list[Prompt] = [inputs] if single else list(inputs)
        params = self._each(sampling_params, len(prompts))
        done = self._wait(self.generate_async(prompt, p) for prompt, p in zip(prompts, params))
        return done[0] if single else done

    def generate_async(self, inputs: Prompt, sampling_params: Optional[SamplingParams] = None,
                       streaming: bool = False) -> GenerationResult:
        """Queues the prompt and returns at once."""
        params = sampling_params or SamplingParams()
        text = inputs if isinstance(inputs, str) else None
        ids = [int(i) for i in inputs] if text is None else self.encode(text, params.add_special_tokens)
        return self._start(ids, text, params, streaming)

    def chat(self, messages: Union[Messages, Sequence[Messages]],
             sampling_params: Union[SamplingParams, Sequence[SamplingParams], None] = None,
             tools: Optional[Sequence[dict[str, Any]]] = None, add_generation_prompt: bool = True,
             chat_template_kwargs: Optional[dict[str, Any]] = None) -> Union[RequestOutput, list[RequestOutput]]:
        """One conversation, or several; each a list of {"role", "content"}. The text is what the model wrote: calls of
        tools and reasoning are in it."""
        single = len(messages) == 0 or isinstance(messages[0], dict)
        talks: list[Any] = [messages] if single else list(messages)

        def start(talk: Messages, params: SamplingParams) -> GenerationResult:
            ids = self._engine.chat(template_messages(talk), json.dumps(tools or None),
                                    json.dumps(chat_template_kwargs or {}), add_generation_prompt)
            return self._start(ids, None, params, False)

        done = self._wait(start(talk, p) for talk, p in zip(talks, self._each(sampling_params, len(talks))))
        return done[0] if single else done

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The model's tokens of a text."""
        return self._engine.encode(text.encode(), add_special_tokens)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._engine.decode(list(token_ids), skip_special_tokens)

    def stats(self) -> Stats:
        """What the engine has done, what runs, and how full the KV cache is."""
        return self._engine.stats()

    def _start(self, prompt: list[int], text: Optional[str], params: SamplingParams, streaming: bool) -> GenerationResult:
        params.check(streaming)
        if params.truncate_prompt_tokens is not None:
            prompt = prompt[-params.truncate_prompt_tokens:]
        sampling = params.sampling(self._engine.default_sampling(), lambda word: self.encode(word, False))
        output = RequestOutput(str(next(self._requests)), text, prompt, [])
        return GenerationResult(self, self._carrier, output, params, streaming).submit(prompt, sampling)

    @staticmethod
    def _each(params: Any, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if len(params) != count:
            raise ValueError(f"{len(params)} sampling_params for {count} inputs")
        return list(params)

    @staticmethod
    def _wait(requests: Iterator[GenerationResult]) -> list[RequestOutput]:
        running: list[GenerationResult] = []
        try:
            running.extend(requests)
            return [r.result() for r in running]
        except BaseException:  # Ctrl-C too: nobody waits for the others any more
            for r in running:
                r.abort()
            raise
