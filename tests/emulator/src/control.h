// What Python sets and reads, by ctypes: __init__.py mirrors these structures.
#pragma once
#include <cstdint>

namespace emulator {

struct Global {
  uint64_t requests;  // of warps
  uint64_t bytes;     // that they asked for, each once a request
  uint64_t sectors;   // of 32 bytes that they touched
  uint64_t needed;    // the fewest that could have held their bytes
  uint64_t first;     // sectors that no request of the same launch had touched: what must come from memory. A load of
                      // what the launch stored before is not counted: it is in L2
};
struct Shared {
  uint64_t requests, conflicts;
};
struct Counters {
  uint64_t launches;
  Global load, store;
  Shared shared_load, shared_store;  // but for the next two
  Shared ldmatrix, copies;
};
extern Counters counters;

}  // namespace emulator
