// A sum that several blocks of one launch share, as in a split-K product. Every block stores its part and takes a
// ticket. The block that takes the last ticket adds all parts in the order of their numbers. The sum needs no second
// launch, which would take longer than the sum. The result is deterministic: the last block varies, but the order of
// the parts does not, and no value is added atomically. split_sum.cuh has the device code.
#pragma once
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <vector>

#include "cuda/device/launch.h"

namespace pypeft {

// A kernel argument: the memory of several sums of equal size, each shared by the same number of blocks.
struct SplitSum {
  float* parts;       // [sums][blocks][size of a part], or null if one block computes the whole sum
  unsigned* tickets;  // [sums], 0 between launches
};

// The number of blocks that should share each of `blocks` sums over `length` elements. It is large enough to give every
// multiprocessor `per_processor` blocks, but not larger than the traffic allows: for each row (or column), a block
// reads 2 length / splits bytes of 16-bit values, and the last block reads 4 rank splits bytes of parts. The total is
// least for splits = sqrt(length / (2 rank)).
inline int64_t splits_for(const OnDevice& on, int64_t per_processor, int64_t blocks, int64_t length, int64_t rank) {
  const int64_t wanted = ceil_div(per_processor * on.info().multiprocessors, std::max<int64_t>(1, blocks));
  const int64_t pays = static_cast<int64_t>(std::sqrt(length / (2.0 * rank)));
  return std::max<int64_t>(1, std::min(wanted, pays));
}

// The memory of the split sums of one launch; it lives until the launch has been queued.
class Workspace {
 public:
  struct Need {
    SplitSum* sum;  // set by the constructor if `blocks` is more than 1
    int64_t sums, blocks;
    int64_t size;  // the size of a part, in floats
  };

  // Allocates on the device of `like`, which is the device of `on`.
  Workspace(const OnDevice& on, const Tensor& like, std::initializer_list<Need> needs);

 private:
  std::vector<Tensor> memory_;
};

}  // namespace pypeft
