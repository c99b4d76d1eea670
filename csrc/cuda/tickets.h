// Tickets for last_block.cuh, by which the blocks of a launch learn who of them is the last.
#pragma once
#include <optional>

#include "cuda/launch.h"

namespace pypeft {

struct Tickets {
  unsigned* first;
  std::optional<Tensor> memory;  // whose they are until the launch
};

// At least `count` tickets that are 0 when what is launched next on this stream starts, on the device of `like`.
Tickets take_tickets(const OnDevice& on, const Tensor& like, int64_t count);

}  // namespace pypeft
