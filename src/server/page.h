// The page at "/": a chat, sampling controls, token probabilities and the server's live figures, in one file without
// references to others. It speaks only to the server that it comes from.
#pragma once

#include <string_view>

namespace pinion {

std::string_view chat_page();  // page.html, compiled in

}  // namespace pinion
