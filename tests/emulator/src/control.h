// The structures that Python reads by ctypes; __init__.py declares the same fields.
#pragma once
#include <cstdint>

namespace emulator {

struct Global {
  uint64_t requests;  // requests of warps
  uint64_t bytes;     // different bytes of each request
  uint64_t sectors;   // sectors of 32 bytes that the requests touch
  uint64_t needed;    // the fewest sectors that could hold these bytes
  uint64_t first;     // sectors that no earlier request of the launch touched, which must come from memory. Loads of
                      // sectors that the launch has stored are not counted, because L2 holds them
};
struct Shared {
  uint64_t requests, conflicts;
};
struct Counters {
  uint64_t launches, overlapping;  // the latter began before the launch before had ended
  Global load, store;
  Shared shared_load, shared_store;  // without ldmatrix and cp.async
  Shared ldmatrix, copies;
};
extern Counters counters;

}  // namespace emulator
