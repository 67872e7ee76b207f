"""The forms in which TensorRT-LLM's LLM API is used in its guides, with the import changed: checked by mypy --strict, and
run. Usage: llm_api_example.py ENGINE"""
import asyncio
import sys

from pinion import LLM, SamplingParams
from pinion.executor import ExecutorConfig
from pinion.llmapi import KvCacheConfig
from pinion.runtime import ModelRunner

ENGINE = sys.argv[1]


def main() -> None:
    executor_cfg = ExecutorConfig(
        max_batch_size=32,
        max_num_tokens=8192,
        enable_chunked_context=True,
        kv_cache_config={"free_gpu_memory_fraction": 0.1},
    )
    llm = LLM(model=ENGINE, executor_config=executor_cfg)
    prompts = ["Hello, my name is", "The capital of France is", "The future of AI is"]
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
    outputs = llm.generate(prompts, sampling_params)
    for output in outputs:
        print(f"Prompt: {output.prompt!r}, Generated text: {output.outputs[0].text!r}")
    assert [output.prompt for output in outputs] == prompts

    single = llm.generate("Once upon a time", sampling_params=SamplingParams(max_tokens=8))
    assert single.outputs[0].length <= 8

    async def ask() -> str:
        text = ""
        async for output in llm.generate_async("The capital of France is", SamplingParams(max_tokens=8), streaming=True):
            text += output.outputs[0].text_diff
        answer = await llm.generate_async("The capital of France is", SamplingParams(max_tokens=8))
        assert answer.outputs[0].text == text, (answer, text)
        return text

    print(asyncio.run(ask()))
    try:
        LLM(model=ENGINE, lora_dir="./tllm_lora")
    except ValueError as error:  # what is not implemented is refused by name
        print(error)
    else:
        raise AssertionError("lora_dir was taken and ignored")
    llm.shutdown()

    with LLM(model=ENGINE, kv_cache_config=KvCacheConfig(free_gpu_memory_fraction=0.1)) as other:
        input_ids = other.generate("Explain TensorRT-LLM in one paragraph", SamplingParams(max_tokens=1)).prompt_token_ids
    with ModelRunner.from_dir(ENGINE, rank=0, kv_cache_free_gpu_memory_fraction=0.1) as runner:
        ids = runner.generate(batch_input_ids=[input_ids], max_new_tokens=20, temperature=0.7, top_p=0.9)
        assert ids[0][0][:len(input_ids)] == input_ids
        assert len(ids[0][0]) <= len(input_ids) + 20


if __name__ == "__main__":
    main()
