// Weights packed by a device with memory of its own are those of the host, byte by byte.
#include "compiler/packing_for_test.h"
#include "device_backend.h"

namespace pinion {
namespace {

TEST(DevicePacking, GivesTheHostsBytes) {
  const Backend* backend = device_backend();
  if (backend == nullptr) GTEST_SKIP() << "no device with memory of its own";
  auto device = backend->open({});
  ASSERT_TRUE(device.ok()) << device.error().message;
  ASSERT_NE(dynamic_cast<WeightPackingDevice*>(device->get()), nullptr) << "the device does not convert rows";
  expect_packed_row_by_row(**device);
  expect_beyond_f16_by_name(**device);
}

// Every float16 and bfloat16, and float32 around each place where rounding to them changes.
TEST(DevicePacking, ConvertsEveryNumberAsTheHost) {
  const Backend* backend = device_backend();
  if (backend == nullptr) GTEST_SKIP() << "no device with memory of its own";
  auto device = backend->open({});
  ASSERT_TRUE(device.ok()) << device.error().message;
  auto* packing = dynamic_cast<WeightPackingDevice*>(device->get());
  ASSERT_NE(packing, nullptr) << "the device does not convert rows";
  const auto stream = (*device)->make_stream();
  constexpr int64_t kCols = 1 << 16;
  for (const DType from : {DType::f32, DType::f16, DType::bf16}) {
    const int64_t rows = from == DType::f32 ? 16 : 1;
    std::vector<std::byte> in(rows * kCols * byte_size(from));
    for (int64_t i = 0; i < rows * kCols; ++i) {
      constexpr uint32_t kLow[] = {0,      1,      0x7fff, 0x8000, 0x8001, 0xffff, 0x0fff, 0x1000,
                                   0x1001, 0x1fff, 0x2fff, 0x3000, 0x3001, 0xefff, 0xf000, 0xf001};
      const uint32_t bits = from == DType::f32 ? static_cast<uint32_t>(i % kCols) << 16 | kLow[i / kCols] : i;
      std::memcpy(in.data() + i * byte_size(from), &bits, byte_size(from));
    }
    for (const DType to : {DType::f32, DType::f16, DType::bf16}) {
      std::vector<std::byte> want(rows * kCols * byte_size(to)), got(want.size());
      convert_floats(in.data(), from, want.data(), to, rows * kCols);
      auto raw = (*device)->allocate(in.size()), packed = (*device)->allocate(want.size()),
           overflow = (*device)->allocate(sizeof(uint32_t));
      ASSERT_TRUE(raw.ok() && packed.ok() && overflow.ok());
      stream->copy_to_device((*raw)->data(), in.data(), in.size());
      stream->fill((*overflow)->data(), 0, sizeof(uint32_t));
      packing->convert_rows({.from = (*raw)->data(),
                             .from_type = from,
                             .to = (*packed)->data(),
                             .to_type = to,
                             .rows = rows,
                             .cols = kCols,
                             .overflow = reinterpret_cast<uint32_t*>((*overflow)->data())},
                            *stream);
      uint32_t infinite = 2;
      stream->copy_to_host(got.data(), (*packed)->data(), got.size());
      stream->copy_to_host(&infinite, (*overflow)->data(), sizeof(infinite));
      stream->synchronize();
      EXPECT_EQ(infinite, to == DType::f16 ? 1u : 0u) << name(from) << " to " << name(to);
      const auto at = std::ranges::mismatch(got, want).in1 - got.begin();
      if (at == std::ssize(got)) continue;
      const int64_t i = at / static_cast<int64_t>(byte_size(to));
      const auto bits = [&](const std::vector<std::byte>& v, DType type) {
        uint32_t u = 0;
        std::memcpy(&u, v.data() + i * byte_size(type), byte_size(type));
        return u;
      };
      ADD_FAILURE() << name(from) << " to " << name(to) << ": bits " << std::hex << bits(in, from) << " become "
                    << bits(got, to) << " and not " << bits(want, to);
    }
  }
}

}  // namespace
}  // namespace pinion
