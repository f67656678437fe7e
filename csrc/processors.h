#pragma once

// clones of a function for the processors that matter, chosen when the library is loaded
#if defined(__x86_64__) && defined(__linux__)
#define STEER_PROCESSORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define STEER_PROCESSORS
#endif
