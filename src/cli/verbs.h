// The verbs of the command line: one file each. A verb adds its options to `app` and returns what runs it.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "base/result.h"

namespace pinion::cli {

using Verb = std::function<Status()>;

Verb add_bench(CLI::App& app);
Verb add_build(CLI::App& app);
Verb add_chat(CLI::App& app);
Verb add_convert(CLI::App& app);
Verb add_diff(CLI::App& app);
Verb add_doctor(CLI::App& app);
Verb add_eval(CLI::App& app);
Verb add_generate(CLI::App& app);
Verb add_inspect(CLI::App& app);
Verb add_logits(CLI::App& app);
Verb add_plan(CLI::App& app);
Verb add_quantize(CLI::App& app);
Verb add_render(CLI::App& app);
Verb add_serve(CLI::App& app);
Verb add_tokenize(CLI::App& app);
Verb add_triton_repo(CLI::App& app);

}  // namespace pinion::cli
