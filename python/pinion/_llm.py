"""LLM: a model in a process of its own (`pinion serve`), asked over a local connection by as many threads as needed."""
from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import ctypes
import dataclasses
import http.client
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import threading
import weakref
from typing import TYPE_CHECKING, Any, AsyncIterator, Iterable, Iterator, Optional, Sequence, Union, overload

from ._config import BuildConfig, KvCacheConfig, QuantConfig, SamplingParams, SchedulerConfig

if TYPE_CHECKING:
    from .executor import ExecutorConfig

Prompt = Union[str, Sequence[int]]
Messages = Sequence[dict[str, Any]]


class PinionError(RuntimeError):
    """The program refused a request, or ended. The message is its own: what, where, what to do."""


@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    cumulative_logprob: Optional[float] = None
    logprobs: list[float] = dataclasses.field(default_factory=list)  # of the chosen tokens, when asked for
    finish_reason: Optional[str] = None
    stop_reason: Union[str, int, None] = None
    text_diff: str = ""  # what the newest piece added, of a stream

    @property
    def length(self) -> int:
        return len(self.token_ids)


@dataclasses.dataclass
class RequestOutput:
    request_id: str
    prompt: Optional[str]
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False


class _Line:
    """The connection of one request, which another thread may cut: the program then cancels the request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Optional[http.client.HTTPConnection] = None
        self.cut_off = False

    def use(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._connection = connection
            if self.cut_off:
                raise PinionError("the request was aborted")
            connection.connect()

    def cut(self) -> None:
        with self._lock:
            self.cut_off = True
            if self._connection is not None and self._connection.sock is not None:
                try:
                    self._connection.sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has ended


class GenerationResult:
    """A request on its way: result() waits, await does so without blocking the loop, iterating follows a stream."""

    def __init__(self, future: concurrent.futures.Future[RequestOutput], pieces: queue.Queue[Optional[RequestOutput]],
                 line: _Line) -> None:
        self._future, self._pieces, self._line = future, pieces, line

    def abort(self) -> None:
        """Gives the request up: the model stops working on it, result() raises PinionError."""
        self._line.cut()

    def result(self, timeout: Optional[float] = None) -> RequestOutput:
        return self._future.result(timeout)

    def __await__(self) -> Any:
        return asyncio.wrap_future(self._future).__await__()

    def __iter__(self) -> Iterator[RequestOutput]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._future.result()  # raises what went wrong

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        while (piece := await asyncio.to_thread(self._pieces.get)) is not None:
            yield piece
        self._future.result()


_LIBC = ctypes.CDLL(None) if os.name == "posix" and hasattr(ctypes.CDLL(None), "prctl") else None  # Linux
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _shut_down(reference: weakref.ref[LLM]) -> None:
    if (llm := reference()) is not None:
        llm.shutdown()


class LLM:
    """`model`: an engine, a checkpoint directory, or org/name in the local Hugging Face cache. Other keywords are flags
    of `pinion serve` (target="cuda", threads=8, no_timing=True)."""

    def __init__(self, model: Union[str, os.PathLike[str]], tokenizer: Union[str, os.PathLike[str], None] = None, *,
                 dtype: str = "auto", tensor_parallel_size: int = 1, pipeline_parallel_size: int = 1,
                 kv_cache_config: Union[KvCacheConfig, dict[str, Any], None] = None,
                 scheduler_config: Optional[SchedulerConfig] = None, build_config: Optional[BuildConfig] = None,
                 quant_config: Optional[QuantConfig] = None, executor_config: Optional[ExecutorConfig] = None,
                 lora_dir: Union[str, os.PathLike[str], None] = None, max_batch_size: Optional[int] = None,
                 max_num_tokens: Optional[int] = None, max_seq_len: Optional[int] = None,
                 enable_chunked_prefill: bool = True, backend: Optional[str] = None, binary: Optional[str] = None,
                 **flags: Any) -> None:
        if tensor_parallel_size * pipeline_parallel_size != 1:
            raise ValueError("tensor_parallel_size, pipeline_parallel_size: this version runs one rank")
        if lora_dir is not None:
            raise ValueError("lora_dir: adapters are not implemented")
        program = binary or os.environ.get("PINION_BINARY") or shutil.which("pinion")
        if not program:
            raise FileNotFoundError("the program pinion is not in PATH: set PINION_BINARY to its path")
        if isinstance(kv_cache_config, dict):
            kv_cache_config = KvCacheConfig(**kv_cache_config)
        command = [program, "serve", os.fspath(model), "--host", "127.0.0.1", "--port", "0", "--dtype", dtype]
        if tokenizer is not None:
            command += ["--tokenizer", os.fspath(tokenizer)]
        if not enable_chunked_prefill:
            command += ["--chunk_tokens", str(1 << 20)]
        limits = BuildConfig(max_batch_size=max_batch_size, max_num_tokens=max_num_tokens, max_seq_len=max_seq_len)
        for config in (executor_config, kv_cache_config, scheduler_config, build_config, quant_config, limits):
            command += config.flags() if config else []
        for name, value in flags.items():
            if value is True:
                command.append("--" + name)
            elif value is not None and value is not False:
                command += ["--" + name, str(value)]
        self._log: list[str] = []
        self._port = 0
        self._started = threading.Event()
        # A group of its own: Ctrl-C reaches this program, which then decides. When it is killed, so is the model's
        # process; the system ties that to the thread that started it, so only where it lives as long as the program.
        main = threading.current_thread() is threading.main_thread()
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.PIPE, text=True, start_new_session=True,
                                         preexec_fn=_end_with_parent if main and _LIBC is not None else None)
        reference = weakref.ref(self)
        self._at_exit = lambda: _shut_down(reference)
        atexit.register(self._at_exit)
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=256, thread_name_prefix="pinion")
        self._requests = 0
        try:
            self._started.wait()
            if not self._port:
                raise PinionError(self._last_words())
            self.model = json.loads(self._ask("GET", "/v1/models"))["data"][0]["id"]
        except BaseException:
            self.shutdown()
            raise

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log = [*self._log[-50:], line.rstrip()]
            if found := re.search(r"serving .* on http://127\.0\.0\.1:(\d+)", line):
                self._port = int(found[1])
                self._started.set()
        self._started.set()

    def _last_words(self) -> str:
        self._process.wait()
        self._reader.join(5)
        said = [line for line in self._log if line.startswith("error: ")] or self._log[-1:]
        return said[-1].removeprefix("error: ") if said else f"pinion ended with status {self._process.returncode}"

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self.shutdown()

    def shutdown(self) -> None:
        """Ends the process: what still runs is cancelled. May be called again."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        atexit.unregister(self._at_exit)
        self._reader.join(5)
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._pool.shutdown(wait=False)

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
        drawn: use_tqdm is there for programs that set it."""
        if lora_request is not None:
            raise ValueError("lora_request: adapters are not implemented")
        single = isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], int))
        prompts: list[Prompt] = [inputs] if single else list(inputs)
        params = self._each(sampling_params, len(prompts))
        running = [self.generate_async(prompt, p) for prompt, p in zip(prompts, params)]
        done = self._wait(running)
        return done[0] if single else done

    def generate_async(self, inputs: Prompt, sampling_params: Optional[SamplingParams] = None,
                       streaming: bool = False) -> GenerationResult:
        params = sampling_params or SamplingParams()
        body = params.fields() | {"prompt": inputs if isinstance(inputs, str) else list(inputs),
                                  "add_special_tokens": params.add_special_tokens, "return_token_ids": True}
        if params.logprobs is not None:
            body["logprobs"] = params.logprobs
        return self._start("/v1/completions", body, inputs if isinstance(inputs, str) else None, streaming)

    def chat(self, messages: Union[Messages, Sequence[Messages]],
             sampling_params: Union[SamplingParams, Sequence[SamplingParams], None] = None,
             ) -> Union[RequestOutput, list[RequestOutput]]:
        """One conversation, or several; each a list of {"role", "content"}."""
        single = len(messages) == 0 or isinstance(messages[0], dict)
        talks: list[Any] = [messages] if single else list(messages)
        running = []
        for talk, params in zip(talks, self._each(sampling_params, len(talks))):
            body = params.fields() | {"messages": list(talk), "return_token_ids": True}
            if params.logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": params.logprobs}
            running.append(self._start("/v1/chat/completions", body, None, False))
        done = self._wait(running)
        return done[0] if single else done

    def _each(self, params: Any, count: int) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or SamplingParams()] * count
        if len(params) != count:
            raise ValueError(f"{len(params)} sampling_params for {count} inputs")
        return list(params)

    @staticmethod
    def _wait(running: Iterable[GenerationResult]) -> list[RequestOutput]:
        requests = list(running)
        try:
            return [r.result() for r in requests]
        except BaseException:  # Ctrl-C too: nobody waits for the others any more
            for r in requests:
                r.abort()
            raise

    def _start(self, path: str, body: dict[str, Any], prompt: Optional[str], streaming: bool) -> GenerationResult:
        self._requests += 1
        pieces: queue.Queue[Optional[RequestOutput]] = queue.Queue()
        line = _Line()
        future = self._pool.submit(self._run, path, body | {"model": self.model, "stream": streaming}, prompt,
                                   str(self._requests), pieces if streaming else None, line)
        future.add_done_callback(lambda _: pieces.put(None))
        return GenerationResult(future, pieces, line)

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port)

    def _ask(self, method: str, path: str, body: Optional[dict[str, Any]] = None, line: Optional[_Line] = None) -> str:
        connection = self._connect()
        line = line or _Line()
        try:
            line.use(connection)
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(line, error) from error
        finally:
            connection.close()
        if answer.status != 200:
            raise self._refusal(answer.status, text)
        return text

    @staticmethod
    def _refusal(status: int, text: str) -> Exception:
        try:
            message = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"HTTP {status}: {text[:200]}"
        return ValueError(message) if status in (400, 404, 422) else PinionError(message)

    def _run(self, path: str, body: dict[str, Any], prompt: Optional[str], request_id: str,
             pieces: Optional[queue.Queue[Optional[RequestOutput]]], line: _Line) -> RequestOutput:
        out = RequestOutput(request_id, prompt, [], [])
        if pieces is None:
            for choice in json.loads(self._ask("POST", path, body, line))["choices"]:
                self._add(out, choice)
        else:
            for event in self._events(path, body, line):
                if "error" in event:
                    raise PinionError(event["error"]["message"])
                for choice in event["choices"]:
                    self._add(out, choice)
                pieces.put(dataclasses.replace(out, outputs=[dataclasses.replace(o, token_ids=list(o.token_ids))
                                                             for o in out.outputs]))
        out.finished = True
        return out

    def _broken(self, line: _Line, error: Exception) -> PinionError:
        if line.cut_off:
            return PinionError("the request was aborted")
        return PinionError(self._last_words() if self._process.poll() is not None else str(error))

    def _events(self, path: str, body: dict[str, Any], line: _Line) -> Iterator[dict[str, Any]]:
        connection = self._connect()
        ended = False
        try:
            line.use(connection)
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise self._refusal(answer.status, answer.read().decode())
            for event in answer:
                ended = ended or event.startswith(b"data: [DONE]")
                if event.startswith(b"data: ") and not ended:
                    yield json.loads(event[6:])
            if not ended:
                raise self._broken(line, PinionError("the stream was cut"))
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(line, error) from error
        finally:
            connection.close()

    @staticmethod
    def _add(out: RequestOutput, choice: dict[str, Any]) -> None:
        while len(out.outputs) <= choice["index"]:
            out.outputs.append(CompletionOutput(len(out.outputs)))
        to = out.outputs[choice["index"]]
        message = choice.get("message") or choice.get("delta") or {}
        to.text_diff = choice.get("text", message.get("content")) or ""
        to.text += to.text_diff
        to.token_ids += choice.get("token_ids") or []
        out.prompt_token_ids = choice.get("prompt_token_ids") or out.prompt_token_ids
        to.finish_reason = choice.get("finish_reason") or to.finish_reason
        to.stop_reason = choice.get("stop_reason") or to.stop_reason
        if logprobs := choice.get("logprobs"):
            chosen = [t["logprob"] for t in logprobs["content"]] if "content" in logprobs else logprobs["token_logprobs"]
            to.logprobs += chosen
            to.cumulative_logprob = (to.cumulative_logprob or 0) + sum(chosen)
