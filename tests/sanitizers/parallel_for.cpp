// torch_parallel_for with std::thread, for ThreadSanitizer. The sanitizer sees the start and the join of these threads,
// but not of the threads in PyTorch's OpenMP library, which is compiled without the sanitizer. The number of threads is
// at most that of PyTorch. The grain, which would only make chunks larger, is ignored. A call within a chunk runs in
// the same thread.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

static std::atomic<int64_t> chunks_started{0};
static thread_local bool inside = false;

// The number of chunks that have run in their own thread.
extern "C" __attribute__((visibility("default"))) int64_t pypeft_sanitizer_chunks() { return chunks_started; }

extern "C" AOTITorchError pypeft_sanitizer_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body,
                                                        void* context) {
  uint32_t threads = 1;
  if (torch_get_num_threads(&threads) != AOTI_TORCH_SUCCESS) return AOTI_TORCH_FAILURE;
  const int64_t count = std::min<int64_t>(threads, end - begin);
  if (count <= 0) return AOTI_TORCH_SUCCESS;
  if (inside || count == 1) {
    body(begin, end, context);
    return AOTI_TORCH_SUCCESS;
  }
  const int64_t size = (end - begin + count - 1) / count;
  std::vector<std::thread> workers;
  for (int64_t first = begin; first < end; first += size) {
    workers.emplace_back([=] {
      inside = true;
      chunks_started.fetch_add(1, std::memory_order_relaxed);
      body(first, std::min(first + size, end), context);
    });
  }
  for (std::thread& worker : workers) worker.join();
  return AOTI_TORCH_SUCCESS;
}
