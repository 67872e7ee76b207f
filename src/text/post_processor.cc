#include "text/post_processor.h"

#include <string>

#include "text/json_fields.h"
#include "text/vocab.h"

namespace pinion {
namespace {

constexpr size_t max_added = 1024;

Result<int32_t> token_pair(const Json& object, const char* key, std::string_view where) {
  const Json* pair = find_field(object, key);
  if (!pair || !pair->is_array() || pair->size() != 2 || !(*pair)[1].is_number_unsigned() ||
      (*pair)[1].get<uint64_t>() > static_cast<uint64_t>(max_token_id)) {
    return wrong_field(key, "[token, id]", where);
  }
  return (*pair)[1].get<int32_t>();
}

}  // namespace

Result<PostProcessor> PostProcessor::parse(const Json* object, std::string_view where) {
  PostProcessor made;
  if (object) PINION_OK(made.add(*object, where));
  return made;
}

Status PostProcessor::add(const Json& object, std::string_view where) {
  PINION_TRY(const std::string type, string_field(object, "type", where));
  if (type == "Sequence") {
    PINION_TRY(const Json* list, array_field(object, "processors", where));
    for (const Json& item : *list) PINION_OK(add(item, where));
    return {};
  }
  if (type == "ByteLevel") return {};  // it only moves offsets
  if (type == "TemplateProcessing") {
    PINION_OK(add_template(object, where));
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    PINION_TRY(const int32_t cls, token_pair(object, "cls", where));
    PINION_TRY(const int32_t sep, token_pair(object, "sep", where));
    before_.insert(before_.begin(), cls);
    after_.push_back(sep);
  } else {
    return fail(Errc::unsupported, "post-processor type \"" + type + "\" is not implemented", where,
                "use a model with another tokenizer");
  }
  adds_by_rule_ = true;
  if (before_.size() + after_.size() > max_added)
    return fail(Errc::unsupported, "more than 1024 tokens are added", where);
  return {};
}

Status PostProcessor::add_template(const Json& object, std::string_view where) {
  PINION_TRY(const Json* single, array_field(object, "single", where));
  const Json* specials = find_field(object, "special_tokens");
  std::vector<int32_t> before, after;
  bool seen_text = false;
  for (const Json& item : *single) {
    if (const Json* sequence = find_field(item, "Sequence")) {
      PINION_TRY(const std::string id, string_field(*sequence, "id", where));
      if (id != "A" || seen_text) return wrong_field("single", "a template with sequence A once", where);
      seen_text = true;
      continue;
    }
    const Json* special = find_field(item, "SpecialToken");
    if (!special) return wrong_field("single", "an array of Sequence and SpecialToken", where);
    PINION_TRY(const std::string name, string_field(*special, "id", where));
    const Json* entry = specials ? find_field(*specials, name.c_str()) : nullptr;
    if (!entry) return wrong_field("special_tokens", "an object that has \"" + name + "\"", where);
    PINION_TRY(const Json* ids, array_field(*entry, "ids", where));
    for (const Json& id : *ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(max_token_id)) {
        return wrong_field("ids", "an array of token ids", where);
      }
      (seen_text ? after : before).push_back(id.get<int32_t>());
    }
  }
  if (!seen_text) return wrong_field("single", "a template with sequence A once", where);
  before_.insert(before_.begin(), before.begin(), before.end());
  after_.insert(after_.end(), after.begin(), after.end());
  return {};
}

}  // namespace pinion
