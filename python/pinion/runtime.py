"""ModelRunner: token ids in, token ids out, with the names of TensorRT-LLM's older runtime."""
from __future__ import annotations

import os
from typing import Any, Iterable, Optional, Sequence, Union

from ._config import SamplingParams
from ._llm import LLM


class ModelRunner:
    """Made by from_dir(). A context manager, as LLM is; the model ends with it, or with the program."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    @classmethod
    def from_dir(cls, engine_dir: Union[str, os.PathLike[str]], rank: int = 0, **settings: Any) -> ModelRunner:
        if rank != 0:
            raise ValueError("rank: this version runs one rank")
        return cls(LLM(engine_dir, **settings))

    def generate(self, batch_input_ids: Iterable[Any], max_new_tokens: int = 32, *, temperature: Optional[float] = None,
                 top_k: Optional[int] = None, top_p: Optional[float] = None, random_seed: Optional[int] = None,
                 end_id: Optional[int] = None, num_return_sequences: int = 1,
                 sampling_params: Optional[SamplingParams] = None) -> list[list[list[int]]]:
        """Each prompt a list of ids, or anything with tolist() (numpy, torch). Returns for each prompt its sequences:
        the prompt's ids, then those generated."""
        prompts = [[int(i) for i in _ids(p)] for p in batch_input_ids]
        params = sampling_params or SamplingParams(max_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                                                   top_p=top_p, seed=random_seed, end_id=end_id, n=num_return_sequences)
        return [[[*prompt, *choice.token_ids] for choice in answer.outputs]
                for prompt, answer in zip(prompts, self.llm.generate(prompts, params))]

    def __enter__(self) -> ModelRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.llm.shutdown()


def _ids(prompt: Any) -> Sequence[Any]:
    ids: Sequence[Any] = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    return ids


__all__ = ["ModelRunner"]
