#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <new>

namespace mpsk::device {

StackArena::StackArena(size_t count) : count_(count), page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
  const size_t size = (count_ + 1) * MPSK_STACK_BYTES;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<std::byte*>(memory);
  const auto address = reinterpret_cast<uintptr_t>(memory_);
  base_ = memory_ + (MPSK_STACK_BYTES - address % MPSK_STACK_BYTES) % MPSK_STACK_BYTES;
  for (size_t i = 0; i < count_; ++i) {
    if (mprotect(base_ + i * MPSK_STACK_BYTES, page_, PROT_NONE) != 0) {
      munmap(memory_, size);
      throw std::bad_alloc();
    }
  }
}

StackArena::~StackArena() { munmap(memory_, (count_ + 1) * MPSK_STACK_BYTES); }

mpsk_slot& StackArena::slot(size_t i) const {
  return *reinterpret_cast<mpsk_slot*>(MPSK_SLOT(reinterpret_cast<uintptr_t>(base_) + i * MPSK_STACK_BYTES));
}

std::byte* StackArena::top(size_t i) const { return reinterpret_cast<std::byte*>(&slot(i)); }

size_t StackArena::bytes() const { return MPSK_STACK_BYTES - page_ - MPSK_STACK_COLOURS * MPSK_STACK_COLOUR_BYTES; }

bool StackArena::overflows(const void* address) const {
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(address) - base_);  // wraps below base_
  return offset < count_ * MPSK_STACK_BYTES && offset % MPSK_STACK_BYTES < page_;
}

double time_switches(size_t count) {
  struct Pair {
    Fiber home, away;
  };
  thread_local Pair* pair;
  const StackArena stack(1);
  Pair fibers{{}, Fiber(stack.top(0), stack.bytes(), [](Fiber::Transfer from) {
                Fiber::arrived(from);
                for (;;) pair->away.switch_to(pair->home);
              })};
  pair = &fibers;
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < count; i += 2) fibers.home.switch_to(fibers.away);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace mpsk::device
