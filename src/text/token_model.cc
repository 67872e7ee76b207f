#include "text/token_model.h"

#include "text/bpe.h"
#include "text/byte_level.h"
#include "text/json_fields.h"
#include "text/unigram.h"
#include "text/wordpiece.h"

namespace pinion {

void TokenModel::tokenize_bytes(std::string_view word, std::vector<int32_t>& ids) const {
  std::string mapped;
  append_byte_level(word, mapped);
  tokenize(mapped, ids);
}

Result<std::unique_ptr<TokenModel>> TokenModel::parse(const Json& object, std::string_view where) {
  const Json* vocab = find_field(object, "vocab");
  if (!vocab) return wrong_field("vocab", "an object or an array", where);
  std::string deduced = "WordLevel";  // old files have no type
  if (find_field(object, "merges")) {
    deduced = "BPE";
  } else if (vocab->is_array()) {
    deduced = "Unigram";
  } else if (find_field(object, "continuing_subword_prefix") && find_field(object, "max_input_chars_per_word")) {
    deduced = "WordPiece";
  }
  PINION_TRY(const std::string type, string_field(object, "type", where, deduced));
  if (type == "BPE") return Bpe::parse(object, where);
  if (type == "Unigram") return Unigram::parse(object, where);
  if (type == "WordPiece") return WordPiece::parse(object, where);
  if (type == "WordLevel") return WordLevel::parse(object, where);
  return fail(Errc::unsupported, "model type \"" + type + "\" is not implemented", where,
              "use BPE, Unigram, WordPiece or WordLevel");
}

}  // namespace pinion
