// For tests of packing: weights of several parts, types and shapes through a WeightWriter, compared with rows that are
// converted one by one.
#pragma once

#include <gtest/gtest.h>

#include <random>

#include "base/file.h"
#include "checkpoint/scratch_for_test.h"
#include "checkpoint/writer.h"
#include "compiler/weight_writer.h"
#include "engine/engine_json.h"
#include "tensor/convert.h"
#include "tensor/f16_range.h"

namespace pinion {

struct PackingCase {
  std::vector<DType> from;    // of the parts
  std::vector<int64_t> rows;  // of the parts
  int64_t cols = 0;
  DType to = DType::bf16;
  bool interleave = false;
};

// Bits of any kind, NaNs and subnormals too, but none that float16 cannot hold.
inline std::vector<std::byte> random_floats(DType type, int64_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(n * byte_size(type));
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits = static_cast<uint32_t>(random());
    if (type == DType::f32 && (bits & 0x7fffffff) >= 0x477ff000 && (bits & 0x7fffffff) <= 0x7f800000)
      bits &= 0x3fffffff;
    if (type == DType::bf16 && (bits & 0x7fff) >= 0x477f && (bits & 0x7fff) <= 0x7f80) bits &= 0x3fff;
    if (type == DType::f16 && (bits & 0x7fff) == 0x7c00) bits &= 0x3fff;
    if (random() % 2 == 0)
      bits = (bits & ~(type == DType::f32 ? 0x70000000u : 0x7000u)) |
             (type == DType::f32 ? 0x30000000u : 0x3000u);  // half of them near one
    std::memcpy(out.data() + i * byte_size(type), &bits, byte_size(type));
  }
  return out;
}

// What the engine's file holds of the case's one weight, written in small pieces; its hash is checked.
inline Result<std::string> pack_through(Device& device, const PackingCase& c,
                                        const std::vector<std::vector<std::byte>>& data, size_t piece_bytes) {
  ScratchDir scratch;
  std::vector<TensorToWrite> tensors;
  WeightUse use{.role = "weight", .rows = 0, .cols = c.cols, .parts = {}, .interleave = c.interleave};
  for (size_t p = 0; p < data.size(); ++p) {
    const std::string name = "part" + std::to_string(p) + ".weight";
    tensors.push_back({name, c.from[p], {c.rows[p], c.cols}, data[p]});
    use.parts.push_back({.name = name, .rows = c.rows[p]});
    use.rows += c.rows[p];
  }
  PINION_OK(write_hf_checkpoint(scratch / "hf", Json{{"vocab_size", 1}}, tensors));
  PINION_TRY(const Checkpoint checkpoint, Checkpoint::open(scratch / "hf"));
  PINION_TRY(const QuantizedCheckpoint quantized, QuantizedCheckpoint::open(checkpoint));
  EngineContents contents;
  contents.weights.push_back({"weight", {c.to, Layout::row_major, use.rows, use.cols}});
  PackedWeight& weight = contents.weights[0];
  PINION_TRY(EngineWriter file, EngineWriter::create(scratch / "engine"));
  {
    ThreadPool pool(2);
    WeightWriter writer(file, device, pool, piece_bytes);
    PINION_TRY(const DenseWeight dense, DenseWeight::open(quantized, use, weight.spec));
    PINION_OK(writer.add(weight, dense));
    PINION_OK(writer.finish());
  }
  PINION_OK(file.finish(contents));
  PINION_TRY(const std::string text, read_file(scratch / "engine" / "rank0.engine"));
  std::string bytes = text.substr(kEngineHeader + weight.offset, weight.spec.bytes());
  EXPECT_EQ(hash128(bytes), weight.hash);
  return bytes;
}

inline void expect_packed_row_by_row(Device& device) {
  const PackingCase cases[] = {
      {{DType::f32, DType::f32, DType::f32}, {600, 200, 201}, 1024, DType::bf16, false},
      {{DType::f32, DType::f32}, {500, 500}, 1024, DType::f16, true},
      {{DType::bf16, DType::bf16}, {700, 333}, 1037, DType::f16, false},
      {{DType::bf16, DType::bf16}, {400, 400}, 1037, DType::f32, true},
      {{DType::f16, DType::bf16, DType::f32}, {500, 111, 222}, 1024, DType::bf16, false},
      {{DType::f16, DType::f16}, {300, 300}, 1032, DType::f32, true},
      {{DType::f16, DType::f32}, {300, 300}, 1048, DType::f16, true},
      {{DType::bf16, DType::bf16}, {600, 600}, 1024, DType::bf16, true},
  };
  for (const PackingCase& c : cases) {
    std::vector<std::vector<std::byte>> data;
    int64_t rows = 0;
    for (size_t p = 0; p < c.from.size(); ++p) {
      data.push_back(random_floats(c.from[p], c.rows[p] * c.cols, p + rows));
      rows += c.rows[p];
    }
    const size_t row_bytes = c.cols * byte_size(c.to);
    std::string want(rows * row_bytes, '\0');
    int64_t before = 0;
    for (size_t p = 0; p < c.from.size(); ++p) {
      for (int64_t r = 0; r < c.rows[p]; ++r) {
        const int64_t to = c.interleave ? 2 * r + static_cast<int64_t>(p) : before + r;
        convert_floats(data[p].data() + r * c.cols * byte_size(c.from[p]), c.from[p],
                       reinterpret_cast<std::byte*>(want.data() + to * row_bytes), c.to, c.cols);
      }
      before += c.rows[p];
    }
    const auto got = pack_through(device, c, data, size_t{300} << 10);
    const std::string what = std::string(name(c.from[0])) + " to " + std::string(name(c.to)) + ", " +
                             std::to_string(c.cols) + " columns" + (c.interleave ? ", interleaved" : "");
    ASSERT_TRUE(got.ok()) << what << ": " << got.error().message;
    ASSERT_EQ(got->size(), want.size()) << what;
    const auto at = static_cast<size_t>(std::ranges::mismatch(*got, want).in1 - got->begin());
    EXPECT_EQ(at, want.size()) << what << ": first wrong in row " << at / row_bytes << ", column "
                               << at % row_bytes / byte_size(c.to);
  }
}

inline void expect_beyond_f16_by_name(Device& device) {
  constexpr int64_t kRows = 600, kCols = 1024;
  const PackingCase c{{DType::f32, DType::f32}, {kRows, kRows}, kCols, DType::f16, false};
  std::vector<std::vector<std::byte>> data{random_floats(DType::f32, kRows * kCols, 1),
                                           random_floats(DType::f32, kRows * kCols, 2)};
  const float large = 65520;
  std::memcpy(data[1].data() + data[1].size() - sizeof(large), &large, sizeof(large));
  const auto got = pack_through(device, c, data, size_t{300} << 10);
  ASSERT_FALSE(got.ok());
  EXPECT_NE(got.error().message.find("\"part1.weight\" holds values beyond 65504"), std::string::npos)
      << got.error().message;
}

}  // namespace pinion
