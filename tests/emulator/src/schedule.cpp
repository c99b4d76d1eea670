// Runs one block at a time, with its threads as fibers. A thread runs until it reaches a barrier, a collective of its
// warp or its end. Then another thread continues, in an order that depends on the seed. The device may run threads in
// any order, so a kernel must be right in every order.
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Block block;
Settings settings;
std::mt19937 random_bits;

namespace {
constexpr size_t STACK = 256 << 10;
Fiber host;
std::string failure;
unsigned picks = 0;

char* stack_of(size_t thread) {
  static std::vector<char*> stacks;  // reused for all blocks; a block has at most 1024 threads
  while (stacks.size() <= thread) {
    void* memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for the stack of a thread");
    mprotect(memory, 4096, PROT_NONE);
    stacks.push_back(static_cast<char*>(memory));
  }
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stacks[thread] + 4096, STACK - 4096);  // a failed kernel may have left it poisoned
#endif
  return stacks[thread] + 4096;
}

// A random lane of the runnable warp with the highest priority. Priorities change rarely, so that warps get far ahead
// of each other.
Thread* pick() {
  if (picks++ % 64 == 0) {
    for (Warp& w : block.warps) w.eagerness = random_bits();
  }
  const Warp* best = nullptr;
  for (const Warp& w : block.warps) {
    if (w.runnable && (!best || w.eagerness > best->eagerness)) best = &w;
  }
  if (!best) return nullptr;
  const unsigned turn = random_bits() % 32;
  const unsigned rotated = best->runnable >> turn | best->runnable << ((32 - turn) % 32);
  const unsigned lane = (__builtin_ctz(rotated) + turn) % 32;
  return &block.threads[(best - block.warps.data()) * 32 + lane];
}

const char* why_stuck() {
  for (const Thread& t : block.threads) {
    if (block.warps[t.warp].arrived >> t.lane & 1) return t.name;
  }
  return "__syncthreads()";
}

// Switches to the next thread, or to the host if no thread can run.
void next() {
  Thread* from = block.current;
  Thread* to = pick();
  if (to == from) return;
  if (!to && block.alive > 0) {
    fail("deadlock: %d threads of the block are left, %d wait at __syncthreads(), the others in %s", block.alive,
         block.at_barrier, why_stuck());
  }
  block.current = to;
  if (to) threadIdx = to->index;
  hand_over(from->fiber, to ? to->fiber : host);
}

void release_barrier_if_full() {
  if (block.at_barrier == 0 || block.at_barrier < block.alive) return;
  for (size_t w = 0; w < block.warps.size(); ++w) {
    count_accesses(int(w));
    block.warps[w].runnable = block.warps[w].alive;
  }
  block.at_barrier = 0;
  block.verdict = block.votes, block.votes = 0;
  ++block.epoch;
}

void enter() {
  arrived(block.current->fiber);
  (*block.body)();
  Thread& t = *block.current;
  Warp& w = block.warps[t.warp];
  check_pending();
  w.alive &= ~(1u << t.lane);
  w.runnable &= ~(1u << t.lane);
  --block.alive;
  if (w.alive == 0) count_accesses(t.warp);
  release_barrier_if_full();
  next();
  __builtin_unreachable();
}

void start_block(const Launch& launch, unsigned number) {
  const unsigned* g = launch.grid;
  const unsigned* b = launch.block;
  blockIdx = {number % g[0], number / g[0] % g[1], number / (g[0] * g[1])};
  const int threads = int(b[0] * b[1] * b[2]);
  block.threads.assign(threads, Thread{});
  block.warps.assign((threads + 31) / 32, Warp{});
  block.alive = threads;
  block.at_barrier = block.votes = 0, block.allows = false;
  block.started = ++block.epoch;
  start_shared(launch.shared);
  for (int i = 0; i < threads; ++i) {
    Thread& t = block.threads[i];
    t.index = {i % b[0], i / b[0] % b[1], i / (b[0] * b[1])};
    t.number = i, t.lane = i % 32, t.warp = i / 32;
    t.fiber.stack = stack_of(i), t.fiber.size = STACK - 4096;
    point_at(t.fiber, enter);
    block.warps[t.warp].alive |= 1u << t.lane;
  }
  for (Warp& w : block.warps) w.runnable = w.alive;
  block.current = pick();
  threadIdx = block.current->index;
  hand_over(host, block.current->fiber);
  block.current = nullptr;
}
}  // namespace

std::string place() {
  if (!block.current) return "outside of a kernel";
  char text[128];
  snprintf(text, sizeof(text), "block (%u,%u,%u), thread (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
           threadIdx.y, threadIdx.z);
  return text;
}

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  failure = std::string("emulator: ") + text + "; " + place();
  ++settings.failures;
  if (!block.current) throw std::runtime_error(failure);
  Fiber abandoned;  // a failed thread never continues
  hand_over(abandoned, host);
  __builtin_unreachable();
}

int lane_index() { return block.current->lane; }

void barrier(const char* file, int line) {
  if (block.at_barrier == 0) {
    block.barrier_file = file, block.barrier_line = line;
  } else if (block.barrier_line != line || std::string(block.barrier_file) != file) {
    fail("threads of a block wait at different barriers: %s:%d and %s:%d", block.barrier_file, block.barrier_line, file,
         line);
  }
  Thread& t = *block.current;
  block.warps[t.warp].runnable &= ~(1u << t.lane);
  ++block.at_barrier;
  release_barrier_if_full();
  next();
}

int barrier_or(int predicate, const char* file, int line) {
  block.votes |= predicate != 0;
  barrier(file, line);
  return block.verdict;  // the next barrier needs this thread, so verdict is still that of this barrier
}

void together(unsigned mask, Action action, void* mine, const char* name) {
  Thread& t = *block.current;
  Warp& w = block.warps[t.warp];
  Thread* lanes = &block.threads[t.warp * 32];
  if (!(mask >> t.lane & 1)) fail("%s: the calling lane %d is not in its own mask %08x", name, t.lane, mask);
  // Lanes that have returned, or that the last warp of a block does not have, must not be in the mask.
  if (mask & ~w.alive) {
    fail("%s: mask %08x names lanes that have returned or do not exist; alive are %08x", name, mask, w.alive);
  }
  t.mask = mask, t.action = action, t.brought = mine, t.name = name;
  w.arrived |= 1u << t.lane;
  w.runnable &= ~(1u << t.lane);
  if ((w.arrived & mask) == mask) {
    void* brought[32] = {};
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      if (lanes[i].mask != mask || lanes[i].action != action) {
        fail("lanes of a warp meet in different collectives: %s with mask %08x, and lane %d in %s with mask %08x", name,
             mask, i, lanes[i].name, lanes[i].mask);
      }
      brought[i] = lanes[i].brought;
    }
    action(brought);
    if (mask == w.alive) count_accesses(t.warp);
    w.arrived &= ~mask;
    w.runnable |= mask;
  }
  next();
}

void sync_warp(unsigned mask) {
  if (mask == 0xFFFFFFFF) mask = block.warps[block.current->warp].alive;  // the default mask: all lanes that are alive
  together(mask, [](void* const*) { ++block.warps[block.current->warp].epoch; }, nullptr, "__syncwarp()");
}

void run(const Launch& launch, const void* kernel, const std::function<void()>& body) {
  static std::mutex one;
  const std::lock_guard<std::mutex> lock(one);
  const unsigned threads = launch.block[0] * launch.block[1] * launch.block[2];
  if (threads < 1 || threads > 1024) fail("a block of %u threads; the device takes 1 to 1024", threads);
  if (launch.grid[1] > 65535 || launch.grid[2] > 65535) {
    fail("a grid of %u x %u x %u; y and z are at most 65535", launch.grid[0], launch.grid[1], launch.grid[2]);
  }
  if (launch.shared > size_t(settings.shared_per_block)) {
    fail("%zu bytes of shared memory; the device has %d", launch.shared, settings.shared_per_block);
  }
  if (!may_have(kernel, launch.shared)) fail("%zu bytes of shared memory without cudaFuncSetAttribute", launch.shared);
  note_launch(kernel, launch.shared);
  gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
  blockDim = {launch.block[0], launch.block[1], launch.block[2]};
  random_bits.seed(settings.seed);
  start_counting_launch();
  start_stores(launch);
  failure.clear();
  block.body = &body;
  std::vector<unsigned> order(size_t(launch.grid[0]) * launch.grid[1] * launch.grid[2]);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_bits);
  for (unsigned number : order) {
    start_block(launch, number);
    if (!failure.empty()) throw std::runtime_error(failure);
  }
}

}  // namespace emulator
