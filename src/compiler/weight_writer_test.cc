// Weights into a file piece by piece: stacked and interleaved, converted by the host and by a device of its own memory.
#include "compiler/weight_writer.h"

#include <gtest/gtest.h>

#include <sys/resource.h>

#include <csignal>

#include "compiler/packing_for_test.h"

namespace pinion {
namespace {

class HeapBuffer final : public Buffer {
 public:
  explicit HeapBuffer(size_t n) : bytes_(n) {}
  std::byte* data() override { return bytes_.data(); }
  size_t size() const override { return bytes_.size(); }

 private:
  std::vector<std::byte> bytes_;
};

class HeapStream final : public Stream {
 public:
  void synchronize() override {}
};

class HostDevice : public Device {
 public:
  const DeviceInfo& info() const override { return info_; }
  Result<std::unique_ptr<Buffer>> allocate(size_t bytes) override {
    return std::unique_ptr<Buffer>(std::make_unique<HeapBuffer>(bytes));
  }
  std::unique_ptr<Stream> make_stream() override { return std::make_unique<HeapStream>(); }

 private:
  DeviceInfo info_;
};

// As a GPU: rows that it converts are not the host's to convert.
class ConvertingDevice final : public HostDevice, public WeightPackingDevice {
 public:
  int64_t rows = 0;

  void convert_rows(const RowConversion& c, Stream&) override {
    rows += c.rows;
    const size_t from = c.cols * byte_size(c.from_type), to = c.cols * byte_size(c.to_type);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(c.from) % 16, 0u);
    for (int64_t i = 0; i < c.rows; ++i) {
      std::byte* row = c.to + i * c.step * to;
      convert_floats(c.from + i * from, c.from_type, row, c.to_type, c.cols);
      if (c.to_type == DType::f16 && has_f16_infinity({row, to})) *c.overflow = 1;
    }
  }
};

TEST(WeightWriter, PacksOnTheHost) {
  HostDevice device;
  expect_packed_row_by_row(device);
  expect_beyond_f16_by_name(device);
}

TEST(WeightWriter, PacksOnADevice) {
  ConvertingDevice device;
  expect_packed_row_by_row(device);
  EXPECT_EQ(device.rows, 5867);  // of all cases but the last, where no part is of another type
  expect_beyond_f16_by_name(device);
}

TEST(WeightWriter, TakesPackedWeightsBetweenDenseOnes) {
  ScratchDir scratch;
  HostDevice device;
  ThreadPool pool(2);
  auto file = EngineWriter::create(scratch / "engine");
  ASSERT_TRUE(file.ok());
  EngineContents contents;
  for (int i = 0; i < 9; ++i)
    contents.weights.push_back({"w" + std::to_string(i), {DType::f32, Layout::row_major, 7, 5}});
  {
    WeightWriter writer(*file, device, pool, 64);
    for (int i = 0; i < 9; ++i) {
      ASSERT_TRUE(writer.add(contents.weights[i], std::vector<std::byte>(140, std::byte(i))).ok());
    }
    ASSERT_TRUE(writer.finish().ok());
  }
  ASSERT_TRUE(file->finish(contents).ok());
  const auto text = read_file(scratch / "engine" / "rank0.engine");
  ASSERT_TRUE(text.ok());
  for (int i = 0; i < 9; ++i) {
    EXPECT_EQ(contents.weights[i].offset % 64, 0u);
    EXPECT_EQ(text->substr(kEngineHeader + contents.weights[i].offset, 140), std::string(140, static_cast<char>(i)));
  }
}

TEST(WeightWriter, SaysThatTheFileCannotGrow) {
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  ScratchDir scratch;
  HostDevice device;
  ThreadPool pool(2);
  auto file = EngineWriter::create(scratch / "engine");
  ASSERT_TRUE(file.ok());
  std::vector<PackedWeight> weights(20);
  Status status;
  {
    WeightWriter writer(*file, device, pool, 64);
    rlimit small = before;
    small.rlim_cur = kEngineHeader + 1000;
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    for (PackedWeight& w : weights) {
      if (status.ok()) status = writer.add(w, std::vector<std::byte>(140));
    }
    if (status.ok()) status = writer.finish();
    setrlimit(RLIMIT_FSIZE, &before);
  }
  std::signal(SIGXFSZ, ignored);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("cannot write"), std::string::npos) << status.error().message;
}

}  // namespace
}  // namespace pinion
