// Finds accesses that nothing orders, and reads of memory that nobody wrote.
//
// Memory is looked at in cells, of 16 bytes at first; an object's cells are split when a smaller access comes, so that
// each access is whole cells. Each cell keeps who last wrote it and who read it since. Time is counted in epochs: one
// begins with every threadgroup and with every threadgroup_barrier that orders that kind of memory. Two accesses of one
// epoch by two threads are ordered only by a simdgroup_barrier, counted for each simdgroup, between two lanes of it.
// Threadgroups run one after the other under check, so a stamp older than the threadgroup is another one's, and no
// barrier orders those.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "watch.h"

namespace mpsk::device {

// One access to a cell.
struct Stamp {
  uint32_t epoch = 0;   // 0: none
  uint16_t thread = 0;  // in its threadgroup; whole_simdgroup + a simdgroup: all of its lanes
  uint16_t simd_epoch = 0;
  const mpsk_site* site = nullptr;
};
inline constexpr uint16_t whole_simdgroup = 0x8000;

inline unsigned simdgroup_of(uint16_t thread) {
  return thread & whole_simdgroup ? thread & ~whole_simdgroup : thread / MPSK_SIMD_WIDTH;
}

// Of the accesses of one kind, those that one to come could be in conflict with.
struct Stamps {
  Stamp latest;
  Stamp same;     // by another thread of that one's simdgroup, with nothing between them
  Stamp other;    // by another simdgroup
  Stamp foreign;  // by another threadgroup
};

// The cells of a buffer, or of a worker's threadgroup memory.
struct Shadow {
  Shadow(uintptr_t begin, size_t bytes) : begin(begin), bytes(bytes) {}
  uintptr_t begin;
  size_t bytes;
  unsigned shift = 4;
  // Zero pages until they are touched.
  std::unique_ptr<Stamp[], void (*)(void*)> writes{nullptr, nullptr};
  std::unique_ptr<Stamps[], void (*)(void*)> reads{nullptr, nullptr}, atomics{nullptr, nullptr};
  size_t cells() const { return ((begin + bytes - 1) >> shift) - (begin >> shift) + 1; }
  size_t cell(uintptr_t address) const { return (address >> shift) - (begin >> shift); }
  void split(unsigned smaller);
  // The cells of one kind, from now on.
  Stamp* written();
  Stamps* read();
  Stamps* atomic();
};

// Memory without a value: a bit for each byte that has one.
struct Initialised {
  explicit Initialised(size_t bytes) : bits((bytes + 63) / 64), bytes(bytes) {}
  std::vector<uint64_t> bits;
  size_t bytes;
  size_t known = 0;                // all before it have a value
  bool bound_for_writing = false;  // by a kernel
  std::string kernel, buffer;      // the last of these, and what it calls the memory
  bool any(size_t begin, size_t count) const;
  bool all(size_t begin, size_t count) const;
  bool complete(size_t end);  // whether all before `end` have; what is found is found once
  void set(size_t begin, size_t count);
};

struct Epochs {
  uint32_t now = 1, group = 1, dispatch = 1;
};

// Of one worker during one dispatch.
class Checker {
 public:
  explicit Checker(Observer& observer) : observer_(observer) {}
  void begin_dispatch();
  void begin_group(size_t index);
  void threadgroup_barrier(unsigned flags);
  void simdgroup_barrier(unsigned simdgroup, unsigned flags);
  template <AccessKind kind>
  void access(const Object& object, uintptr_t address, size_t bytes, uint16_t thread, const mpsk_site& site);

 private:
  enum class Order { before, same_thread, simdgroup, threadgroup, grid };
  static Order order(const Stamp& stamp, const Epochs& epochs, uint16_t thread, uint16_t simd_epoch);
  static const Stamp* conflict(const Stamps& stamps, const Epochs& epochs, uint16_t thread, uint16_t simd_epoch,
                               Order& order);
  static void add(Stamps& stamps, const Stamp& stamp, const Epochs& epochs);
  void report(const Object& object, uintptr_t address, AccessKind kind, size_t bytes, uint16_t thread,
              const mpsk_site& site, AccessKind earlier, const Stamp& stamp, Order order);
  Access describe(AccessKind kind, const Stamp& stamp, bool foreign) const;
  bool has_value(const Object& object, uintptr_t address, size_t bytes, bool is_struct, const Epochs& epochs);

  Observer& observer_;
  // Of threadgroup memory and of device memory.
  static constexpr unsigned threadgroup = 0, device = 1;
  std::vector<uint16_t> simd_epochs_[2];
  std::unique_ptr<Shadow> threadgroup_shadow_;
  std::vector<std::pair<uint32_t, size_t>> groups_;  // epoch of device memory at which a threadgroup began, its index
  friend class Observer;
};

// What an access may be meant for.
struct Object {
  uintptr_t begin = 0;
  size_t bytes = 0;
  unsigned kind = 0;  // mpsk_argument_kind
  unsigned index = 0;
  std::string name;
  bool writable = true;
  bool checked = true;                          // there is something to keep of its accesses
  Shadow* shadow = nullptr;                     // null: nothing of this dispatch writes there
  std::shared_ptr<Initialised> initialised;     // of the allocation, which may be freed meanwhile
  uintptr_t storage = 0;                        // where the buffer begins
  std::atomic<uint64_t>* bytes_read = nullptr;  // a bit for each byte of the buffer
  std::atomic<uint64_t>* bytes_written = nullptr;
  std::string text() const;
};

}  // namespace mpsk::device
