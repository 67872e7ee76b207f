// pinion doctor: what this machine has, what Pinion can use of it, what is missing and how to get it. Reads files only;
// CUDA is looked for without being linked.
#include <fmt/format.h>
#include <spdlog/version.h>

#include <CLI/Version.hpp>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>
#if __has_include(<boost/version.hpp>)
#include <boost/version.hpp>
#endif

#include "backend/all/backends.h"
#include "base/thread_pool.h"
#include "checkpoint/hf_cache.h"
#include "cli/model.h"
#include "cli/models_table.h"
#include "cli/verbs.h"
#include "models/families.h"

namespace pinion::cli {
namespace fs = std::filesystem;
namespace {

std::string first_line(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// The value of "key : value" in /proc/cpuinfo and /proc/meminfo.
std::string proc_value(const char* path, std::string_view key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || !line.starts_with(key)) continue;
    if (line.find_first_not_of(" \t", key.size()) != colon) continue;
    const size_t at = line.find_first_not_of(" \t", colon + 1);
    return at == std::string::npos ? "" : line.substr(at);
  }
  return "";
}

Json cpu_json() {
  Json isa = Json::array();
  std::istringstream flags(proc_value("/proc/cpuinfo", "flags"));
  for (std::string f; flags >> f;) {
    for (const char* known : {"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni", "avx512_fp16",
                              "amx_bf16", "amx_int8"}) {
      if (f == known) isa.push_back(f);
    }
  }
  return {{"model", proc_value("/proc/cpuinfo", "model name")},
          {"logical_cpus", std::thread::hardware_concurrency()},
          {"usable_threads", available_cpus()},
          {"flags", isa}};
}

Json memory_json() {
  const auto bytes = [](std::string_view key) {
    return std::strtoull(proc_value("/proc/meminfo", key).c_str(), nullptr, 10) * 1024;
  };
  Json out{{"total_bytes", bytes("MemTotal")}, {"available_bytes", bytes("MemAvailable")}, {"limit_bytes", nullptr}};
  const std::string limit = first_line("/sys/fs/cgroup/memory.max");  // the container's, where there is one
  if (!limit.empty() && limit != "max") out["limit_bytes"] = std::strtoull(limit.c_str(), nullptr, 10);
  return out;
}

std::string find_program(const std::string& name) {
  std::vector<fs::path> dirs;
  std::istringstream path(std::getenv("PATH") ? std::getenv("PATH") : "");
  for (std::string dir; std::getline(path, dir, ':');) dirs.emplace_back(dir);
  dirs.emplace_back("/usr/local/cuda/bin");
  for (const fs::path& dir : dirs) {
    std::error_code code;
    if (fs::is_regular_file(dir / name, code)) return (dir / name).string();
  }
  return "";
}

Json cuda_json(bool compiled_in) {
  std::error_code code;
  Json devices = Json::array();
  for (int i = 0; i < 64; ++i) {
    const std::string node = fmt::format("/dev/nvidia{}", i);
    if (fs::exists(node, code)) devices.push_back(node);
  }
  std::string driver = first_line("/sys/module/nvidia/version");
  if (driver.empty()) driver = first_line("/proc/driver/nvidia/version");
  const std::string nvcc = find_program("nvcc");
  std::string note = compiled_in ? "" : "this build has no CUDA backend: models run on the CPU";
  if (!compiled_in && !devices.empty()) note += "; the GPUs found here stay unused";
  if (const Backend* backend = find_backend("cuda"); backend != nullptr && backend->probe().empty()) {
    if (auto device = backend->open({}); !device.ok()) note = device.error().message;
  }
  const auto or_null = [](const std::string& s) { return s.empty() ? Json(nullptr) : Json(s); };
  return {{"backend", compiled_in},
          {"driver", or_null(driver)},
          {"devices", devices},
          {"toolkit", or_null(nvcc)},
          {"note", note}};
}

Json place_json(const fs::path& path) {
  std::error_code code;
  fs::path existing = path;
  while (!existing.empty() && !fs::exists(existing, code) && existing != existing.parent_path())
    existing = existing.parent_path();
  const auto space = fs::space(existing, code);
  return {{"path", path.string()},
          {"exists", fs::exists(path, code)},
          {"free_bytes", code ? Json(nullptr) : Json(space.available)}};
}

Json libraries_json() {
  Json out{{"fmt", fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100)},
           {"spdlog", fmt::format("{}.{}.{}", SPDLOG_VER_MAJOR, SPDLOG_VER_MINOR, SPDLOG_VER_PATCH)},
           {"CLI11", CLI11_VERSION},
           {"nlohmann-json", fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR,
                                         NLOHMANN_JSON_VERSION_PATCH)},
           {"compiler", __VERSION__}};
#ifdef BOOST_LIB_VERSION
  out["boost"] = BOOST_LIB_VERSION;
#endif
  return out;
}

Json report() {
  Json out{{"version", PINION_VERSION}, {"cpu", cpu_json()}, {"memory", memory_json()}, {"backends", Json::array()}};
  bool cuda = false;
  for (const Backend* b : backends()) {
    Json devices = Json::array();
    for (const DeviceInfo& d : b->probe()) {
      devices.push_back({{"name", d.name}, {"isa", d.isa}, {"threads", d.threads}, {"memory_bytes", d.memory_bytes}});
    }
    out["backends"].push_back({{"name", b->name()}, {"devices", devices}});
    cuda |= b->name() == "cuda";
  }
  out["cuda"] = cuda_json(cuda);
  out["caches"] = {{"pinion", place_json(cache_dir())}, {"hugging_face", place_json(hf_hub_cache())}};
  out["libraries"] = libraries_json();
  Json families = Json::array();
  for (const ModelFamily& f : model_families()) families.push_back(f.architecture);
  out["families"] = families;

  Json advice = Json::array();
  if (available_cpus() < static_cast<int>(std::thread::hardware_concurrency())) {
    advice.push_back(
        fmt::format("this process may use {} of {} CPUs: raise the affinity mask or the container's CPU quota for more",
                    available_cpus(), std::thread::hardware_concurrency()));
  }
  const std::string flags = out["cpu"]["flags"].dump();
  if (flags.find("avx2") == std::string::npos)
    advice.push_back("the CPU has no AVX2: the scalar kernels serve, slowly");
  if (const Json& free = out["caches"]["pinion"]["free_bytes"];
      free.is_number() && free.get<uint64_t>() < (uint64_t{2} << 30)) {
    advice.push_back("less than 2 GiB are free for the engine cache: set PINION_CACHE to a larger disk");
  }
  out["advice"] = advice;
  return out;
}

double gib(const Json& bytes) {
  return bytes.is_number() ? bytes.get<double>() / (1 << 30) : 0;
}

void print(const Json& r) {
  const auto text = [](const Json& j) { return j.is_string() ? j.get<std::string>() : std::string("none"); };
  fmt::print("{}\n\n", text(r["version"]));
  std::string flags;
  for (const Json& f : r["cpu"]["flags"]) flags += " " + text(f);
  fmt::print("CPU       {}\n", text(r["cpu"]["model"]));
  fmt::print("          {} logical CPUs, {} usable by this process\n         {}\n", r["cpu"]["logical_cpus"].get<int>(),
             r["cpu"]["usable_threads"].get<int>(), flags);
  fmt::print("memory    {:.1f} GiB, {:.1f} GiB available", gib(r["memory"]["total_bytes"]),
             gib(r["memory"]["available_bytes"]));
  if (r["memory"]["limit_bytes"].is_number()) fmt::print(", limited to {:.1f} GiB", gib(r["memory"]["limit_bytes"]));
  fmt::print("\n");
  for (const Json& b : r["backends"]) {
    for (const Json& d : b["devices"])
      fmt::print("backend   {}: {} ({}, {} threads)\n", text(b["name"]), text(d["name"]), text(d["isa"]),
                 d["threads"].get<int>());
    if (b["devices"].empty()) fmt::print("backend   {}: no device\n", text(b["name"]));
  }
  const Json& c = r["cuda"];
  fmt::print("CUDA      driver {}, {} devices, toolkit {}\n", text(c["driver"]), c["devices"].size(),
             text(c["toolkit"]));
  if (!text(c["note"]).empty()) fmt::print("          {}\n", text(c["note"]));
  for (const auto& [name, place] : r["caches"].items()) {
    fmt::print("cache     {}: {}{}, {:.1f} GiB free\n", name, text(place["path"]),
               place["exists"].get<bool>() ? "" : " (not there yet)", gib(place["free_bytes"]));
  }
  std::string libraries;
  for (const auto& [name, version] : r["libraries"].items())
    libraries += fmt::format("{}{} {}", libraries.empty() ? "" : ", ", name, text(version));
  fmt::print("libraries {}\n", libraries);
  std::string families;
  for (const Json& f : r["families"]) families += fmt::format("{}{}", families.empty() ? "" : ", ", text(f));
  fmt::print("families  {}\n", families);
  for (const Json& a : r["advice"]) fmt::print("advice    {}\n", text(a));
}

}  // namespace

Verb add_doctor(CLI::App& app) {
  struct Args {
    bool json = false, models = false, markdown = false;
  };
  auto a = std::make_shared<Args>();
  app.add_flag("--json", a->json,
               "print one JSON object: version, cpu, memory, backends, cuda, caches, libraries, families, advice");
  app.add_flag("--models", a->models,
               "list the model families and nothing else: options, backends, sharding; with --json as one object");
  app.add_flag("--markdown", a->markdown, "with --models: as the page docs/guide/models.md")->needs("--models");
  return [a]() -> Status {
    if (a->models) {
      PINION_TRY(const std::vector<FamilyRow> rows, family_rows());
      if (a->json) {
        fmt::print("{}\n", models_json(rows).dump());
      } else {
        fmt::print("{}", a->markdown ? models_markdown(rows) : models_text(rows));
      }
      return {};
    }
    const Json r = report();
    if (a->json) {
      fmt::print("{}\n", r.dump());
    } else {
      print(r);
    }
    return {};
  };
}

}  // namespace pinion::cli
