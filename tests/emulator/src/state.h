// The state that the parts of the emulator share: the running block, its warps and its threads.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"

namespace emulator {

enum Space { GLOBAL, SHARED };

struct Copy {
  char* to;
  const char* from;
  int bytes, kept;
};

struct Thread {
  Fiber fiber;
  uint3 index{};
  int number = 0, lane = 0, warp = 0;
  // The collective in which the thread waits.
  unsigned mask = 0;
  Action action = nullptr;
  void* brought = nullptr;
  const char* name = nullptr;
  bool waited = false;  // for the launch before
  // Pending copies: those of the open group, and of the committed groups, oldest first.
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};

struct Warp {
  unsigned alive = 0, runnable = 0;  // bit masks of lanes
  unsigned arrived = 0;              // bit mask of the lanes that wait in a collective
  uint32_t epoch = 0;                // incremented by every __syncwarp
  uint32_t eagerness = 0;            // the priority of the warp; drawn again at intervals
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Thread* current = nullptr;
  const std::function<void()>* body = nullptr;
  int alive = 0, at_barrier = 0, votes = 0, verdict = 0;
  const char* barrier_file = nullptr;
  int barrier_line = 0;
  uint32_t epoch = 0;    // incremented by every barrier and at the start of every block, never reused
  uint32_t started = 0;  // the epoch at the start of the block
  // The threads that stored to global memory and that took a ticket in the epochs given; -1 for several threads.
  uint32_t stored_epoch = 0, drawn_epoch = 0;
  int stored_by = 0, drawn_by = 0;
  bool allows = false;  // the next launch to begin
  char* shared = nullptr;
  size_t shared_bytes = 0;
};

extern Block block;
extern std::mt19937 random_bits;

// The settings, which Python sets through runtime.cpp.
struct Settings {
  uint32_t seed = 0;
  int capability = 80, ptx = 0, driver = 13000, multiprocessors = 4, shared_per_block = 99 * 1024;
  bool counting = false, capturing = false, full = false;
  unsigned failures = 0;  // kernels that failed; on a device each failure would end the context and its streams
};
extern Settings settings;

void start_shared(size_t bytes);          // new shared memory, filled with NaN
void start_stores(const Launch& launch);  // the stores of a new launch
void note_memset(const void* memory, size_t bytes);
void check_pending();           // at the end of a thread: drops the copies that it has not waited for
void count_accesses(int warp);  // called where all lanes of the warp have met
void start_counting_launch();
void count(Space space, Kind kind, const void* address, int bytes, const void* site);
bool may_have(const void* kernel, size_t shared);  // more than 48 KiB needs cudaFuncSetAttribute
void note_launch(const void* kernel, size_t shared);
std::string place();  // "block (0,0,0), thread (5,0,0)"

}  // namespace emulator
