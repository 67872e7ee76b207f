#include "checkpoint/ranks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors_header.h"

namespace pinion {
namespace {

constexpr int64_t kMaxRanks = 1024;
constexpr const char* kRemedy = "the ranks are not of one conversion: run pinion convert again";

Error corrupt(std::string what, const Checkpoint& rank) {
  return fail(Errc::corrupt, std::move(what), rank.config_path().string(), kRemedy);
}

// Indices [begin, end) of `length` along an axis.
struct Slice {
  int axis = 0;
  int64_t begin = 0, end = 0, length = 0;
};

struct Piece {
  const Checkpoint* rank;
  TensorRef tensor;
  Slice slice;  // axis -1: the whole tensor
};

Result<int64_t> number(const Json& section, const char* key, const Checkpoint& rank) {
  const auto it = section.find(key);
  if (it == section.end() || !it->is_number_integer()) {
    return corrupt(fmt::format("pinion.{} must be an integer", key), rank);
  }
  return it->get<int64_t>();
}

Result<Slice> slice_of(const Json& slices, const TensorRef& t, const Checkpoint& rank) {
  const auto it = slices.find(t.name);
  if (it == slices.end()) return Slice{.axis = -1};
  const Json& s = *it;
  const auto bad = [&] { return corrupt("pinion.slices: what it says does not fit " + shown_name(t.name), rank); };
  if (!s.is_array() || s.size() != 4 || !std::ranges::all_of(s, [](const Json& n) { return n.is_number_integer(); })) {
    return bad();
  }
  const int64_t axis = s[0].get<int64_t>(), begin = s[1].get<int64_t>(), end = s[2].get<int64_t>();
  const int64_t length = s[3].get<int64_t>();
  if (axis < 0 || axis >= t.shape.rank() || begin < 0 || end < begin || end > length || bit_size(t.dtype) % 8 != 0) {
    return bad();
  }
  if (t.shape[static_cast<int>(axis)] != end - begin) return bad();
  return Slice{static_cast<int>(axis), begin, end, length};
}

Result<JoinedTensor> join(const std::vector<Piece>& pieces) {
  const Piece& first = pieces[0];
  const std::string name = shown_name(first.tensor.name);
  std::vector<int64_t> shape(first.tensor.shape.dims().begin(), first.tensor.shape.dims().end());
  if (first.slice.axis >= 0) shape[first.slice.axis] = first.slice.length;
  std::vector<std::pair<int64_t, int64_t>> spans;
  for (const Piece& p : pieces) {
    std::vector<int64_t> own(p.tensor.shape.dims().begin(), p.tensor.shape.dims().end());
    if (p.slice.axis >= 0) own[p.slice.axis] = p.slice.length;
    if (p.slice.axis != first.slice.axis || p.tensor.dtype != first.tensor.dtype || own != shape) {
      return corrupt(name + " has another shape or type than in other ranks", *p.rank);
    }
    spans.emplace_back(p.slice.begin, p.slice.end);
  }
  JoinedTensor out;
  out.info = {.dtype = first.tensor.dtype, .shape = shape};
  if (first.slice.axis < 0) {
    for (const Piece& p : pieces) {
      if (!std::ranges::equal(p.tensor.data, first.tensor.data))
        return corrupt(name + " differs between ranks", *p.rank);
    }
    out.data = first.tensor.data;
    out.info.end = out.data.size();
    return out;
  }

  std::ranges::sort(spans);
  int64_t covered = 0;
  for (const auto& [begin, end] : spans) {
    if (begin > covered) break;
    covered = std::max(covered, end);
  }
  if (covered != first.slice.length) {
    return corrupt(fmt::format("{}: no rank holds what follows {} of its {}", name, covered, first.slice.length),
                   *first.rank);
  }
  // Covered by the slices, so no larger than they are together.
  const auto bytes = tensor_bytes(out.info.dtype, shape);
  if (!bytes) return corrupt(name + " is too large", *first.rank);
  out.bytes.resize(*bytes);
  out.info.end = *bytes;
  size_t run = bit_size(out.info.dtype) / 8;  // bytes of one index along the axis, within one of the indices before it
  for (size_t i = first.slice.axis + 1; i < shape.size(); ++i) run *= shape[i];
  const size_t row = run * first.slice.length;
  covered = 0;
  std::vector<const Piece*> order;
  for (const Piece& p : pieces) order.push_back(&p);
  std::ranges::stable_sort(order, {}, [](const Piece* p) { return p->slice.begin; });
  for (const Piece* p : order) {
    const size_t width = run * (p->slice.end - p->slice.begin), at = run * p->slice.begin;
    // What an earlier slice brought must be the same here: KV heads that neighbours share.
    const size_t known = p->slice.begin < covered ? run * (std::min(covered, p->slice.end) - p->slice.begin) : 0;
    for (size_t b = 0; b * width < p->tensor.data.size(); ++b) {
      const std::byte* from = p->tensor.data.data() + b * width;
      std::byte* to = out.bytes.data() + b * row + at;
      if (std::memcmp(to, from, known) != 0) return corrupt(name + " differs between ranks", *p->rank);
      std::memcpy(to + known, from + known, width - known);
    }
    covered = std::max(covered, p->slice.end);
  }
  out.data = out.bytes;
  return out;
}

}  // namespace

Result<int> rank_count(const Json& config, const std::string& where) {
  const auto section = config.find("pinion");
  if (section == config.end() || !section->is_object() || !section->contains("ranks")) return 0;
  const Json& n = (*section)["ranks"];
  if (!n.is_number_integer() || n.get<int64_t>() < 1 || n.get<int64_t>() > kMaxRanks) {
    return fail(Errc::corrupt, fmt::format("pinion.ranks must be 1 to {}", kMaxRanks), where, kRemedy);
  }
  return n.get<int>();
}

Result<std::map<std::string, JoinedTensor>> join_ranks(std::span<const Checkpoint> ranks) {
  std::map<std::string, std::vector<Piece>> pieces;
  for (size_t r = 0; r < ranks.size(); ++r) {
    const Checkpoint& rank = ranks[r];
    const auto section = rank.config().find("pinion");
    if (section == rank.config().end() || !section->is_object()) {
      return corrupt("the section \"pinion\" is missing: this is no rank", rank);
    }
    PINION_TRY(const int64_t tp_size, number(*section, "tp_size", rank));
    PINION_TRY(const int64_t pp_size, number(*section, "pp_size", rank));
    PINION_TRY(const int64_t tp_rank, number(*section, "tp_rank", rank));
    PINION_TRY(const int64_t pp_rank, number(*section, "pp_rank", rank));
    const auto n = static_cast<int64_t>(ranks.size());
    if (tp_size < 1 || pp_size < 1 || tp_size > n || pp_size > n || tp_size * pp_size != n ||
        pp_rank * tp_size + tp_rank != static_cast<int64_t>(r)) {
      return corrupt(fmt::format("this is not rank {} of {}", r, n), rank);
    }
    const auto slices = section->find("slices");
    if (slices == section->end() || !slices->is_object()) return corrupt("pinion.slices must be an object", rank);
    for (const std::string& name : rank.names()) {
      PINION_TRY(const TensorRef tensor, rank.tensor(name));
      PINION_TRY(const Slice slice, slice_of(*slices, tensor, rank));
      pieces[name].push_back({&rank, tensor, slice});
    }
  }
  std::map<std::string, JoinedTensor> out;
  for (const auto& [name, of_ranks] : pieces) {
    PINION_TRY(out[name], join(of_ranks));
  }
  return out;
}

}  // namespace pinion
