// Replacing a model while requests hold it: beside the old one where both fit, in its place where they do not.
#include "server/model_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "server/fake_service.h"

namespace pinion {
namespace {

using namespace std::chrono_literals;

// Models "a" and "b" share one engine, of which there is room for `room`.
struct Source final : ModelSource {
  std::vector<std::string> names() override { return {"a", "b"}; }
  Result<LoadedModel> load(const std::string& name) override {
    if (broken) return fail(Errc::corrupt, "the engine is damaged");
    auto engine = shared.lock();
    if (!engine || stale) {
      if (engines >= room) return fail(Errc::exhausted, "no memory");
      ++engines;
      engine = std::shared_ptr<int>(new int(++made), [this](int* number) {
        delete number;
        --engines;
      });
      shared = engine;
      stale = false;
    }
    ModelService service{.generator = &generator, .text = &text, .name = name, .max_seq_len = *engine};
    return LoadedModel{.service = service, .version = "1", .owner = engine};
  }
  FakeText text;
  FakeGenerator generator;
  std::weak_ptr<int> shared;
  std::atomic<int> engines{0}, made{0};
  std::atomic<bool> stale{false}, broken{false};
  int room = 1;
};

struct ModelRegistryTest : testing::Test {
  ServerMetrics metrics{"pinion_"};
  Source source;
  ModelRegistry registry{metrics, &source};

  int engine_of(const std::string& name) const { return registry.find(name)->service().max_seq_len; }
  void TearDown() override { source.generator.hold = false; }
};

TEST_F(ModelRegistryTest, TheOldOneServesUntilTheNewOneIsThere) {
  source.room = 2;
  registry.load_all();
  EXPECT_EQ(engine_of("a"), 1);
  EXPECT_EQ(engine_of("b"), 1);
  const ModelHandle request = registry.find("a");
  source.stale = true;
  ASSERT_TRUE(registry.load("a").ok());
  EXPECT_EQ(request->service().max_seq_len, 1);  // goes on with what it began
  EXPECT_EQ(engine_of("a"), 2);
  EXPECT_EQ(engine_of("b"), 1);
  EXPECT_FALSE(registry.is_loading("a"));
}

TEST_F(ModelRegistryTest, WhereBothDoNotFitTheOldOneFinishesFirst) {
  registry.load_all();
  ModelHandle request = registry.find("a");
  source.stale = true;
  Status loaded;
  std::thread load([&] { loaded = registry.load("a"); });
  while (!registry.is_loading("a")) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(registry.is_loading("b"));  // it shares the engine
  EXPECT_EQ(registry.find("a"), nullptr);
  std::this_thread::sleep_for(30ms);
  EXPECT_EQ(source.made, 1);  // not before the request has ended
  request.reset();
  load.join();
  EXPECT_TRUE(loaded.ok());
  EXPECT_EQ(engine_of("a"), 2);
  EXPECT_EQ(engine_of("b"), 2);
  EXPECT_EQ(source.engines, 1);
  EXPECT_FALSE(registry.is_loading(""));
  EXPECT_TRUE(registry.ready());
}

TEST_F(ModelRegistryTest, WhatDoesNotLoadLeavesTheOldOne) {
  registry.load_all();
  source.broken = true;
  const Status loaded = registry.load("a");
  ASSERT_FALSE(loaded.ok());
  EXPECT_THAT(loaded.error().message, testing::HasSubstr("damaged"));
  EXPECT_EQ(engine_of("a"), 1);
  EXPECT_TRUE(registry.ready());
}

}  // namespace
}  // namespace pinion
