// ggml's to_float of the common types, vectorized for this variant's processor.
#pragma once

#include "ggml.h"

// The function that expands blocks of a type to float32, bit for bit as
// ggml_get_type_traits(type)->to_float does; null where that is null.
ggml_to_float_t llsteer_to_float(ggml_type type);
