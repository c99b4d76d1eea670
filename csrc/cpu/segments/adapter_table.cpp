#include "cpu/segments/adapter_table.h"

#include <mutex>
#include <unordered_map>

#include "fits.h"

namespace pypeft {
namespace {
struct Tables {
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<const AdapterTable>> kept;
  int64_t last = 0;
};

// Never destroyed: at the end of the process PyTorch may be gone before the tensors.
Tables& tables() {
  static Tables* its = new Tables;
  return *its;
}

std::shared_ptr<const AdapterTable> found(int64_t number) {
  const std::lock_guard<std::mutex> lock(tables().mutex);
  const auto at = tables().kept.find(number);
  return at == tables().kept.end() ? nullptr : at->second;
}

int64_t adapter_table(const std::vector<Tensor>& lora_A, const std::vector<Tensor>& lora_B,
                      const std::vector<double>& scalings, const std::vector<double>& ps) {
  AdapterTable table{lora_A, lora_B, scalings, ps, {}};
  for (const Tensor& t : lora_A) table.dtypes.push_back(t.scalar_type());
  for (const Tensor& t : lora_B) table.dtypes.push_back(t.scalar_type());
  auto kept = std::make_shared<const AdapterTable>(std::move(table));
  const std::lock_guard<std::mutex> lock(tables().mutex);
  tables().kept.emplace(++tables().last, std::move(kept));
  return tables().last;
}
}  // namespace

std::shared_ptr<const AdapterTable> kept_table(int64_t number) {
  auto table = found(number);
  fits(table != nullptr);
  return table;
}

void release_table(int64_t number) {
  const auto table = found(number);  // destroyed outside of the lock: the end of a tensor may run Python code
  const std::lock_guard<std::mutex> lock(tables().mutex);
  tables().kept.erase(number);
}

bool table_holds(int64_t number) {
  const auto table = found(number);
  if (table == nullptr) return false;
  const size_t n = table->A.size();
  for (size_t i = 0; i < table->dtypes.size(); ++i) {
    const Tensor& t = i < n ? table->A[i] : table->B[i - n];
    if (!t.is_cpu() || t.scalar_type() != table->dtypes[i]) return false;
  }
  return true;
}

}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) { m.impl("adapter_table_cpu", TORCH_BOX(&pypeft::adapter_table)); }
