// Checks accesses to memory. Global memory: whether a kernel may access the address. Shared memory: bounds, reads of
// bytes that have not been written, races between two threads, and asynchronous copies, which are done at their wait.
#include <cstdio>

#include "control.h"
#include "state.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

// ------------------------------------------------------------------------------------------------------ global memory
struct Region {
  const char *begin, *end;
  bool writable;
};
std::vector<Region> regions;
size_t last_hit = 0;

const char* word(Kind kind) { return kind == LOAD ? "load" : "store"; }

void must_align(const char* what, const void* address, int bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) fail("%s of %d bytes at a misaligned address", what, bytes);
}

void must_be_known(const char* what, const char* p, int bytes, Kind kind) {
  if (last_hit < regions.size()) {
    const Region& r = regions[last_hit];
    if (p >= r.begin && p + bytes <= r.end && (kind == LOAD || r.writable)) return;
  }
  const Region* near = nullptr;
  for (size_t i = 0; i < regions.size(); ++i) {
    const Region& r = regions[i];
    if (p >= r.begin && p + bytes <= r.end) {
      if (kind == LOAD || r.writable) {
        last_hit = i;
        return;
      }
      fail("%s into an input: %d bytes at byte %td of a tensor of %td", what, bytes, p - r.begin, r.end - r.begin);
    }
    const auto distance = [&](const Region& q) { return p < q.begin ? q.begin - p : p - q.end; };
    if (!near || distance(r) < distance(*near)) near = &r;
  }
  if (!near) fail("%s of global memory: no tensor was given to this kernel", what);
  fail("%s of %d bytes out of bounds of global memory: at byte %td of the nearest tensor, which has %td", what, bytes,
       p - near->begin, near->end - near->begin);
}

// The memory that the launch before stored to (whole tensors), and that this launch stores to. A memset is a launch.
using Stored = std::vector<std::pair<const char*, const char*>>;
Stored stored_before, stored_now;
bool overlapping = false;
unsigned blocks = 0, blocks_that_allow = 0;  // of this launch

// The launch before has perhaps not ended, so its stores are perhaps not there, and it may load what this one stores.
void must_have_waited(const char* what, const char* p, int bytes, Kind kind) {
  if (!overlapping || block.current->waited) return;
  if (kind == STORE) fail("a store to global memory with no wait for the launch before, with which this one overlaps");
  for (const auto& [begin, end] : stored_before) {
    if (p < end && p + bytes > begin) fail("%s of what the launch before stores, with no wait for that launch", what);
  }
}

void note_stored(const Region& r) {
  const std::pair<const char*, const char*> stored{r.begin, r.end};
  if (std::find(stored_now.begin(), stored_now.end(), stored) == stored_now.end()) stored_now.push_back(stored);
}

void note_store() {
  const int who = block.current->number;
  if (block.drawn_epoch == block.epoch && block.drawn_by != who) {
    fail("race: a store to global memory with no barrier after the block's ticket");
  }
  if (block.stored_epoch == block.epoch && block.stored_by != who) {
    block.stored_by = -1;  // several threads
  } else {
    block.stored_epoch = block.epoch, block.stored_by = who;
  }
}

// ------------------------------------------------------------------------------------------------------ shared memory
// The last access to a byte: its thread and its epochs. Two accesses of different threads, one of them a store, are a
// race, unless a barrier, or for lanes of one warp a __syncwarp, was between them.
constexpr int MANY = -1000000;  // threads of several warps; -1 - w: several of warp w
struct Mark {
  uint32_t block_epoch = 0, warp_epoch = 0;
  int thread = 0;
};
struct Cell {
  Mark written, read;
  uint32_t in_flight = 0;  // pending copies to this byte
};
std::vector<Cell> shadow;

int warp_of(int thread) { return thread >= 0 ? thread / 32 : -1 - thread; }

bool races(const Mark& before, const Thread& t) {
  if (before.block_epoch != block.epoch || before.thread == t.number) return false;
  if (before.thread == MANY || warp_of(before.thread) != t.warp) return true;
  return before.warp_epoch == block.warps[t.warp].epoch;
}

void note(Mark& mark, const Thread& t, bool merge) {
  int who = t.number;
  if (merge && mark.block_epoch == block.epoch && mark.thread != who) {
    if (mark.thread == MANY || warp_of(mark.thread) != t.warp) {
      who = MANY;
    } else if (mark.warp_epoch == block.warps[t.warp].epoch) {
      who = -1 - t.warp;
    }
  }
  mark = {block.epoch, block.warps[t.warp].epoch, who};
}

size_t must_be_inside(const char* what, const void* address, int bytes) {
  const char* p = static_cast<const char*>(address);
  if (p < block.shared || p + bytes > block.shared + block.shared_bytes) {
    fail("%s of %d bytes out of bounds of shared memory: at byte %td of %zu", what, bytes, p - block.shared,
         block.shared_bytes);
  }
  return p - block.shared;
}

void touch(const char* what, const void* address, int bytes, Kind kind) {
  const Thread& t = *block.current;
  const size_t at = must_be_inside(what, address, bytes);
  for (size_t i = at; i < at + bytes; ++i) {
    Cell& c = shadow[i];
    if (c.in_flight) fail("%s at byte %zu of shared memory, to which a cp.async is still under way", what, i);
    if (races(c.written, t)) {
      fail("race: %s at byte %zu of shared memory, which thread %d wrote with no barrier in between", what, i,
           c.written.thread);
    }
    if (kind == LOAD) {
      if (c.written.block_epoch < block.started) fail("%s at byte %zu of shared memory, which nobody wrote", what, i);
      note(c.read, t, true);
      continue;
    }
    if (races(c.read, t)) {
      fail("race: %s at byte %zu of shared memory, which another thread reads with no barrier in between", what, i);
    }
    note(c.written, t, false);
  }
}

void land(const Copy& c) {
  std::memcpy(c.to, c.from, c.kept);
  std::memset(c.to + c.kept, 0, c.bytes - c.kept);
  const size_t at = c.to - block.shared;
  for (size_t i = at; i < at + c.bytes; ++i) {
    --shadow[i].in_flight;
    note(shadow[i].written, *block.current, false);
  }
}
}  // namespace

void know_tensor(const void* data, const int64_t* sizes, const int64_t* strides, int64_t dim, int64_t element,
                 bool writable) {
  const char *begin = static_cast<const char*>(data), *end = begin + element;
  for (int64_t d = 0; d < dim; ++d) {
    if (sizes[d] == 0) return;
    (strides[d] < 0 ? begin : end) += (sizes[d] - 1) * strides[d] * element;
  }
  regions.push_back({begin, end, writable});
}

void forget_tensors() { regions.clear(), last_hit = 0; }

void global_access(const void* address, int bytes, Kind kind) {
  if (!block.current) fail("a kernel's access to memory");
  char what[16];
  snprintf(what, sizeof(what), "%s", word(kind));
  must_align(what, address, bytes);
  must_be_known(what, static_cast<const char*>(address), bytes, kind);
  must_have_waited(what, static_cast<const char*>(address), bytes, kind);
  if (kind == STORE) note_stored(regions[last_hit]), note_store();
  if (settings.counting) count(GLOBAL, kind, address, bytes, __builtin_return_address(0));
}

void shared_access(const void* address, int bytes, Kind kind) {
  must_align(word(kind), address, bytes);
  touch(word(kind), address, bytes, kind);
  if (settings.counting) count(SHARED, kind, address, bytes, __builtin_return_address(0));
}

// The read of a row by ldmatrix, counted for the lane that gave the address.
void matrix_access(const void* row, const void* site) {
  must_align("ldmatrix", row, 16);
  touch("ldmatrix", row, 16, LOAD);
  if (settings.counting) count(SHARED, MATRIX, row, 16, site);
}

// In the emulator the block with the last ticket sees all stores of the others, because blocks run one after the other.
// On a device it sees only the stores before the barrier that precedes the ticket of a block. Other stores are races.
unsigned take_ticket(unsigned* ticket, unsigned last) {
  if (block.stored_epoch == block.epoch && block.stored_by != block.current->number) {
    fail("race: a ticket is drawn with no barrier after what another thread stored in global memory");
  }
  global_access(ticket, sizeof(*ticket), LOAD);
  global_access(ticket, sizeof(*ticket), STORE);
  block.drawn_epoch = block.epoch, block.drawn_by = block.current->number;
  const unsigned drawn = *ticket;
  *ticket = drawn >= last ? 0 : drawn + 1;
  return drawn;
}

char* shared_memory() { return block.shared; }

void start_shared(size_t bytes) {
  alignas(128) static char memory[(256 << 10) + 128];
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(memory, sizeof(memory));
  ASAN_POISON_MEMORY_REGION(memory + bytes, sizeof(memory) - bytes);
#endif
  std::memset(memory, 0xFF, bytes);  // NaN in every type
  block.shared = memory;
  block.shared_bytes = bytes;
  if (shadow.size() < bytes) shadow.resize(bytes);
  for (Cell& c : shadow) c.in_flight = 0;
}

void copy_async(void* shared, const void* global, int bytes, int kept) {
  const void* site = __builtin_return_address(0);
  if (kept < 0 || kept > bytes) fail("cp.async keeps %d of %d bytes", kept, bytes);
  must_align("cp.async", shared, bytes);
  must_align("cp.async", global, bytes);
  if (kept > 0) {
    must_be_known("cp.async", static_cast<const char*>(global), kept, LOAD);
    must_have_waited("cp.async", static_cast<const char*>(global), kept, LOAD);
  }
  // The bytes may change at any time from now on, so for the other threads this is a store.
  touch("cp.async", shared, bytes, STORE);
  const size_t at = static_cast<char*>(shared) - block.shared;
  for (size_t i = at; i < at + bytes; ++i) ++shadow[i].in_flight;
  block.current->open.push_back({static_cast<char*>(shared), static_cast<const char*>(global), bytes, kept});
  if (settings.counting) {
    if (kept > 0) count(GLOBAL, LOAD, global, kept, site);
    count(SHARED, COPY, shared, bytes, site);
  }
}

void commit_copies() {
  Thread& t = *block.current;
  t.groups.push_back(std::move(t.open));
  t.open.clear();
}

// The copies are done here and not earlier, so a kernel without a wait reads the old bytes.
void wait_copies(int pending) {
  auto& groups = block.current->groups;
  while (int(groups.size()) > pending) {
    for (const Copy& c : groups.front()) land(c);
    groups.erase(groups.begin());
  }
}

void allow_next_launch() {
  if (!block.allows) block.allows = true, ++blocks_that_allow;
}

void wait_for_launch_before() { block.current->waited = true; }

void start_stores(const Launch& launch) {
  overlapping = launch.overlapping;
  if (overlapping && blocks == 0) fail("a launch that overlaps with the launch before, where no kernel came before");
  if (overlapping && settings.counting) counters.overlapping += blocks_that_allow == blocks;
  blocks = launch.grid[0] * launch.grid[1] * launch.grid[2], blocks_that_allow = 0;
  stored_before = std::move(stored_now), stored_now.clear();
}

void note_memset(const void* memory, size_t bytes) {
  const char* begin = static_cast<const char*>(memory);
  stored_now = {{begin, begin + bytes}};
  blocks = blocks_that_allow = 0;
}

// A thread may return before its copies are done. No thread can rely on these copies.
void check_pending() {
  if (overlapping && !block.current->waited) fail("a thread ends with no wait for the launch before");
  block.current->open.clear();
  block.current->groups.clear();
}

}  // namespace emulator
