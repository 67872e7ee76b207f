// The parts of `pinion bench`: what they share is the model, and ceilings measured in the same run.
#pragma once

#include "backend/cpu/ceilings.h"
#include "cli/model.h"
#include "runtime/request.h"

namespace pinion::cli {

struct BenchArgs {
  ModelArgs model;  // model.model: MODEL, or --config
  std::string config;
  int32_t input_len = 128, output_len = 32, batch_size = 1, iterations = 3;
  int32_t num_requests = 32, concurrency = 8;
  SamplingParams sampling;  // of throughput: how tokens are drawn
  uint64_t seed = 1;
  bool json = false;
};

struct ServeLoadArgs {  // of a server that runs elsewhere
  std::string url = "http://127.0.0.1:8000", model, dataset, concurrency = "8", request_rate, api_key, output, html;
  int32_t num_requests = 64, input_len = 128, output_len = 32, prefix_len = 0, vocab_size = 1000;
  double burstiness = 1, price_per_hour = 0;
  uint64_t seed = 1;
  std::vector<std::string> goodput;
  bool chat = false, no_ignore_eos = false, json = false;
};
void add_bench_serve(CLI::App& app, ServeLoadArgs& args);
Status bench_serve(ServeLoadArgs args);

Status bench_latency(BenchArgs args);
Status bench_throughput(BenchArgs args);

// Pseudo-random token ids below `vocab`: the same for a seed, on every machine.
std::vector<int32_t> random_tokens(int32_t count, int32_t vocab, uint64_t seed);
double quantile(std::vector<double> values, double q);  // nearest rank; 0 when empty

// What one step must do, from the engine alone.
struct StepCost {
  // All weights but an embedding table that only looks up rows; of experts those that the rows are expected to choose,
  // each row top_k at random.
  double weight_bytes = 0;
  // Of the linear ops, two per multiply-add: over weights in bf16, which matrix units take, and over others.
  struct Flops {
    double bf16 = 0, other = 0;
  };
  Flops per_token, per_output;
};
StepCost step_cost(const Engine& engine, int64_t rows = 1);
// Of attention over a prompt of `tokens`, the causal half: two per multiply-add of scores and of sums.
double attention_flops(const Engine& engine, int64_t tokens);
// KV bytes that one sequence's decode step reads at this context.
double kv_bytes(const Engine& engine, int64_t context);

}  // namespace pinion::cli
