// The oracle of the kernels on packed weights reads them as quant/ decodes them, from matrices that its encoders made.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "backend/reference/packed.h"
#include "quant/packed.h"
#include "quant/quant_format.h"

namespace pinion {
namespace {

TEST(PackedWeights, TheReferenceReadsThemAsDecodeDoes) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (const std::string_view name : {"fp8", "int8_wo", "int4_wo", "nvfp4", "mxfp4"}) {
    const QuantFormat& format = **find_quant_format(name);
    const int64_t rows = 5, cols = 192;
    std::vector<float> w(rows * cols);
    for (float& v : w) v = normal(random);
    EncodeOptions options = format.defaults;
    options.group = 64;
    const QuantizedMatrix m = *format.encode({w, rows, cols}, options, nullptr);
    const RowLayout l = plan_packed(m).layout;
    const std::vector<std::byte> packed = pack(m);
    const std::vector<float> want = decode(m);
    const WeightView view{{DType::f32, Layout::packed, rows, cols, {l.kind, l.group, l.zeros, l.offsets}},
                          packed.data()};
    EXPECT_EQ(view.bytes(), packed.size());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < cols; ++k) {
        ASSERT_EQ(reference::weight_at(view, r, k), want[r * cols + k]) << name << " " << r << " " << k;
      }
    }
  }
}

TEST(PackedWeights, UnsoundPackingsAreNone) {
  for (const Packing& p :
       {Packing{}, Packing{PackedKind::int4, 48}, Packing{PackedKind::nvfp4, 32}, Packing{PackedKind::mxfp4, 0},
        Packing{PackedKind::fp8, 0, true}, Packing{PackedKind::fp8, 0, false, true}, Packing{PackedKind::int4, 16},
        Packing{.kind = PackedKind::int4, .ordered = true},
        Packing{.kind = PackedKind::int8, .inputs = InputRounding::int8_static},
        Packing{.kind = PackedKind::int8, .inputs = InputRounding::int8_static, .input_scale = NAN},
        Packing{.kind = PackedKind::fp8, .inputs = InputRounding::fp8_token, .input_scale = 1}}) {
    EXPECT_FALSE(is_sound(p)) << name(p.kind) << " " << p.group << " " << name(p.inputs);
  }
  EXPECT_TRUE(is_sound({.kind = PackedKind::int8, .inputs = InputRounding::int8_token}));
  EXPECT_TRUE(is_sound({.kind = PackedKind::fp8, .inputs = InputRounding::fp8_static, .input_scale = 0.5f}));
  EXPECT_TRUE(is_sound({PackedKind::int4, 128, true, true}));
  EXPECT_TRUE(is_sound({PackedKind::int8, 16}));
}

}  // namespace
}  // namespace pinion
