// The one-line error form: "what (where) — what to do".
#include "base/result.h"

namespace pinion {

Error fail(Errc code, std::string_view what, std::string_view where, std::string_view remedy) {
  // Who reads a damaged file seldom knows more than this; whoever does says so.
  if (remedy.empty() && code == Errc::corrupt && !where.empty()) remedy = "correct the file, or fetch it again";
  std::string text(what);
  if (!where.empty()) text.append(" (").append(where).append(")");
  if (!remedy.empty()) text.append(" — ").append(remedy);
  for (char& c : text) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return {code, std::move(text)};
}

}  // namespace pinion
