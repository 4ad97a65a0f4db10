#include "checker.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace mpsk::device {

namespace {

// Epochs go on from dispatch to dispatch, so that what an earlier one left in a shadow is known to be old.
Epochs epochs[2];
constexpr unsigned flag_of[2] = {2, 1};  // mem_flags::mem_threadgroup, mem_flags::mem_device

template <class T>
std::unique_ptr<T[], void (*)(void*)> zeroed(size_t count) {
  auto* memory = static_cast<T*>(std::calloc(count, sizeof(T)));
  if (!memory) throw Error("no memory to watch a buffer with");
  return {memory, &std::free};
}

template <class T>
void split(std::unique_ptr<T[], void (*)(void*)>& cells, size_t count, uintptr_t first, uintptr_t new_first,
           size_t new_count, unsigned by) {
  if (!cells) return;
  auto finer = zeroed<T>(new_count);
  const auto is_used = [](const T& cell) {
    static constexpr T none{};
    return std::memcmp(&cell, &none, sizeof(T)) != 0;
  };
  for (size_t old = 0; old < count; ++old) {
    if (!is_used(cells[old])) continue;  // its pages stay untouched
    const uintptr_t begin = std::max((first + old) << by, new_first);
    const uintptr_t end = std::min((first + old + 1) << by, new_first + new_count);
    for (uintptr_t at = begin; at < end; ++at) std::memcpy(&finer[at - new_first], &cells[old], sizeof(T));
  }
  cells = std::move(finer);
}

}  // namespace

void Shadow::split(unsigned smaller) {
  const size_t count = cells();
  const uintptr_t first = begin >> shift;
  const unsigned by = shift - smaller;
  shift = smaller;
  device::split(writes, count, first, begin >> shift, cells(), by);
  device::split(reads, count, first, begin >> shift, cells(), by);
  device::split(atomics, count, first, begin >> shift, cells(), by);
}

Stamp* Shadow::written() {
  if (!writes) writes = zeroed<Stamp>(cells());
  return writes.get();
}
Stamps* Shadow::read() {
  if (!reads) reads = zeroed<Stamps>(cells());
  return reads.get();
}
Stamps* Shadow::atomic() {
  if (!atomics) atomics = zeroed<Stamps>(cells());
  return atomics.get();
}

bool Initialised::any(size_t begin, size_t count) const {
  for (size_t at = begin; at < begin + count; ++at) {
    if (bits[at / 64] >> at % 64 & 1) return true;
  }
  return false;
}

bool Initialised::all(size_t begin, size_t count) const {
  for (size_t at = begin; at < begin + count;) {
    const size_t bit = at % 64, here = std::min<size_t>(64 - bit, begin + count - at);
    const uint64_t mask = (here == 64 ? ~0ull : (1ull << here) - 1) << bit;
    if ((bits[at / 64] & mask) != mask) return false;
    at += here;
  }
  return true;
}

void Initialised::set(size_t begin, size_t count) {
  for (size_t at = begin; at < begin + count;) {
    const size_t bit = at % 64, here = std::min<size_t>(64 - bit, begin + count - at);
    bits[at / 64] |= (here == 64 ? ~0ull : (1ull << here) - 1) << bit;
    at += here;
  }
}

bool Initialised::complete(size_t end) {
  while (known < end && bits[known / 64] == ~0ull) known += 64;
  return known >= end || all(known, end - known);
}

void Checker::begin_dispatch() {
  for (Epochs& e : epochs) e.dispatch = e.group = ++e.now;
}

void Checker::begin_group(size_t index) {
  for (unsigned memory : {threadgroup, device}) {
    Epochs& e = epochs[memory];
    e.group = ++e.now;
    simd_epochs_[memory].assign(MPSK_MAX_THREADS_PER_THREADGROUP / MPSK_SIMD_WIDTH, 0);
  }
  epochs[threadgroup].dispatch = epochs[threadgroup].now;  // what another threadgroup left there is nobody's
  groups_.emplace_back(epochs[device].now, index);
}

void Checker::threadgroup_barrier(unsigned flags) {
  for (unsigned memory : {threadgroup, device}) {
    if (!(flags & flag_of[memory])) continue;
    ++epochs[memory].now;
    std::ranges::fill(simd_epochs_[memory], 0);
  }
}

void Checker::simdgroup_barrier(unsigned simdgroup, unsigned flags) {
  for (unsigned memory : {threadgroup, device}) {
    uint16_t& epoch = simd_epochs_[memory][simdgroup];
    if (flags & flag_of[memory] && epoch < UINT16_MAX) ++epoch;
  }
}

inline Checker::Order Checker::order(const Stamp& stamp, const Epochs& e, uint16_t thread, uint16_t simd_epoch) {
  if (stamp.epoch < e.dispatch) return Order::before;
  if (stamp.epoch < e.group) return Order::grid;
  if (stamp.epoch < e.now) return Order::before;
  if (stamp.thread == thread) return Order::same_thread;
  if (simdgroup_of(stamp.thread) != simdgroup_of(thread)) return Order::threadgroup;
  // A simdgroup that has met more often than is counted is not suspected.
  return stamp.simd_epoch < simd_epoch || simd_epoch == UINT16_MAX ? Order::before : Order::simdgroup;
}

inline const Stamp* Checker::conflict(const Stamps& stamps, const Epochs& e, uint16_t thread, uint16_t simd_epoch,
                                      Order& found) {
  if (stamps.latest.epoch < e.dispatch) return nullptr;  // the others are no younger
  for (const Stamp* stamp : {&stamps.latest, &stamps.same, &stamps.other, &stamps.foreign}) {
    found = order(*stamp, e, thread, simd_epoch);
    if (found >= Order::simdgroup) return stamp;
  }
  return nullptr;
}

inline void Checker::add(Stamps& stamps, const Stamp& stamp, const Epochs& e) {
  Stamp& latest = stamps.latest;
  if (latest.epoch != stamp.epoch) {
    if (latest.epoch >= e.dispatch && latest.epoch < e.group) stamps.foreign = latest;
    stamps.same = stamps.other = {};
  } else if (simdgroup_of(latest.thread) != simdgroup_of(stamp.thread)) {
    stamps.other = latest;
    stamps.same = {};
  } else if (latest.simd_epoch != stamp.simd_epoch) {
    stamps.same = {};
  } else if (latest.thread != stamp.thread) {
    stamps.same = latest;
  }
  latest = stamp;
}

// Threadgroup memory has a value where this threadgroup wrote one; a buffer, where anybody did. A struct may have holes
// that have none.
inline bool Checker::has_value(const Object& object, uintptr_t address, size_t bytes, bool is_struct, const Epochs& e) {
  if (object.kind != mpsk_argument_threadgroup) {
    if (!object.initialised) return true;
    const size_t begin = address - object.storage;
    return is_struct ? object.initialised->any(begin, bytes) : object.initialised->all(begin, bytes);
  }
  Shadow& shadow = *threadgroup_shadow_;
  const Stamp* const writes = shadow.written();
  const Stamps* const atomics = shadow.atomics.get();
  const size_t last = shadow.cell(address + bytes - 1);
  bool all = true, any = false;
  for (size_t cell = shadow.cell(address); cell <= last; ++cell) {
    const bool has = writes[cell].epoch >= e.group || (atomics && atomics[cell].latest.epoch >= e.group);
    all = all && has;
    any = any || has;
  }
  return is_struct ? any : all;
}

template <AccessKind kind>
void Checker::access(const Object& object, uintptr_t address, size_t bytes, uint16_t thread, const mpsk_site& site) {
  const unsigned memory = object.kind == mpsk_argument_threadgroup ? threadgroup : device;
  Shadow* const shadow = memory == threadgroup ? threadgroup_shadow_.get() : object.shadow;
  const Epochs e = epochs[memory];
  if (shadow) {
    const auto smaller = static_cast<unsigned>(__builtin_ctzll(address | bytes | 16));
    if (smaller < shadow->shift) shadow->split(smaller);
  }
  constexpr bool stores = kind == AccessKind::write || kind == AccessKind::atomic_store;
  if (!stores && !has_value(object, address, bytes, site.is_struct, e)) {
    observer_.finding(
        "uninitialised", "",
        std::string(kind == AccessKind::read ? "a read" : "an atomic operation") + " of memory that nobody has written",
        &object, observer_.describe(kind, site, *observer_.thread_));
    if (object.initialised) object.initialised->set(address - object.storage, bytes);  // once is enough
  }
  if (kind != AccessKind::read && object.initialised) object.initialised->set(address - object.storage, bytes);
  if (!shadow) return;
  const uint16_t simd_epoch = simd_epochs_[memory][simdgroup_of(thread)];
  const Stamp stamp = {e.now, thread, simd_epoch, &site};
  const size_t first = shadow->cell(address), last = shadow->cell(address + bytes - 1);
  Stamp* const writes = shadow->written();
  if constexpr (kind == AccessKind::read) shadow->read();
  if constexpr (is_atomic(kind)) shadow->atomic();
  Stamps *const reads = shadow->reads.get(), *const atomics = shadow->atomics.get();
  for (size_t cell = first; cell <= last; ++cell) {
    Stamp& written = writes[cell];
    Order found = order(written, e, thread, simd_epoch);
    if (found >= Order::simdgroup)
      report(object, address, kind, bytes, thread, site, AccessKind::write, written, found);
    if (kind != AccessKind::read && reads) {
      if (const Stamp* reader = conflict(reads[cell], e, thread, simd_epoch, found)) {
        report(object, address, kind, bytes, thread, site, AccessKind::read, *reader, found);
      }
    }
    if (!is_atomic(kind) && atomics) {
      if (const Stamp* atomic = conflict(atomics[cell], e, thread, simd_epoch, found)) {
        report(object, address, kind, bytes, thread, site, AccessKind::atomic, *atomic, found);
      }
    }
    if constexpr (kind == AccessKind::write) {
      written = stamp;
    } else {
      add((kind == AccessKind::read ? reads : atomics)[cell], stamp, e);
    }
  }
}

template void Checker::access<AccessKind::read>(const Object&, uintptr_t, size_t, uint16_t, const mpsk_site&);
template void Checker::access<AccessKind::write>(const Object&, uintptr_t, size_t, uint16_t, const mpsk_site&);
template void Checker::access<AccessKind::atomic>(const Object&, uintptr_t, size_t, uint16_t, const mpsk_site&);
template void Checker::access<AccessKind::atomic_store>(const Object&, uintptr_t, size_t, uint16_t, const mpsk_site&);

Access Checker::describe(AccessKind kind, const Stamp& stamp, bool foreign) const {
  mpsk_group group = *observer_.group_;
  if (foreign) {
    const auto at = std::ranges::upper_bound(groups_, stamp.epoch, {}, &std::pair<uint32_t, size_t>::first);
    const size_t index = std::prev(at)->second;
    const mpsk_size& count = group.grid->threadgroups;
    group.position = {static_cast<unsigned>(index % count.x), static_cast<unsigned>(index / count.x % count.y),
                      static_cast<unsigned>(index / count.x / count.y)};
  }
  const mpsk_size& size = group.grid->dispatch_threads_per_threadgroup;
  const unsigned first = stamp.thread & whole_simdgroup ? simdgroup_of(stamp.thread) * MPSK_SIMD_WIDTH : stamp.thread;
  mpsk_thread thread{};
  thread.group = &group;
  thread.position_in_threadgroup = {first % size.x, first / size.x % size.y, first / size.x / size.y};
  Access access = observer_.describe(kind, *stamp.site, thread);
  access.whole_simdgroup = (stamp.thread & whole_simdgroup) != 0;
  return access;
}

void Checker::report(const Object& object, uintptr_t address, AccessKind kind, size_t bytes, uint16_t thread,
                     const mpsk_site& site, AccessKind earlier, const Stamp& stamp, Order order) {
  const unsigned memory = object.kind == mpsk_argument_threadgroup ? threadgroup : device;
  const bool two_stores = kind == AccessKind::write && earlier == AccessKind::write && memory == device;
  const char* const scope = order == Order::simdgroup ? "simdgroup" : order == Order::grid ? "grid" : "threadgroup";
  std::string text;
  switch (order) {
    case Order::simdgroup:
      text = "two lanes of a simdgroup, with no simdgroup_barrier between them that orders this memory";
      break;
    case Order::threadgroup:
      text = "two threads of a threadgroup, with no threadgroup_barrier between them that orders this memory";
      break;
    default:
      text = "threads of two threadgroups, which nothing orders";
  }
  Access mine = observer_.describe(kind, site, *observer_.thread_);
  mine.whole_simdgroup = (thread & whole_simdgroup) != 0;
  observer_.finding(two_stores ? "double store" : "race", scope,
                    text + ": bytes " + std::to_string(address - object.begin) + " to " +
                        std::to_string(address - object.begin + bytes - 1),
                    &object, mine, describe(earlier, stamp, order == Order::grid));
}

}  // namespace mpsk::device
