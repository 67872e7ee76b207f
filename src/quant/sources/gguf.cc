// GGUF's quantised tensors (ggml, src/ggml-quants.c and ggml-common.h): rows of blocks, each with its scales beside its
// codes. Embeddings and heads come quantised too.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/thread_pool.h"
#include "quant/sources/sources.h"
#include "tensor/convert.h"

namespace pinion {
namespace {

float half_at(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, sizeof v);
  return f16_to_f32(v);
}

// Where one row's codes, scales and offsets go.
struct RowOut {
  uint8_t* codes;
  float *scales, *offsets;
};

void read_q4_0(const uint8_t* b, int64_t block, const RowOut& out) {
  out.scales[block] = half_at(b);
  for (int j = 0; j < 16; ++j) {
    out.codes[block * 32 + j] = static_cast<uint8_t>((b[2 + j] & 15) - 8);
    out.codes[block * 32 + 16 + j] = static_cast<uint8_t>((b[2 + j] >> 4) - 8);
  }
}

void read_q8_0(const uint8_t* b, int64_t block, const RowOut& out) {
  out.scales[block] = half_at(b);
  std::memcpy(out.codes + block * 32, b + 2, 32);
}

// The 6-bit scale and minimum of sub-block j.
void scale_min(const uint8_t* s, int j, uint8_t& scale, uint8_t& min) {
  if (j < 4) {
    scale = s[j] & 63, min = s[j + 4] & 63;
  } else {
    scale = static_cast<uint8_t>((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    min = static_cast<uint8_t>((s[j + 4] >> 4) | (s[j] >> 6) << 4);
  }
}

// f16 d, dmin; 12 bytes of scales; (Q5_K: 32 bytes of fifth bits;) 128 bytes of nibbles. They count from 0: as signed
// nibbles those of Q4_K have a zero point of -8.
template <bool kFive>
void read_q45_k(const uint8_t* b, int64_t block, const RowOut& out) {
  const float d = half_at(b), dmin = half_at(b + 2);
  const uint8_t *fifth = b + 16, *nibbles = b + (kFive ? 48 : 16);
  for (int j = 0; j < 8; ++j) {
    uint8_t scale, min;
    scale_min(b + 4, j, scale, min);
    out.scales[block * 8 + j] = d * static_cast<float>(scale);
    out.offsets[block * 8 + j] = dmin * static_cast<float>(min);
    uint8_t* codes = out.codes + block * 256 + j * 32;
    for (int l = 0; l < 32; ++l) {
      const uint8_t byte = nibbles[j / 2 * 32 + l], low = j % 2 == 0 ? byte & 15 : byte >> 4;
      codes[l] = static_cast<uint8_t>(kFive ? low + (fifth[l] >> j & 1) * 16 : low - 8);
    }
  }
}

// ql[128], qh[64], i8 scales[16], f16 d.
void read_q6_k(const uint8_t* b, int64_t block, const RowOut& out) {
  const float d = half_at(b + 208);
  for (int i = 0; i < 16; ++i) {
    out.scales[block * 16 + i] = d * static_cast<float>(static_cast<int8_t>(b[192 + i]));
  }
  for (int h = 0; h < 2; ++h) {
    const uint8_t *ql = b + 64 * h, *qh = b + 128 + 32 * h;
    uint8_t* codes = out.codes + block * 256 + 128 * h;
    for (int l = 0; l < 32; ++l) {
      const auto put = [&](int at, int low, int shift) {
        codes[at + l] = static_cast<uint8_t>((low | (qh[l] >> shift & 3) << 4) - 32);
      };
      put(0, ql[l] & 15, 0), put(32, ql[l + 32] & 15, 2), put(64, ql[l] >> 4, 4), put(96, ql[l + 32] >> 4, 6);
    }
  }
}

struct Reader {
  GgmlType type;
  int8_t bits;
  int32_t group;
  bool zeros, offsets;
  void (*block)(const uint8_t*, int64_t, const RowOut&);
};
constexpr Reader kReaders[] = {{GgmlType::q4_0, 4, 32, false, false, read_q4_0},
                               {GgmlType::q8_0, 8, 32, false, false, read_q8_0},
                               {GgmlType::q4_k, 4, 32, true, true, read_q45_k<false>},
                               {GgmlType::q5_k, 8, 32, false, true, read_q45_k<true>},
                               {GgmlType::q6_k, 8, 16, false, false, read_q6_k}};

class GgufSource final : public QuantSource {
 public:
  explicit GgufSource(const Checkpoint& checkpoint) : checkpoint_(&checkpoint) {}
  std::string_view name() const override { return "GGUF"; }

  Result<std::optional<QuantizedMatrix>> read(std::string_view prefix) const override {
    const GgufModel& model = *checkpoint_->gguf_model();
    const std::string name = std::string(prefix) + ".weight";
    const auto from = model.names.find(name);
    if (from == model.names.end()) return std::optional<QuantizedMatrix>();
    const GgufTensor& t = checkpoint_->gguf()->tensors().at(from->second);
    const auto reader = std::ranges::find(kReaders, t.type, &Reader::type);
    if (reader == std::end(kReaders)) return std::optional<QuantizedMatrix>();
    if (t.shape.size() != 2) {
      return fail(Errc::corrupt, fmt::format("the quantised tensor {} is no matrix", from->second),
                  checkpoint_->gguf()->path().string());
    }
    QuantizedMatrix m;
    m.scheme = {.code = CodeType::integer, .bits = reader->bits, .block_rows = 1, .block_cols = reader->group};
    m.signed_scales = true;  // Q4_0's is that of the largest number over -8
    m.rows = t.shape[0], m.cols = t.shape[1];
    m.codes.resize(m.rows * m.cols);
    m.scales.resize(m.rows * m.scale_cols());
    m.scheme.zero_points = reader->zeros;
    if (reader->zeros) m.zeros.assign(m.scales.size(), -8);
    if (reader->offsets) m.offsets.resize(m.scales.size());
    const int64_t blocks = m.cols / block_elements(t.type), bytes = block_bytes(t.type);
    const auto paired = model.paired_rows.find(name);
    const auto* data = reinterpret_cast<const uint8_t*>(t.data.data());
    ThreadPool pool(available_cpus());
    pool.run((m.rows + 63) / 64, [&](int64_t chunk) {
      for (int64_t r = chunk * 64; r < std::min(m.rows, (chunk + 1) * 64); ++r) {
        const int64_t source = paired != model.paired_rows.end() ? gguf_row(r, paired->second) : r;
        const RowOut out{m.codes.data() + r * m.cols, m.scales.data() + r * m.scale_cols(),
                         reader->offsets ? m.offsets.data() + r * m.scale_cols() : nullptr};
        for (int64_t b = 0; b < blocks; ++b) reader->block(data + (source * blocks + b) * bytes, b, out);
      }
    });
    return std::optional(std::move(m));
  }

 private:
  const Checkpoint* checkpoint_;
};

}  // namespace

std::unique_ptr<QuantSource> open_gguf(const Checkpoint& checkpoint) {
  return std::make_unique<GgufSource>(checkpoint);
}

}  // namespace pinion
