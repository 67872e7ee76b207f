// A divided checkpoint reads as the whole one; ranks that do not fit each other are refused by name.
#include "checkpoint/ranks.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <numeric>

#include "checkpoint/checkpoint.h"
#include "checkpoint/scratch_for_test.h"

namespace pinion {
namespace {
namespace fs = std::filesystem;

// Two ranks of: rows [4, 2] cut along axis 0, cols [2, 4] along axis 1, shared [3] held by both, heads [4] of which the
// ranks hold three each, alone [1] in rank 0.
struct Divided {
  ScratchDir dir;
  Json top{{"model_type", "x"}, {"pinion", {{"tp_size", 2}, {"pp_size", 1}, {"ranks", 2}}}};
  std::vector<float> shared[2]{{7, 8, 9}, {7, 8, 9}};
  std::vector<float> heads[2]{{0, 1, 2}, {1, 2, 3}};
  Json section[2];

  Divided() {
    for (int r = 0; r < 2; ++r) {
      section[r] = {
          {"tp_size", 2},
          {"tp_rank", r},
          {"pp_size", 1},
          {"pp_rank", 0},
          {"slices",
           {{"rows", {0, 2 * r, 2 * r + 2, 4}}, {"cols", {1, r, 3 * r + 1, 4}}, {"heads", {0, r, r + 3, 4}}}}};
    }
  }
  void write() {
    spit(dir / "config.json", top.dump());
    for (int r = 0; r < 2; ++r) {
      const fs::path to = dir / ("rank" + std::to_string(r));
      spit(to / "config.json", Json{{"model_type", "x"}, {"pinion", section[r]}}.dump());
      std::vector<TensorToWrite> tensors;
      const auto add = [&](const char* name, std::vector<int64_t> shape, const std::vector<float>& values) {
        tensors.push_back({name, DType::f32, std::move(shape), std::as_bytes(std::span(values))});
      };
      const std::vector<float> rows = r == 0 ? std::vector<float>{0, 1, 2, 3} : std::vector<float>{4, 5, 6, 7};
      const std::vector<float> cols = r == 0 ? std::vector<float>{0, 4} : std::vector<float>{1, 2, 3, 5, 6, 7};
      const std::vector<float> alone{42};  // named, since they are written after all are listed
      add("rows", {2, 2}, rows);
      add("cols", {2, r == 0 ? 1 : 3}, cols);
      add("heads", {3}, heads[r]);
      add("shared", {3}, shared[r]);
      if (r == 0) add("alone", {1}, alone);
      ASSERT_TRUE(write_safetensors(to / "model.safetensors", tensors).ok());
    }
  }
};

std::vector<float> values(const Checkpoint& c, const char* name) {
  const auto t = c.tensor(name);
  EXPECT_TRUE(t.ok()) << name;
  std::vector<float> out(t.ok() ? t->shape.elements() : 0);
  if (t.ok()) std::memcpy(out.data(), t->data.data(), t->data.size());
  return out;
}

TEST(Ranks, AreReadAsTheWholeCheckpoint) {
  Divided d;
  d.write();
  const auto c = Checkpoint::open(d.dir.path());
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->names(), (std::vector<std::string>{"alone", "cols", "heads", "rows", "shared"}));
  std::vector<float> counted(8);
  std::iota(counted.begin(), counted.end(), 0.0f);
  EXPECT_EQ(values(*c, "rows"), counted);
  EXPECT_EQ(c->tensor("rows")->shape, (Shape{4, 2}));
  EXPECT_EQ(values(*c, "cols"), counted);
  EXPECT_EQ(c->tensor("cols")->shape, (Shape{2, 4}));
  EXPECT_EQ(values(*c, "heads"), (std::vector<float>{0, 1, 2, 3}));
  EXPECT_EQ(values(*c, "shared"), (std::vector<float>{7, 8, 9}));
  EXPECT_EQ(values(*c, "alone"), (std::vector<float>{42}));
  EXPECT_EQ(c->total_bytes(), 4u * (8 + 8 + 4 + 3 + 1));
  EXPECT_FALSE(c->config().contains("pinion"));
  EXPECT_EQ(c->ranks().size(), 2u);
}

TEST(Ranks, WhatDoesNotFitIsNamed) {
  const std::pair<std::function<void(Divided&)>, const char*> cases[] = {
      {[](Divided& d) { d.shared[1][1] = 0; }, "shared"},
      {[](Divided& d) { d.heads[1][0] = 5; }, "heads"},  // what rank 0 holds too
      {[](Divided& d) { d.section[1]["slices"].erase("rows"); }, "rows"},
      {[](Divided& d) {
         d.section[1]["slices"]["rows"] = {0, 0, 2, 4};
       },
       "rows"},  // rank 0's again
      {[](Divided& d) {
         d.section[0]["slices"]["rows"] = {1, 0, 2, 4};
       },
       "rows"},
      {[](Divided& d) {
         d.section[0]["slices"]["rows"] = {0, -1, 1, 4};
       },
       "rows"},
      {[](Divided& d) {
         d.section[0]["slices"]["rows"] = {0, 0, 2, INT64_MAX};
       },
       "rows"},
      {[](Divided& d) {
         for (Json& s : d.section) s["slices"]["cols"][3] = int64_t{1} << 60;
       },
       "cols"},
      {[](Divided& d) { d.section[0]["slices"]["rows"] = "all"; }, "rows"},
      {[](Divided& d) { d.section[1]["tp_rank"] = 0; }, "rank 1 of 2"},
      {[](Divided& d) { d.section[1]["tp_size"] = 1e9; }, "tp_size"},
      {[](Divided& d) { d.section[1].erase("slices"); }, "slices"},
      {[](Divided& d) { d.section[1] = "none"; }, "pinion"},
      {[](Divided& d) { d.top["pinion"]["ranks"] = 3; }, "rank2"},
      {[](Divided& d) { d.top["pinion"]["ranks"] = 0; }, "ranks"},
      {[](Divided& d) { d.top["pinion"]["ranks"] = "two"; }, "ranks"},
  };
  for (const auto& [damage, named] : cases) {
    SCOPED_TRACE(named);
    Divided d;
    damage(d);
    d.write();
    const auto c = Checkpoint::open(d.dir.path());
    ASSERT_FALSE(c.ok());
    EXPECT_NE(c.error().message.find(named), std::string::npos) << c.error().message;
  }
}

// A rank that is a divided checkpoint, and be it itself, is not followed.
TEST(Ranks, AreNotDividedThemselves) {
  Divided d;
  d.write();
  fs::remove_all(d.dir / "rank1");
  fs::create_directory_symlink(d.dir.path(), d.dir / "rank1");
  EXPECT_FALSE(Checkpoint::open(d.dir.path()).ok());
}

}  // namespace
}  // namespace pinion
