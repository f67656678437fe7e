// log p, log(1 - p) and their gradient where the logits are: csrc/softmax.h on a GPU.
#pragma once

#include "../softmax.h"

const softmax_on_device * llsteer_cuda_softmax();
