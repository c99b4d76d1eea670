// A sum that several blocks of one launch share, as in a split-K product. Every block stores its part and takes a
// ticket, and the block that takes the last one adds all the parts, first to last, before the launch ends: a launch of
// its own for the sum would cost more than the sum. Which block that is varies, the order of the parts does not, and
// no value is added atomically. split_sum.cuh has the device's half.
#pragma once
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <vector>

#include "cuda/device/launch.h"

namespace pypeft {

// Of `sums` sums of equal size, each shared by the same number of blocks; a kernel's argument.
struct SplitSum {
  float* parts;       // [sums][blocks][size of a part], or null where one block makes the whole sum
  unsigned* tickets;  // [sums], 0 between launches
};

// How many blocks should share a sum over `length` elements, which `blocks` blocks have each one of: as many as give
// every multiprocessor `per_processor` blocks, but no more than pays. Of 16-bit values a block reads 2 length / splits
// bytes for each row (or column) of its own, and the last one 4 rank splits bytes of parts: together least at
// sqrt(length / 2 rank).
inline int64_t splits_for(const OnDevice& on, int64_t per_processor, int64_t blocks, int64_t length, int64_t rank) {
  const int64_t wanted = ceil_div(per_processor * on.info().multiprocessors, std::max<int64_t>(1, blocks));
  const int64_t pays = static_cast<int64_t>(std::sqrt(length / (2.0 * rank)));
  return std::max<int64_t>(1, std::min(wanted, pays));
}

// The memory that a launch's split sums need, from here to the launch.
class Workspace {
 public:
  struct Need {
    SplitSum* sum;  // is filled in, if `blocks` is more than 1
    int64_t sums, blocks;
    int64_t size;  // of a part, in floats
  };

  // On the device of `like`, whose stream `on` holds.
  Workspace(const OnDevice& on, const Tensor& like, std::initializer_list<Need> needs);

 private:
  std::vector<Tensor> memory_;
};

}  // namespace pypeft
