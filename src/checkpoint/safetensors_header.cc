#include "checkpoint/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/json.h"

namespace pinion {
namespace {

// A legal header needs depth 4; the limits keep a hostile one from costing more than a file of its size should.
constexpr int kMaxDepth = 8;
constexpr size_t kMaxTensors = 1'000'000, kMaxNameBytes = 4096, kMaxRank = 16, kMaxEntryKeys = 64;

class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderReader(SafetensorsHeader& out) : out_(out) {}
  const std::string& reason() const { return reason_; }

  bool null() override {
    if (state_ == State::value && in_metadata_key_) return leave_value();  // "__metadata__": null reads as none
    return scalar("null");
  }
  bool boolean(bool) override { return scalar("a boolean"); }
  bool number_integer(number_integer_t v) override { return scalar(fmt::format("the negative number {}", v)); }
  bool number_float(number_float_t, const string_t& s) override {
    return scalar(fmt::format("the number {}, which is no integer of 64 bits", s.substr(0, 40)));
  }
  bool number_unsigned(number_unsigned_t v) override {
    if (state_ == State::shape) {
      if (entry_.shape.size() == kMaxRank)
        return refuse(fmt::format("{} has more than {} dimensions", tensor(), kMaxRank));
      if (v > static_cast<uint64_t>(INT64_MAX))
        return refuse(fmt::format("{}: shape overflow, dimension {}", tensor(), v));
      entry_.shape.push_back(static_cast<int64_t>(v));
      return true;
    }
    if (state_ == State::offsets) {
      if (offsets_ == 2) return refuse(fmt::format("{}: data_offsets must be two numbers", tensor()));
      (offsets_++ == 0 ? entry_.begin : entry_.end) = v;
      return true;
    }
    return scalar("a number");
  }
  bool string(string_t& v) override {
    if (state_ == State::metadata_value) {
      out_.metadata.emplace(std::move(metadata_key_), std::move(v));
      state_ = State::metadata;
      return true;
    }
    if (state_ == State::dtype) {
      const auto dtype = dtype_from_safetensors(v);
      if (!dtype) return refuse(fmt::format("{}: unknown dtype {}", tensor(), shown_name(v)));
      entry_.dtype = *dtype;
      state_ = State::entry;
      return true;
    }
    return scalar("a string");
  }
  bool binary(binary_t&) override { return refuse("binary value"); }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::start:
        state_ = State::top;
        return true;
      case State::value:
        state_ = in_metadata_key_ ? State::metadata : State::entry;
        entry_ = {};
        offsets_ = 0;
        entry_keys_.clear();
        return true;
      case State::skip_value:
      case State::skip:
        return enter_skipped();
      default:
        return scalar("an object");
    }
  }
  bool key(string_t& k) override {
    switch (state_) {
      case State::top:
        return top_key(k);
      case State::metadata:
        if (out_.metadata.contains(k))
          return refuse(fmt::format("__metadata__: the key {} appears twice", shown_name(k)));
        metadata_key_ = std::move(k);
        state_ = State::metadata_value;
        return true;
      case State::entry:
        return entry_key(k);
      default:
        return true;  // inside an unknown value, which is skipped
    }
  }
  bool end_object() override {
    switch (state_) {
      case State::top:
        state_ = State::end;
        return true;
      case State::metadata:
        state_ = State::top;
        return true;
      case State::entry:
        return end_entry();
      default:
        return leave_skipped();
    }
  }
  bool start_array(std::size_t) override {
    switch (state_) {
      case State::shape_value:
        state_ = State::shape;
        return true;
      case State::offsets_value:
        state_ = State::offsets;
        return true;
      case State::skip_value:
      case State::skip:
        return enter_skipped();
      default:
        return scalar("an array");
    }
  }
  bool end_array() override {
    if (state_ == State::shape) {
      state_ = State::entry;
      return true;
    }
    if (state_ == State::offsets) {
      state_ = State::entry;
      return offsets_ == 2 || refuse(fmt::format("{}: data_offsets must be two numbers", tensor()));
    }
    return leave_skipped();
  }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::detail::exception&) override {
    return refuse(fmt::format("not valid JSON at byte {}", at));
  }

 private:
  enum class State {
    start,
    top,
    value,
    metadata,
    metadata_value,
    entry,
    dtype,
    shape_value,
    shape,
    offsets_value,
    offsets,
    skip_value,
    skip,
    end,
  };

  std::string tensor() const { return "tensor " + shown_name(name_); }
  bool refuse(std::string why) {
    if (reason_.empty()) reason_ = std::move(why);
    return false;
  }
  bool leave_value() {
    state_ = State::top;
    return true;
  }

  // A value that the current place does not take.
  bool scalar(std::string_view found) {
    switch (state_) {
      case State::skip:
        return true;
      case State::skip_value:
        state_ = State::entry;
        return true;
      case State::start:
        return refuse(fmt::format("must be a JSON object, found {}", found));
      case State::value:
        return refuse(
            fmt::format("{}: expected an object, found {}", in_metadata_key_ ? "__metadata__" : tensor(), found));
      case State::metadata_value:
        return refuse(
            fmt::format("__metadata__: the value of {} must be a string, found {}", shown_name(metadata_key_), found));
      case State::dtype:
        return refuse(fmt::format("{}: dtype must be a string, found {}", tensor(), found));
      case State::shape:
      case State::shape_value:
        return refuse(fmt::format("{}: shape must be an array of non-negative integers, found {}", tensor(), found));
      case State::offsets:
      case State::offsets_value:
        return refuse(fmt::format("{}: invalid offset, data_offsets must be two non-negative integers, found {}",
                                  tensor(), found));
      default:
        return refuse(fmt::format("unexpected {}", found));
    }
  }

  bool top_key(std::string& k) {
    state_ = State::value;
    in_metadata_key_ = k == "__metadata__";
    if (in_metadata_key_)
      return !std::exchange(saw_metadata_, true) || refuse("the key \"__metadata__\" appears twice");
    if (k.size() > kMaxNameBytes)
      return refuse(fmt::format("a tensor name of {} bytes, at most {} are allowed", k.size(), kMaxNameBytes));
    if (k.find('\0') != std::string::npos) return refuse(fmt::format("the tensor name {} holds a NUL", shown_name(k)));
    if (out_.tensors.contains(k)) return refuse(fmt::format("the tensor {} appears twice", shown_name(k)));
    if (out_.tensors.size() == kMaxTensors) return refuse(fmt::format("more than {} tensors", kMaxTensors));
    name_ = std::move(k);
    return true;
  }
  bool entry_key(std::string& k) {
    if (entry_keys_.size() == kMaxEntryKeys) return refuse(tensor() + ": too many keys");
    if (!entry_keys_.insert(k).second)
      return refuse(fmt::format("{}: the key {} appears twice", tensor(), shown_name(k)));
    state_ = k == "dtype"          ? State::dtype
             : k == "shape"        ? State::shape_value
             : k == "data_offsets" ? State::offsets_value
                                   : State::skip_value;  // the reference reader ignores what it does not know, too
    return true;
  }
  bool end_entry() {
    for (std::string_view needed : {"dtype", "shape", "data_offsets"}) {
      if (!entry_keys_.contains(needed)) return refuse(fmt::format("{}: {} is missing", tensor(), needed));
    }
    out_.tensors.emplace(std::move(name_), std::move(entry_));
    return leave_value();
  }
  bool enter_skipped() {
    state_ = State::skip;
    return ++skipped_depth_ <= kMaxDepth - 2 ||
           refuse(fmt::format("{}: nested deeper than {} levels", tensor(), kMaxDepth));
  }
  bool leave_skipped() {
    if (--skipped_depth_ == 0) state_ = State::entry;
    return true;
  }

  SafetensorsHeader& out_;
  State state_ = State::start;
  bool in_metadata_key_ = false, saw_metadata_ = false;
  std::string name_, metadata_key_, reason_;
  TensorInfo entry_;
  int offsets_ = 0, skipped_depth_ = 0;
  std::set<std::string, std::less<>> entry_keys_;
};

// Sorted by place, the tensors must follow each other without a gap from 0 to the end of the data, each as long as its
// dtype and shape say. Empty tensors share their offset with a neighbour.
std::optional<std::string> check_layout(const SafetensorsHeader& header, uint64_t data_bytes) {
  using Entry = std::pair<const std::string, TensorInfo>;
  std::vector<const Entry*> order;
  order.reserve(header.tensors.size());
  for (const Entry& entry : header.tensors) order.push_back(&entry);
  std::ranges::sort(order, {}, [](const Entry* e) { return std::pair(e->second.begin, e->second.end); });
  uint64_t at = 0;
  for (const Entry* entry : order) {
    const TensorInfo& t = entry->second;
    if (t.begin != at || t.end < t.begin) {
      return fmt::format("tensor {}: invalid offset [{}, {}], expected it to begin at {}", shown_name(entry->first),
                         t.begin, t.end, at);
    }
    const auto bytes = tensor_bytes(t.dtype, t.shape);
    if (!bytes) {
      return fmt::format("tensor {}: shape overflow, or its {} elements fill no whole number of bytes",
                         shown_name(entry->first), safetensors_name(t.dtype));
    }
    if (*bytes != t.end - t.begin) {
      return fmt::format("tensor {}: its dtype and shape take {} bytes, its data_offsets {}", shown_name(entry->first),
                         *bytes, t.end - t.begin);
    }
    at = t.end;
  }
  if (at != data_bytes)
    return fmt::format("file not fully covered: the tensors take {} bytes of data, the file has {}", at, data_bytes);
  return std::nullopt;
}

}  // namespace

Result<SafetensorsHeader> parse_safetensors_header(std::string_view text, uint64_t data_bytes, std::string_view where) {
  constexpr std::string_view kRemedy = "the file is damaged or was not written by safetensors: fetch it again";
  // The JSON reader under us takes a byte-order mark and ends at a NUL: the format allows neither.
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || text[first] != '{') {
    return fail(Errc::corrupt, "invalid header: it must be a JSON object", where, kRemedy);
  }
  if (const size_t at = text.find('\0'); at != std::string_view::npos) {
    return fail(Errc::corrupt, fmt::format("invalid header: NUL at byte {}", at), where, kRemedy);
  }
  SafetensorsHeader header;
  HeaderReader reader(header);
  if (!Json::sax_parse(text.begin(), text.end(), &reader)) {
    return fail(Errc::corrupt, "invalid header: " + reader.reason(), where, kRemedy);
  }
  if (auto problem = check_layout(header, data_bytes)) return fail(Errc::corrupt, *problem, where, kRemedy);
  return header;
}

std::optional<uint64_t> tensor_bytes(DType dtype, std::span<const int64_t> shape) {
  uint64_t bits = 1;
  for (int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(bits, static_cast<uint64_t>(dim), &bits)) return std::nullopt;
  }
  if (__builtin_mul_overflow(bits, static_cast<uint64_t>(bit_size(dtype)), &bits) || bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

std::string shown_name(std::string_view name) {
  constexpr size_t kShown = 200;
  std::string out = Json(std::string(name.substr(0, kShown))).dump(-1, ' ', true, Json::error_handler_t::replace);
  if (name.size() > kShown) out += "...";
  return out;
}

}  // namespace pinion
