// The engine's JSON sections: written by EngineWriter, read back by Engine::open.
#pragma once

#include "engine/engine.h"

namespace pinion {

struct Section {
  uint64_t offset = 0, size = 0;
  Hash128 hash;
};

inline constexpr std::string_view kEngineMagic = "PINIONE1";
inline constexpr uint64_t kEngineHeader = 4096;  // magic, then the section table as JSON, padded with spaces

Json programs_to_json(const EngineContents& contents);
Json weights_to_json(const EngineContents& contents);
// Throw Json::exception or std::out_of_range on anything malformed; Engine::open turns that into an Error.
Manifest manifest_from_json(const Json& json);
void programs_from_json(const Json& json, EngineContents& contents);
void weights_from_json(const Json& json, EngineContents& contents, uint64_t data_bytes);
Hash128 hash_from_hex(const std::string& hex);

}  // namespace pinion
