#include "cpu/segments/adapter_table.h"

#include <mutex>
#include <unordered_map>

#include "fits.h"

namespace pypeft {
namespace {
struct Tables {
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<const AdapterTable>> kept;
  int64_t last_number = 0;
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

int64_t make_adapter_table(const std::vector<Tensor>& lora_A, const std::vector<Tensor>& lora_B,
                           const std::vector<double>& scalings, const std::vector<double>& ps) {
  AdapterTable table{lora_A, lora_B, scalings, ps, {}};
  for (const auto* tensors : {&lora_A, &lora_B}) {
    for (const Tensor& t : *tensors) table.then.push_back({t.scalar_type(), t.const_data_ptr()});
  }
  auto kept = std::make_shared<const AdapterTable>(std::move(table));
  const std::lock_guard<std::mutex> lock(tables().mutex);
  tables().kept.emplace(++tables().last_number, std::move(kept));
  return tables().last_number;
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
  bool holds = true;
  // In loops of few instructions the CPU waits for many tensors at once: most of them lie in no cache.
  const auto each = [&](auto is_as_then) {
    const AdapterTable::Facts* then = table->then.data();
    for (const auto* tensors : {&table->A, &table->B}) {
      for (const Tensor& t : *tensors) holds &= is_as_then(t, *then++);
    }
  };
  using Facts = AdapterTable::Facts;
  each([](const Tensor& t, const Facts&) { return t.is_cpu(); });
  each([](const Tensor& t, const Facts& then) { return t.const_data_ptr() == then.data; });
  each([](const Tensor& t, const Facts& then) { return t.scalar_type() == then.dtype; });
  return holds;
}

}  // namespace pypeft

STABLE_TORCH_LIBRARY_IMPL(pypeft_fast, CPU, m) {
  m.impl("make_adapter_table_cpu", TORCH_BOX(&pypeft::make_adapter_table));
}
