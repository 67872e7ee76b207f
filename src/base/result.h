// Result: what a function that can meet bad input returns. An Error says what failed, where, and what to do about it;
// our own bugs throw through check() instead (base/check.h).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace pinion {

enum class Errc {
  invalid_argument,  // an argument, field or flag is wrong                       exit 2, HTTP 400
  not_found,         // a file or name does not exist                             exit 2, HTTP 404
  corrupt,           // a file's content is not what its format says              exit 2
  unsupported,       // understood, and not implemented                           exit 2, HTTP 400
  io,                // the operating system refused: disk full, permission       exit 1
  exhausted,         // memory, blocks or queue places ran out                    exit 1, HTTP 429
  cancelled,         // the caller asked to stop                                  exit 1
  internal,          // a device or a kernel failed                               exit 1, HTTP 500
};

struct Error {
  Errc code = Errc::internal;
  std::string message;  // "what (where) — what to do", one line
};

// Composes the one-line form that every error of Pinion has. `where` and `remedy` may be empty.
Error fail(Errc code, std::string_view what, std::string_view where = {}, std::string_view remedy = {});

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const& { return std::get<1>(state_); }
  Error&& error() && { return std::get<1>(std::move(state_)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}
  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return *error_; }
  Error&& error() && { return *std::move(error_); }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

}  // namespace pinion

#define PINION_CONCAT_(a, b) a##b
#define PINION_CONCAT(a, b) PINION_CONCAT_(a, b)
// PINION_TRY(auto x, f()): x = f()'s value, or return its error from the enclosing function.
#define PINION_TRY(decl, expr)                                                                       \
  auto PINION_CONCAT(result_, __LINE__) = (expr);                                                    \
  if (!PINION_CONCAT(result_, __LINE__)) return std::move(PINION_CONCAT(result_, __LINE__)).error(); \
  decl = *std::move(PINION_CONCAT(result_, __LINE__))
// PINION_OK(f()): return f()'s error, if it has one.
#define PINION_OK(expr)                                                     \
  do {                                                                      \
    if (auto status_ = (expr); !status_) return std::move(status_).error(); \
  } while (0)
