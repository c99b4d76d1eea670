// The functions of the emulator that the headers of csrc/cuda call instead of instructions of the device. See
// ../README.md.
#pragma once
#include <cstdint>
#include <functional>
#include <type_traits>

namespace emulator {

// Ends the running kernel. The launch then throws std::runtime_error with this message and the indices of the thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ------------------------------------------------------------------------------------------------------------- threads
int lane_index();
void barrier(const char* file, int line);
int barrier_or(int predicate, const char* file, int line);
void sync_warp(unsigned mask);

// Waits until every lane of `mask` has called this function. One lane then runs `action` on the `mine` pointers of all
// lanes (null for lanes outside the mask), and all lanes continue. Different actions or masks within `mask` are an
// error.
using Action = void (*)(void* const* brought);
void together(unsigned mask, Action action, void* mine, const char* name);

// together() with types: each lane gives an Exchange, and the action computes `out` of each lane from `in` of all
// lanes.
template <class In, class Out>
struct Exchange {
  In in;
  Out out;
};
template <class In, class Out, class F>
Out exchange(unsigned mask, In in, F, const char* name) {
  static_assert(std::is_empty_v<F>, "a captureless lambda of (Exchange* const* lanes, int lane)");
  using Lane = Exchange<In, Out>;
  Lane mine{in, Out{}};
  const Action action = [](void* const* brought) {
    const auto lanes = reinterpret_cast<Lane* const*>(brought);
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane]) lanes[lane]->out = F{}(lanes, lane);
    }
  };
  together(mask, action, &mine, name);
  return mine.out;
}

// -------------------------------------------------------------------------------------------------------------- memory
enum Kind { LOAD, STORE, MATRIX, COPY };  // the last two: ldmatrix and cp.async, in shared memory
void global_access(const void* address, int bytes, Kind kind);
void shared_access(const void* address, int bytes, Kind kind);
char* shared_memory();
unsigned take_ticket(unsigned* ticket, unsigned last);

// Programmatic dependent launch: csrc/cuda/device/ptx.h has the rules.
void allow_next_launch();
void wait_for_launch_before();

void copy_async(void* shared, const void* global, int bytes, int kept);
void commit_copies();
void wait_copies(int pending);

// Kernels may access only the elements of tensors that have been registered by know_tensor and not forgotten since;
// they may write only `writable` tensors.
void know_tensor(const void* data, const int64_t* sizes, const int64_t* strides, int64_t dim, int64_t element,
                 bool writable);
void forget_tensors();

// ---------------------------------------------------------------------------------------------------------- the matrix
void ldmatrix(uint32_t* d, const void* row, int matrices, bool transposed);
template <class T>
void mma_16816(float* c, const uint32_t* a, const uint32_t* b);
void mma_1688_tf32(float* c, const uint32_t* a, const uint32_t* b);
uint32_t to_tf32(float value);

// -------------------------------------------------------------------------------------------------------------- launch
struct Launch {
  unsigned grid[3], block[3];
  size_t shared;
  bool overlapping;  // with the launch before
};
void run(const Launch& launch, const void* kernel, const std::function<void()>& body);

}  // namespace emulator
