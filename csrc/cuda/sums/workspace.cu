// Every launch leaves its tickets at 0, and a stream's launches come one after the other: one buffer a stream is
// enough, and zeroing it once. Streams go by their ids, which are never given twice, not by their handles. The buffer
// is CUDA's and not PyTorch's: what PyTorch's allocator hands out may belong to the pool of a graph. It is never freed:
// a queued launch may still want the smaller one, and at exit the device may be gone.
//
// A captured graph is replayed on any stream, also at the same time as another graph: it gets tickets of its own,
// zeroed by a node of the graph. So does a launch for which the device has no memory left: PyTorch keeps some back.
#include "cuda/sums/split_sum.h"

#include <map>
#include <mutex>
#include <utility>

namespace pypeft {
namespace {
constexpr int64_t kFewest = 256;

struct Tickets {
  unsigned* first;
  std::optional<Tensor> memory;  // whose they are until the launch, or a buffer's
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

// Without memory if the device has none left.
Buffer new_buffer(const OnDevice& on, int64_t count) {
  Buffer buffer{nullptr, std::max(count, kFewest)};
  // An allocation would spoil a capture in another thread, unless this one says that it does not matter.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check(cudaThreadExchangeStreamCaptureMode(&mode), "allocating tickets");
  const cudaError_t status = cudaMalloc(&buffer.memory, buffer.count * sizeof(unsigned));
  check(cudaThreadExchangeStreamCaptureMode(&mode), "allocating tickets");
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // or PyTorch would find it
    return {};
  }
  check(status, "allocating tickets");
  zero(on, buffer.memory, buffer.count);
  return buffer;
}

// At least `count` tickets that are 0 when what is launched next on this stream starts.
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
