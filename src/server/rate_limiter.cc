#include "server/rate_limiter.h"

#include <algorithm>
#include <cmath>

namespace pinion {
namespace {

constexpr double kMinute = 60;

bool same_key(std::string_view given, std::string_view key) {
  unsigned difference = given.size() != key.size();
  for (size_t i = 0; i < given.size(); ++i) {
    difference |=
        static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(key.empty() ? 0 : key[i % key.size()]);
  }
  return difference == 0;
}

}  // namespace

RateLimiter::RateLimiter(const std::vector<ApiKey>& keys, Clock::time_point now) : keys_(keys) {
  for (const ApiKey& k : keys_) {
    buckets_.push_back({.requests = k.requests_per_minute, .tokens = k.tokens_per_minute, .filled = now});
  }
}

int RateLimiter::find(std::string_view authorization) const {
  constexpr std::string_view scheme = "Bearer ";
  int found = -1;
  const bool bearer = authorization.substr(0, scheme.size()) == scheme;
  const std::string_view given = authorization.substr(std::min(authorization.size(), scheme.size()));
  for (size_t i = 0; i < keys_.size(); ++i) {  // every key is looked at, found or not
    if (same_key(given, keys_[i].key) && bearer) found = static_cast<int>(i);
  }
  return found;
}

void RateLimiter::fill(size_t key, Clock::time_point now) {
  Bucket& b = buckets_[key];
  const double minutes = std::chrono::duration<double>(now - b.filled).count() / kMinute;
  b.requests = std::min(keys_[key].requests_per_minute, b.requests + minutes * keys_[key].requests_per_minute);
  b.tokens = std::min(keys_[key].tokens_per_minute, b.tokens + minutes * keys_[key].tokens_per_minute);
  b.filled = now;
}

int RateLimiter::admit(int key, Clock::time_point now) {
  if (key < 0) return 0;
  const ApiKey& k = keys_[static_cast<size_t>(key)];
  const std::lock_guard lock(mutex_);
  fill(static_cast<size_t>(key), now);
  Bucket& b = buckets_[static_cast<size_t>(key)];
  double wait = 0;  // minutes
  const double whole = std::min(1.0, k.requests_per_minute);
  if (k.requests_per_minute > 0 && b.requests < whole) wait = (whole - b.requests) / k.requests_per_minute;
  if (k.tokens_per_minute > 0 && b.tokens <= 0) wait = std::max(wait, (1 - b.tokens) / k.tokens_per_minute);
  if (wait > 0) return std::max(1, static_cast<int>(std::ceil(wait * kMinute)));
  b.requests -= whole;
  return 0;
}

void RateLimiter::charge(int key, int64_t tokens, Clock::time_point now) {
  if (key < 0) return;
  const std::lock_guard lock(mutex_);
  fill(static_cast<size_t>(key), now);
  buckets_[static_cast<size_t>(key)].tokens -= static_cast<double>(tokens);
}

}  // namespace pinion
