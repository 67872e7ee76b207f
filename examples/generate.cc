// Opens an engine and prints what the model writes behind a prompt: generate ENGINE_DIR PROMPT
#include <cstdio>
#include <future>

#include "backend/all/backends.h"
#include "engine/engine.h"
#include "runtime/engine_executor.h"
#include "runtime/engine_loop.h"
#include "text/tokenizer.h"

int main(int argc, char** argv) {
  using namespace pinion;
  if (argc != 3) return std::fprintf(stderr, "usage: generate ENGINE_DIR PROMPT\n"), 2;
  const auto failed = [](const Error& e) { return std::fprintf(stderr, "error: %s\n", e.message.c_str()), 1; };

  auto engine = Engine::open(argv[1]);
  if (!engine) return failed(engine.error());
  auto tokenizer = Tokenizer::load(argv[1]);
  if (!tokenizer) return failed(tokenizer.error());
  const Backend* backend = find_backend(engine->manifest().target);
  if (!backend) return failed(fail(Errc::unsupported, "this build has no backend", engine->manifest().target));
  auto device = backend->open({});
  if (!device) return failed(device.error());
  auto executor = EngineExecutor::create(*engine, *backend, **device, {.max_batch_size = 1, .max_num_tokens = 256});
  if (!executor) return failed(executor.error());

  EngineLoop loop(**executor, &*tokenizer, {.max_batch_size = 1});
  std::promise<void> done;  // the sink runs on the loop's thread
  Request request{.id = "1", .prompt = tokenizer->encode(argv[2], true)};
  request.sampling.temperature = 0;
  request.sampling.max_tokens = 32;
  auto ticket = loop.submit(std::move(request), [&](OutputPiece piece) {
    std::fputs(piece.text.c_str(), stdout);
    if (piece.finish != FinishReason::none) done.set_value();
  });
  if (!ticket) return failed(ticket.error());
  done.get_future().wait();
  std::puts("");
}
