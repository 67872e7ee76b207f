// pinion: the command line. Exit status: 0 done, 1 the work failed, 2 the arguments or inputs are bad. Results go to
// standard output, errors to standard error as "error: what (where) — what to do".
#include <fmt/format.h>
#include <signal.h>

#include <cstdio>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "cli/verbs.h"

namespace pinion::cli {
namespace {

struct Entry {
  const char *name, *about;
  Verb (*add)(CLI::App&);
};

constexpr Entry kVerbs[] = {
    {"build", "compile a checkpoint into an engine", add_build},
    {"generate", "generate text (or token ids) from a prompt", add_generate},
    {"chat", "talk to a model in the terminal", add_chat},
    {"serve", "serve a model over HTTP (OpenAI API)", add_serve},
    {"bench", "measure latency, throughput and the machine's ceilings", add_bench},
    {"plan", "will it fit, how fast can it be", add_plan},
    {"convert", "write a checkpoint: other dtype, tensor-parallel shards", add_convert},
    {"quantize", "write a checkpoint in a quantised format", add_quantize},
    {"inspect", "show what an engine holds", add_inspect},
    {"diff", "run an engine against the reference, node by node", add_diff},
    {"eval", "perplexity, and agreement with another model", add_eval},
    {"logits", "write the logits of every position", add_logits},
    {"tokenize", "text to ids and back, a JSON line each", add_tokenize},
    {"render", "the text that a chat template makes of messages", add_render},
    {"triton-repo", "write a Triton model repository around an engine", add_triton_repo},
    {"doctor", "what this machine has and what Pinion can use of it", add_doctor},
};

int exit_code(const Error& error) {
  switch (error.code) {
    case Errc::invalid_argument:
    case Errc::not_found:
    case Errc::corrupt:
    case Errc::unsupported:
      return 2;
    default:
      return 1;
  }
}

// Option names are written with underscores; users of other tools write dashes. Both mean the same.
std::vector<std::string> normalise(int argc, char** argv) {
  std::vector<std::string> args;
  bool options = true;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    if (arg == "--") options = false;
    if (options && arg.size() > 2 && arg.starts_with("--")) {
      const size_t end = std::min(arg.find('='), arg.size());
      std::replace(arg.begin() + 2, arg.begin() + static_cast<std::ptrdiff_t>(end), '-', '_');
    }
    args.push_back(std::move(arg));
  }
  return args;
}

int run(int argc, char** argv) {
  CLI::App app("Pinion compiles language models and serves them.", "pinion");
  app.set_version_flag("--version", PINION_VERSION);
  std::string log;
  app.add_option("--log_level", log, "trace, debug, info, warn, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
  app.require_subcommand(1);
  app.fallthrough();
  Status status;
  for (const Entry& e : kVerbs) {
    CLI::App* sub = app.add_subcommand(e.name, e.about);
    sub->callback([&status, verb = e.add(*sub), &log] {
      init_log(log);
      status = verb();
    });
  }
  std::vector<std::string> args = normalise(argc, argv);
  std::reverse(args.begin(), args.end());  // CLI11 takes them last first
  try {
    app.parse(args);
  } catch (const CLI::CallForHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForAllHelp& e) {
    return app.exit(e);
  } catch (const CLI::CallForVersion& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    std::string verb = "pinion", what = e.what();
    for (const CLI::App* sub = &app; !sub->get_subcommands().empty();) {
      sub = sub->get_subcommands().front();
      verb += " " + sub->get_name();
    }
    if (verb == "pinion" && argc > 1 && argv[1][0] != '-') what = fmt::format("there is no verb \"{}\"", argv[1]);
    fmt::print(stderr, "error: {}\n", fail(Errc::invalid_argument, what, verb, "see " + verb + " --help").message);
    return 2;
  }
  if (!status) {
    std::fflush(stdout);
    fmt::print(stderr, "error: {}\n", status.error().message);
    return exit_code(status.error());
  }
  return std::fflush(stdout) == 0 ? 0 : 1;
}

}  // namespace
}  // namespace pinion::cli

int main(int argc, char** argv) {
  signal(SIGXFSZ, SIG_IGN);  // a write past the limit on file sizes then fails as on a full disk, and is reported so
  try {
    return pinion::cli::run(argc, argv);
  } catch (const pinion::DeviceError& e) {
    fmt::print(stderr, "error: {}\n", e.what());
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "error: out of memory — use smaller limits or a smaller model\n");
  } catch (const std::exception& e) {
    fmt::print(stderr, "error: {} — this is a bug in Pinion\n", e.what());
  }
  return 1;
}
