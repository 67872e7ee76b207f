// From what the user calls a model to a directory: a path, or org/name in the local Hugging Face cache. Nothing is
// downloaded.
#pragma once

#include <filesystem>
#include <string_view>

#include "base/result.h"

namespace pinion {

// `model`: an existing directory, or "org/name" or "org/name@revision" (branch, tag or commit; "main" by default) in
// the cache. When it is in neither, the error holds the command that downloads it.
Result<std::filesystem::path> resolve_model(std::string_view model);

// $HF_HUB_CACHE, $HF_HOME/hub, $XDG_CACHE_HOME/huggingface/hub or ~/.cache/huggingface/hub.
std::filesystem::path hf_hub_cache();

// `dir / name` for a file name that came out of an untrusted file (a shard index, transformers_weights). Refuses
// absolute names, "..", backslashes, control characters, what is no regular file, and links that leave the directory;
// those of a hub snapshot into its own ../../blobs are allowed.
Result<std::filesystem::path> file_inside(const std::filesystem::path& dir, std::string_view name);

}  // namespace pinion
