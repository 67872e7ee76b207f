"""What requests give back, and the one thread that carries pieces of output from the engine to them."""
from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import itertools
import queue
import threading
from typing import Any, AsyncIterator, Callable, Iterator, Optional, Union

from ._config import SamplingParams
from ._engine import Engine, Event, Sampling, TokenLogprob
from ._errors import PinionError


@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    cumulative_logprob: Optional[float] = None
    logprobs: list[float] = dataclasses.field(default_factory=list)  # of the chosen tokens, when asked for
    top_logprobs: list[dict[int, float]] = dataclasses.field(default_factory=list)  # the best in their places
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
    prompt_logprobs: list[Optional[float]] = dataclasses.field(default_factory=list)  # the first token has none
    cached_tokens: int = 0  # of the prompt, found in the KV cache


class GenerationResult:
    """A request on its way: result() waits, await does so without blocking the loop, iterating follows a stream."""

    def __init__(self, owner: object, carrier: Carrier, output: RequestOutput, params: SamplingParams,
                 streaming: bool) -> None:
        self._owner = owner  # the model lives as long as somebody waits for it
        self._carrier, self._output, self._params, self._streaming = carrier, output, params, streaming
        self._tickets: list[int] = []
        self._open = params.sequences
        self._error: Optional[PinionError] = None
        self._future: concurrent.futures.Future[RequestOutput] = concurrent.futures.Future()
        self._future.set_running_or_notify_cancel()  # who stops waiting does not end it for the others; abort() does
        self._pieces: queue.SimpleQueue[Optional[RequestOutput]] = queue.SimpleQueue()
        self._notify: Callable[[], object] = lambda: None
        output.outputs = [CompletionOutput(index) for index in range(params.sequences)]

    @property
    def request_id(self) -> str:
        return self._output.request_id

    @property
    def finished(self) -> bool:
        return self._future.done()

    def abort(self) -> None:
        """Gives the request up: the model stops working on it, result() raises Aborted."""
        for ticket in self._tickets:
            self._carrier.cancel(ticket)

    def result(self, timeout: Optional[float] = None) -> RequestOutput:
        return self._future.result(timeout)

    async def aresult(self) -> RequestOutput:
        try:
            return await asyncio.wrap_future(self._future)
        except asyncio.CancelledError:
            self.abort()
            raise

    def __await__(self) -> Any:
        return self.aresult().__await__()

    def __iter__(self) -> Iterator[RequestOutput]:
        try:
            while (piece := self._pieces.get()) is not None:
                yield piece
        except KeyboardInterrupt:
            self.abort()
            raise
        self._future.result()  # raises what went wrong

    async def __aiter__(self) -> AsyncIterator[RequestOutput]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        self._notify = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            while True:
                arrived.clear()
                try:
                    while (piece := self._pieces.get_nowait()) is not None:
                        yield piece
                    break
                except queue.Empty:
                    await arrived.wait()
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._notify = lambda: None
        self._future.result()

    def submit(self, prompt: list[int], sampling: Sampling) -> GenerationResult:
        """Once, by the model: every sequence of the request."""
        try:
            for index in range(self._params.sequences):
                self._tickets.append(self._carrier.submit(self, index, prompt, sampling))
                if sampling.seed is not None:
                    sampling.seed = (sampling.seed + 1) % 2**64  # else all were the same
        except BaseException:
            self.abort()
            raise
        return self

    def add(self, index: int, event: Event) -> None:
        """On the carrier's thread."""
        to = self._output.outputs[index]
        to.text_diff = event.text
        to.text += event.text
        to.token_ids += event.tokens
        self._add_logprobs(to, event.logprobs)
        if prompt := event.prompt_logprobs:
            self._output.prompt_logprobs = [None, *(entry.logprob for entry in prompt[1:])]
        if event.finish is not None:
            self._end(to, event)
        if self._streaming and self._error is None:
            self._pieces.put(self._snapshot())
        if self._open == 0:
            self._settle()
        self._wake()

    def _add_logprobs(self, to: CompletionOutput, entries: list[TokenLogprob]) -> None:
        if not entries:
            return
        to.logprobs += [entry.logprob for entry in entries]
        to.cumulative_logprob = (to.cumulative_logprob or 0.0) + sum(entry.logprob for entry in entries)
        if self._params.logprobs:
            to.top_logprobs += [dict(entry.top) for entry in entries]

    def _end(self, to: CompletionOutput, event: Event) -> None:
        self._open -= 1
        self._output.cached_tokens = max(self._output.cached_tokens, event.cached_tokens)
        to.finish_reason = event.finish
        if event.stop_reason:
            last = to.token_ids[-1] if to.token_ids else None
            to.stop_reason = last if str(last) == event.stop_reason else event.stop_reason
        try:
            event.raise_error()
        except PinionError as error:
            self._error = self._error or error
            self.abort()

    def _settle(self) -> None:
        if self._error is not None:
            self._future.set_exception(self._error)
        else:
            self._output.finished = True
            outputs, n = self._output.outputs, self._params.n
            if n < len(outputs):  # the best by mean log probability
                outputs.sort(key=lambda o: -(o.cumulative_logprob or 0.0) / max(1, o.length))
                self._output.outputs = [dataclasses.replace(o, index=index) for index, o in enumerate(outputs[:n])]
            self._future.set_result(self._output)
        self._pieces.put(None)

    def _snapshot(self) -> RequestOutput:
        return dataclasses.replace(self._output, finished=self._open == 0, outputs=[
            dataclasses.replace(o, token_ids=list(o.token_ids), logprobs=list(o.logprobs)) for o in self._output.outputs])

    def _wake(self) -> None:
        try:
            self._notify()
        except RuntimeError:
            pass  # that event loop has ended


class Carrier:
    """Waits for the engine's output on a thread of its own and gives each piece to its request."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[int, tuple[GenerationResult, int]] = {}
        self._sequences = itertools.count(1)
        self._thread = threading.Thread(target=self._run, name="pinion-output", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationResult, index: int, prompt: list[int], sampling: Sampling) -> int:
        sequence = next(self._sequences)
        self._open[sequence] = (request, index)  # first: its output may come at once
        try:
            return self._engine.submit(sequence, prompt, sampling)
        except BaseException:
            del self._open[sequence]
            raise

    def cancel(self, ticket: int) -> None:
        try:
            self._engine.cancel(ticket)
        except PinionError:
            pass  # the engine was closed, which cancels everything

    def end(self) -> None:
        """The engine was closed: what is left is given out, then the thread ends."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while events := self._engine.take():
            for event in events:
                request, index = self._open[event.sequence] if event.finish is None else self._open.pop(event.sequence)
                request.add(index, event)
            del events, event, request  # a model that nobody else holds is freed here
