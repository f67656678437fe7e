// How kernels of this folder are launched: csrc/cuda/host, which runs them on the CPU, has its own way.
#pragma once

#ifndef LAUNCH
#define LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#endif
