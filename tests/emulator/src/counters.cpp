// Counts memory requests as the hardware makes them. A request is the accesses of all lanes of a warp at one place in
// the code, with the same number of earlier visits to this place.
//
// Global memory moves sectors of 32 bytes. A request is coalesced if it touches only as many sectors as its bytes need.
// Shared memory has 32 banks of 4 bytes. The lanes are served in groups of 32, 16 or 8, for accesses of up to 4, 8 or
// 16 bytes. A group takes one more cycle for every further word in the same bank.
#include <map>
#include <set>
#include <unordered_map>

#include "control.h"
#include "state.h"

namespace emulator {

Counters counters;

namespace {
struct Request {
  int space, kind, bytes;
  std::vector<std::pair<int, uint64_t>> lanes;  // lane, address
};
using Key = std::tuple<const void*, int, int, int>;    // site, space, kind, how many times before
std::unordered_map<int, std::map<Key, Request>> open;  // by warp
std::unordered_map<int, std::map<std::tuple<const void*, int, int, int>, int>> times;  // of site, space, kind, lane
std::set<uint64_t> sectors_loaded, sectors_stored;                                     // of this launch

void count_global(const Request& r) {
  std::set<uint64_t> sectors, bytes_at;
  for (const auto& [lane, address] : r.lanes) {
    for (uint64_t s = address / 32; s <= (address + r.bytes - 1) / 32; ++s) sectors.insert(s);
    bytes_at.insert(address);
  }
  const uint64_t distinct = bytes_at.size() * r.bytes;
  auto& seen = r.kind == LOAD ? sectors_loaded : sectors_stored;
  auto& c = r.kind == LOAD ? counters.load : counters.store;
  c.requests += 1;
  c.bytes += distinct;
  c.sectors += sectors.size();
  c.needed += (distinct + 31) / 32;
  for (uint64_t s : sectors) c.first += seen.insert(s).second && (r.kind == STORE || !sectors_stored.count(s));
}

void count_shared(const Request& r) {
  const int group = r.bytes <= 4 ? 32 : r.bytes <= 8 ? 16 : 8;
  for (int from = 0; from < 32; from += group) {
    std::map<uint64_t, std::set<uint64_t>> banks;
    for (const auto& [lane, address] : r.lanes) {
      if (lane < from || lane >= from + group) continue;
      for (uint64_t w = address / 4; w <= (address + r.bytes - 1) / 4; ++w) banks[w % 32].insert(w);
    }
    size_t most = 0;
    for (const auto& [bank, words] : banks) most = std::max(most, words.size());
    if (most == 0) continue;
    auto& c = r.kind == MATRIX ? counters.ldmatrix
              : r.kind == COPY ? counters.copies
              : r.kind == LOAD ? counters.shared_load
                               : counters.shared_store;
    c.requests += 1;
    c.conflicts += most - 1;
  }
}
}  // namespace

void count(Space space, Kind kind, const void* address, int bytes, const void* site) {
  const Thread& t = *block.current;
  const int before = times[t.warp][{site, space, kind, t.lane}]++;
  Request& r = open[t.warp][{site, space, kind, before}];
  r.space = space, r.kind = kind, r.bytes = std::max(r.bytes, bytes);
  r.lanes.push_back({t.lane, reinterpret_cast<uint64_t>(address)});
}

void count_accesses(int warp) {
  if (!settings.counting) return;
  for (const auto& [key, request] : open[warp]) request.space == GLOBAL ? count_global(request) : count_shared(request);
  open[warp].clear();
  times[warp].clear();
}

void start_counting_launch() {
  if (!settings.counting) return;
  ++counters.launches;
  open.clear(), times.clear();
  sectors_loaded.clear(), sectors_stored.clear();
}

}  // namespace emulator
