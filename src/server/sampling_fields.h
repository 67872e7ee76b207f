// The sampling fields that chat and text completions share.
#pragma once

#include "server/openai_request.h"

namespace pinion {

void read_sampling(RequestFields& fields, const ModelService& model, SamplingParams& sampling);
void read_stream_options(RequestFields& fields, CompletionCall& call);
void refuse_unsupported(RequestFields& fields);  // known fields that are not implemented
void ignore_harmless(RequestFields& fields);     // known fields that do not change the answer

}  // namespace pinion
