// What Python sees of the engine: plain values, and one class whose calls release the interpreter's lock. Errors leave
// as the exceptions of pinion/_errors.py, with the engine's own text.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "loaded_engine.h"

namespace nb = nanobind;

namespace pinion::python {
namespace {

struct Failure {
  Error error;
};

template <class T>
T value_or_throw(Result<T> result) {
  if (!result) throw Failure{std::move(result).error()};
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

const char* exception_name(Errc code) {
  switch (code) {
    case Errc::invalid_argument:
    case Errc::unsupported:
      return "InvalidArgument";
    case Errc::exhausted:
      return "Exhausted";
    case Errc::cancelled:
      return "Aborted";
    case Errc::not_found:
    case Errc::corrupt:
    case Errc::io:
    case Errc::internal:
      break;
  }
  return "PinionError";
}

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Failure& failure) {
    nb::object type = nb::module_::import_("pinion._errors").attr(exception_name(failure.error.code));
    PyErr_SetString(type.ptr(), failure.error.message.c_str());
  }
}

// A model is loaded, and compiled where it must be, on a thread of its own, so that Ctrl-C ends the wait at once. What
// nobody waits for any more is freed when it is done; the interpreter's end waits for that.
struct Loading {
  std::mutex mutex;
  std::condition_variable done;
  std::unique_ptr<Result<std::unique_ptr<LoadedEngine>>> result;
  bool abandoned = false;
};

std::mutex abandoned_mutex;
std::vector<std::thread> abandoned;

std::unique_ptr<LoadedEngine> load(const Options& options) {
  auto loading = std::make_shared<Loading>();
  std::thread thread([loading, options] {
    auto result = std::make_unique<Result<std::unique_ptr<LoadedEngine>>>(
        fail(Errc::internal, "loading the model did not end", options.model.model));
    try {
      *result = LoadedEngine::load(options);
    } catch (const std::exception& bug) {  // check(), or a device that failed
      *result = fail(Errc::internal, bug.what(), options.model.model);
    }
    const std::lock_guard lock(loading->mutex);
    if (!loading->abandoned) loading->result = std::move(result);
    loading->done.notify_all();
  });
  for (;;) {
    bool done = false;
    {
      const nb::gil_scoped_release unlocked;
      std::unique_lock lock(loading->mutex);
      done = loading->done.wait_for(lock, std::chrono::milliseconds(20), [&] { return loading->result != nullptr; });
    }
    if (done) break;
    if (PyErr_CheckSignals() == 0) continue;
    {
      const std::lock_guard lock(loading->mutex);
      loading->abandoned = true;
    }
    const std::lock_guard lock(abandoned_mutex);
    abandoned.push_back(std::move(thread));
    throw nb::python_error();
  }
  thread.join();
  return value_or_throw(std::move(*loading->result));
}

void wait_for_abandoned() {
  const nb::gil_scoped_release unlocked;
  const std::lock_guard lock(abandoned_mutex);
  for (std::thread& thread : abandoned) thread.join();
  abandoned.clear();
}

std::optional<const char*> finish_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      break;
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::cancelled:
      return "cancelled";
    case FinishReason::error:
      return "error";
  }
  return std::nullopt;
}

// `Options` is nested plain data; Python sees it flat, under the names of the program's flags.
#define PINION_SETTING(name, member)                                                        \
  def_prop_rw(                                                                              \
      name, [](const Options& o) { return o.member; },                                      \
      [](Options& o, std::remove_cvref_t<decltype(std::declval<Options>().member)> value) { \
        o.member = std::move(value);                                                        \
      })

void bind_options(nb::module_& m) {
  nb::class_<Options>(m, "Options", "What a model is loaded with: the flags of `pinion serve`, by their names.")
      .def(nb::init<>())
      .PINION_SETTING("model", model.model)
      .PINION_SETTING("tokenizer", model.tokenizer)
      .PINION_SETTING("target", model.build.target)
      .PINION_SETTING("dtype", model.build.dtype)
      .PINION_SETTING("kv_cache_dtype", model.build.kv_cache_dtype)
      .PINION_SETTING("qformat", model.build.qformat)
      .PINION_SETTING("load_format", model.build.load_format)
      .PINION_SETTING("isa", model.build.isa)
      .PINION_SETTING("tokens_per_block", model.build.tokens_per_block)
      .PINION_SETTING("threads", model.build.threads)
      .PINION_SETTING("deterministic", model.build.deterministic)
      .PINION_SETTING("no_timing", model.build.no_timing)
      .PINION_SETTING("expand_weights", model.build.expand_weights)
      .PINION_SETTING("disable_pass", model.build.disabled_passes)
      .PINION_SETTING("force_kernel", model.build.force_kernel)
      .PINION_SETTING("rope_theta", model.build.rope_theta)
      .PINION_SETTING("rope_scaling_factor", model.build.rope_scaling_factor)
      .PINION_SETTING("max_batch_size", model.limits.max_batch_size)
      .PINION_SETTING("max_num_tokens", model.limits.max_num_tokens)
      .PINION_SETTING("max_seq_len", model.limits.max_seq_len)
      .PINION_SETTING("kv_cache_free_gpu_memory_fraction", model.limits.kv_cache_fraction)
      .PINION_SETTING("kv_cache_max_tokens", model.limits.kv_cache_tokens)
      .PINION_SETTING("kv_cache_host_memory_bytes", model.limits.kv_cache_host_bytes)
      .PINION_SETTING("batch_scheduler_policy", policy)
      .PINION_SETTING("max_queue", max_queue)
      .PINION_SETTING("chunk_tokens", chunk_tokens)
      .PINION_SETTING("no_prefix_reuse", no_prefix_reuse);
}
#undef PINION_SETTING

void bind_values(nb::module_& m) {
  using S = SamplingParams;
  nb::class_<S>(m, "Sampling", "How one sequence's tokens are chosen (runtime/request.h).")
      .def(nb::init<>())
      .def_rw("temperature", &S::temperature)
      .def_rw("top_k", &S::top_k)
      .def_rw("top_p", &S::top_p)
      .def_rw("min_p", &S::min_p)
      .def_rw("repetition_penalty", &S::repetition_penalty)
      .def_rw("presence_penalty", &S::presence_penalty)
      .def_rw("frequency_penalty", &S::frequency_penalty)
      .def_rw("logit_bias", &S::logit_bias)
      .def_rw("bad_words", &S::bad_words)
      .def_rw("seed", &S::seed, nb::arg().none())
      .def_rw("max_tokens", &S::max_tokens)
      .def_rw("min_tokens", &S::min_tokens)
      .def_rw("ignore_eos", &S::ignore_eos)
      .def_rw("stop_token_ids", &S::stop_token_ids)
      .def_rw("stop", &S::stop)
      .def_rw("include_stop", &S::include_stop)
      .def_rw("skip_special_tokens", &S::skip_special_tokens)
      .def_rw("logprobs", &S::logprobs)
      .def_rw("prompt_logprobs", &S::prompt_logprobs);
  nb::class_<TokenLogprob>(m, "TokenLogprob", "A token's log probability, and those of the best in its place.")
      .def_ro("token", &TokenLogprob::token)
      .def_ro("logprob", &TokenLogprob::logprob)
      .def_ro("rank", &TokenLogprob::rank)
      .def_ro("top", &TokenLogprob::top);
  nb::class_<Event>(m, "Event", "A piece of a sequence's output; the last one has a finish.")
      .def_ro("sequence", &Event::sequence)
      .def_prop_ro("tokens", [](const Event& e) { return e.piece.tokens; })
      .def_prop_ro("text", [](const Event& e) { return e.piece.text; })
      .def_prop_ro("logprobs", [](const Event& e) { return e.piece.logprobs; })
      .def_prop_ro("prompt_logprobs", [](const Event& e) { return e.piece.prompt_logprobs; })
      .def_prop_ro("finish", [](const Event& e) { return finish_name(e.piece.finish); })
      .def_prop_ro("stop_reason", [](const Event& e) { return e.piece.stop_reason; })
      .def_prop_ro("cached_tokens", [](const Event& e) { return e.piece.cached_tokens; })
      .def(
          "raise_error",
          [](const Event& e) {
            if (e.piece.error) throw Failure{*e.piece.error};
            if (e.piece.finish == FinishReason::error) throw Failure{fail(Errc::internal, "the request failed")};
            if (e.piece.finish == FinishReason::cancelled)
              throw Failure{fail(Errc::cancelled, "the request was aborted")};
          },
          "Raises what ended the sequence before its time, if anything did.");
  nb::class_<LoopStats>(m, "Stats", "Counters since the model was loaded, and what runs now.")
      .def_ro("requests_finished", &LoopStats::requests_finished)
      .def_ro("requests_failed", &LoopStats::requests_failed)
      .def_ro("requests_cancelled", &LoopStats::requests_cancelled)
      .def_ro("prompt_tokens", &LoopStats::prompt_tokens)
      .def_ro("cached_tokens", &LoopStats::cached_tokens)
      .def_ro("output_tokens", &LoopStats::output_tokens)
      .def_ro("steps", &LoopStats::steps)
      .def_ro("preemptions", &LoopStats::preemptions)
      .def_ro("running", &LoopStats::running)
      .def_ro("waiting", &LoopStats::waiting)
      .def_ro("blocks_total", &LoopStats::blocks_total)
      .def_ro("blocks_used", &LoopStats::blocks_used)
      .def_ro("blocks_cached", &LoopStats::blocks_cached)
      .def_ro("host_blocks_total", &LoopStats::host_blocks_total)
      .def_ro("host_blocks_used", &LoopStats::host_blocks_used)
      .def_ro("host_hit_blocks", &LoopStats::host_hit_blocks);
}

std::string_view view(const nb::bytes& bytes) {
  return {bytes.c_str(), bytes.size()};
}

void bind_engine(nb::module_& m) {
  using E = LoadedEngine;
  using unlocked = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<E>(m, "Engine",
                "A model in this process. Its calls release the interpreter's lock; any thread may make them.")
      .def_static("load", &load, nb::arg("options"), "Opens an engine, or compiles a checkpoint into the cache first.")
      .def(
          "submit",
          [](E& e, uint64_t sequence, std::vector<int32_t> prompt, const SamplingParams& sampling) {
            return value_or_throw(e.submit(sequence, std::move(prompt), sampling));
          },
          nb::arg("sequence"), nb::arg("prompt"), nb::arg("sampling"), unlocked(),
          "Queues a prompt; returns the ticket for cancel().")
      .def(
          "cancel", [](E& e, uint64_t ticket) { value_or_throw(e.cancel(ticket)); }, nb::arg("ticket"), unlocked())
      .def(
          "take", [](E& e) { return value_or_throw(e.take()); }, unlocked(),
          "Waits for output. An empty list: the engine was closed.")
      .def("close", &E::close, unlocked(), "Cancels what runs, ends the threads, frees the model.")
      .def(
          "encode",
          [](const E& e, const nb::bytes& text, bool add_special_tokens) {
            const std::string_view utf8 = view(text);
            const nb::gil_scoped_release release;
            return value_or_throw(e.encode(utf8, add_special_tokens));
          },
          nb::arg("text"), nb::arg("add_special_tokens"))
      .def(
          "decode",
          [](const E& e, const std::vector<int32_t>& ids, bool skip_special_tokens) {
            return value_or_throw(e.decode(ids, skip_special_tokens));
          },
          nb::arg("ids"), nb::arg("skip_special_tokens"), unlocked())
      .def(
          "chat",
          [](const E& e, const std::string& messages, const std::string& tools, const std::string& arguments,
             bool add_generation_prompt) {
            return value_or_throw(e.chat(messages, tools, arguments, add_generation_prompt));
          },
          nb::arg("messages"), nb::arg("tools"), nb::arg("arguments"), nb::arg("add_generation_prompt"), unlocked(),
          "Messages through the chat template (all JSON): the prompt's ids.")
      .def("default_sampling", [](const E& e) { return value_or_throw(e.default_sampling()); })
      .def("stats", [](const E& e) { return value_or_throw(e.stats()); })
      .def_prop_ro("name", [](const E& e) { return value_or_throw(e.name()); })
      .def_prop_ro("max_seq_len", [](const E& e) { return value_or_throw(e.max_seq_len()); });
}

}  // namespace
}  // namespace pinion::python

NB_MODULE(_engine, m) {
  using namespace pinion::python;
  m.doc() = "The engine in the process of Python; pinion.LLM is what programs use.";
  nb::register_exception_translator(&translate);
  pinion::init_log(std::getenv("PINION_LOG") ? "" : "warn");
  bind_options(m);
  bind_values(m);
  bind_engine(m);
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(&wait_for_abandoned));
  nb::set_leak_warnings(false);  // a program may end with an LLM in a global: pinion._llm has closed it by then
}
