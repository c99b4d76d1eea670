// Adapters that stay with the library between calls. To hand over two tensors for each of 64 adapters takes PyTorch
// longer than the products of a small layer take.
#pragma once
#include <memory>
#include <vector>

#include "common.h"

namespace pypeft {

// The tensors are the caller's own. `then` is of A, then of B, when the table was made.
struct AdapterTable {
  struct Facts {
    ScalarType dtype;
    const void* data;
  };
  std::vector<Tensor> A, B;
  std::vector<double> scalings, ps;
  std::vector<Facts> then;
};

// The table of this number, which the op make_adapter_table_cpu has given it: it is kept until it is released. Throws
// std::runtime_error if there is none.
std::shared_ptr<const AdapterTable> kept_table(int64_t number);
void release_table(int64_t number);

// Whether the table is there, and its tensors are on the CPU with the dtypes and the addresses that they had.
bool table_holds(int64_t number);

}  // namespace pypeft
