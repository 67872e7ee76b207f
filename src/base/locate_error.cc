#include "base/locate_error.h"

namespace pinion {

Error locate_error(Error error, std::string_view where) {
  const std::string place = " (" + std::string(where) + ")";
  const size_t remedy = error.message.find(" — ");
  error.message.insert(remedy == std::string::npos ? error.message.size() : remedy, place);
  return error;
}

}  // namespace pinion
