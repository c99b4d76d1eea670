// The tickets of split sums. Every launch leaves its tickets at 0, and the launches of a stream that take tickets run
// one after the other. One buffer for each stream is therefore enough, and it is set to 0 once. The key of a stream is
// its id, because ids are unique and handles are reused. The buffer is allocated by cudaMalloc, because memory of
// PyTorch's allocator may belong to the pool of a graph. The buffer is never freed: a queued launch may still use the
// smaller buffer after a larger one has been allocated, and at exit the device may be gone.
//
// A captured graph gets tickets of its own, which a node of the graph sets to 0, because a graph may be replayed on any
// stream, also concurrently with another graph. If cudaMalloc finds no memory, a launch also gets tickets of its own,
// because PyTorch's allocator may have cached memory.
#include "cuda/sums/split_sum.h"

#include <map>
#include <mutex>
#include <utility>

namespace pypeft {
namespace {
constexpr int64_t kFewest = 256;

struct Tickets {
  unsigned* first;
  std::optional<Tensor> memory;  // the owner of the tickets until the launch, if no buffer owns them
};

void zero(const OnDevice& on, void* tickets, int64_t count) {
  check(cudaMemsetAsync(tickets, 0, count * sizeof(unsigned), on.stream()), "zeroing tickets");
}

struct Buffer {
  void* memory = nullptr;
  int64_t count = 0;
};

unsigned* write(void* tickets, [[maybe_unused]] int64_t count) {
#ifdef CUDA_EMULATOR
  const int64_t one = 1;
  emulator::know_tensor(tickets, &count, &one, 1, sizeof(unsigned), true);
#endif
  return static_cast<unsigned*>(tickets);
}

Tickets of_its_own(const OnDevice& on, const Tensor& like, int64_t count) {
  Tensor memory = torch::stable::new_empty(like, {count}, ScalarType::Int);
  zero(on, memory.mutable_data_ptr(), count);
  return {write(memory.mutable_data_ptr(), count), memory};
}

// `memory` of the result is null if the device has no memory left.
Buffer new_buffer(const OnDevice& on, int64_t count) {
  Buffer buffer{nullptr, std::max(count, kFewest)};
  // cudaMalloc would invalidate a capture in another thread, unless the capture mode of this thread is relaxed.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check(cudaThreadExchangeStreamCaptureMode(&mode), "allocating tickets");
  const cudaError_t status = cudaMalloc(&buffer.memory, buffer.count * sizeof(unsigned));
  check(cudaThreadExchangeStreamCaptureMode(&mode), "allocating tickets");
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // clears the error, which PyTorch would otherwise report
    return {};
  }
  check(status, "allocating tickets");
  zero(on, buffer.memory, buffer.count);
  return buffer;
}

// At least `count` tickets, which are 0 when the next launch on this stream starts.
Tickets take_tickets(const OnDevice& on, const Tensor& like, int64_t count) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(on.stream(), &capture), "asking whether a graph is captured");
  if (capture != cudaStreamCaptureStatusNone) return of_its_own(on, like, count);
  static std::mutex mutex;
  static auto& buffers = *new std::map<std::pair<int, unsigned long long>, Buffer>;
  unsigned long long stream = 0;
  check(cudaStreamGetId(on.stream(), &stream), "asking for a stream's id");
  const std::lock_guard<std::mutex> lock(mutex);
  Buffer& buffer = buffers[{like.get_device_index(), stream}];
  if (buffer.count < count) {
    const Buffer larger = new_buffer(on, std::max(count, 2 * buffer.count));
    if (larger.memory == nullptr) return of_its_own(on, like, count);
    buffer = larger;
  }
  return {write(buffer.memory, buffer.count), {}};
}
}  // namespace

Workspace::Workspace(const OnDevice& on, const Tensor& like, std::initializer_list<Need> needs) {
  int64_t count = 0;
  for (const Need& need : needs) {
    if (need.blocks <= 1) continue;
    memory_.push_back(torch::stable::new_empty(like, {need.sums, need.blocks, need.size}, ScalarType::Float));
    need.sum->parts = write<float>(memory_.back());
    count += need.sums;
  }
  if (count == 0) return;
  const Tickets tickets = take_tickets(on, like, count);
  if (tickets.memory) memory_.push_back(*tickets.memory);
  unsigned* next = tickets.first;
  for (const Need& need : needs) {
    if (need.blocks > 1) need.sum->tickets = next, next += need.sums;
  }
}

}  // namespace pypeft
