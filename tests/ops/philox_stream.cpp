// The packed mask's bytes [first, first + n) of the dropout stream, on one instruction set: for test_philox_stream.py,
// which counts further than a mask that fits into memory.
#include "cpu/isa/types.h"

#define ISA_BODY "cpu/philox_body.h"
#include "cpu/isa/for_each.h"

#define STREAM(isa)                                                                                                \
  extern "C" __attribute__((visibility("default"))) void stream_##isa(int64_t seed, uint16_t threshold,            \
                                                                      uint64_t first, int64_t n, uint8_t* bytes) { \
    pypeft::isa::philox_mask(pypeft::isa::philox(seed, threshold), first, n, bytes);                               \
  }

STREAM(baseline)
#if defined(__x86_64__)
STREAM(avx2)
STREAM(avx512)
STREAM(avx512bf16)
#endif
