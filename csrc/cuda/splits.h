// How many blocks share one sum.
#pragma once
#include <algorithm>
#include <cmath>

#include "cuda/launch.h"

namespace pypeft {

// Of a sum over `length` elements that `blocks` blocks have each one of: as many as give every multiprocessor
// `per_processor` blocks, but no more than pays. Of 16-bit values a block reads 2 length / splits bytes for each row
// (or column) of its own, and the last one 4 rank splits bytes of partial sums: together least at sqrt(length / 2
// rank).
inline int64_t splits_for(const OnDevice& on, int64_t per_processor, int64_t blocks, int64_t length, int64_t rank) {
  const int64_t wanted = ceil_div(per_processor * on.info().multiprocessors, std::max<int64_t>(1, blocks));
  const int64_t pays = static_cast<int64_t>(std::sqrt(length / (2.0 * rank)));
  return std::max<int64_t>(1, std::min(wanted, pays));
}

}  // namespace pypeft
