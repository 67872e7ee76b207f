// Files that change under us: a mapped file that shrinks is named when something made from it would be kept.
#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "base/shrunk_maps.h"

namespace pinion {
namespace {

namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() / ("pinion-base-" + std::to_string(::getpid()));
    fs::remove_all(dir_);
    fs::create_directory(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  size_t entries() const {
    size_t n = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator(dir_)) ++n;
    return n;
  }
  fs::path dir_;
};

TEST_F(Files, AShrunkMapReadsAsZerosAndNothingMadeFromItIsKept) {
  const fs::path source = dir_ / "weights.safetensors", target = dir_ / "engine";
  std::ofstream(source) << std::string(1 << 20, 'x');
  auto map = MappedFile::open(source);
  ASSERT_TRUE(map.ok());
  fs::resize_file(source, 5000);
  const auto bytes = map->bytes();
  EXPECT_EQ(bytes[0], std::byte{'x'});
  EXPECT_EQ(shrunk_file(), "");  // nothing beyond the end was read yet
  EXPECT_EQ(bytes[1 << 19], std::byte{0});
  EXPECT_EQ(bytes[(1 << 20) - 1], std::byte{0});
  EXPECT_EQ(bytes[4999], std::byte{'x'});
  EXPECT_EQ(shrunk_file(), source.string());
  {
    auto file = AtomicFile::create(target);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->write(bytes).ok());
    const Status kept = file->commit();
    ASSERT_FALSE(kept.ok());
    EXPECT_NE(kept.error().message.find("shrank while it was read (" + source.string() + ") — "), std::string::npos)
        << kept.error().message;
    auto directory = AtomicDir::create(target);
    ASSERT_TRUE(directory.ok());
    EXPECT_FALSE(directory->commit().ok());
  }
  EXPECT_EQ(entries(), 1u);  // the source alone
  *map = MappedFile();       // what comes later has nothing to do with it
  EXPECT_EQ(shrunk_file(), "");
  EXPECT_TRUE(write_file(target, "whole").ok());
}

TEST_F(Files, OtherBusErrorsStillEndTheProcess) {
  const fs::path source = dir_ / "x";
  std::ofstream(source) << "x";
  const auto map = MappedFile::open(source);  // installs the handler
  // By the signal itself, or by the handler that was there before: a sanitizer's reports and exits.
  const auto badly = [](int status) { return !WIFEXITED(status) || WEXITSTATUS(status) != 0; };
  EXPECT_EXIT(::raise(SIGBUS), badly, "");
}

TEST_F(Files, WritesAppearWholeOrNotAtAll) {
  ASSERT_TRUE(write_file(dir_ / "a", "one").ok());
  {
    auto file = AtomicFile::create(dir_ / "a");
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE(file->write("half").ok());
  }  // never committed
  EXPECT_EQ(*read_file(dir_ / "a"), "one");
  EXPECT_EQ(entries(), 1u);
  EXPECT_FALSE(read_file(dir_ / "a", 2).ok());
  EXPECT_EQ(read_file(dir_ / "b").error().code, Errc::not_found);
  EXPECT_EQ(read_file(dir_).error().code, Errc::corrupt);
}

}  // namespace
}  // namespace pinion
