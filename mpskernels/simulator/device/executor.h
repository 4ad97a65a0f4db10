// Executes the threads of one threadgroup on one OS thread: a fiber for each GPU thread that has to wait.
//
// Lanes run one after the other until each has ended or waits. A simd operation is performed when every lane of the
// simdgroup waits or has ended: of the lanes that wait at simd operations, those at the lowest code address go first,
// and together. Code is laid out so that a branch lies before the place where its paths meet again, and a loop body
// before the code after the loop; so the lanes that are behind catch up before the others go on, as they do on the
// hardware.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"
#include "watch.h"

namespace mpsk::device {

// A lane is paused so that the others of its simdgroup catch up.
enum class LaneState : uint8_t { unstarted, ready, paused, simd, simdgroup_barrier, threadgroup_barrier, ended };

// Performs a simd operation for the lanes whose bits are set in `active`, given each lane's operand.
using Combine = void (*)(void* const* payloads, unsigned active);

struct Lane {
  mpsk_thread thread;
  LaneState state = LaneState::unstarted;
  Fiber* fiber = nullptr;
  const mpsk_slot* slot = nullptr;
  const void* site = nullptr;  // where it waits: a return address into the kernel
  void* payload = nullptr;     // its operand of the simd operation that it waits at
  Combine combine = nullptr;
  unsigned flags = 0;         // mem_flags of the barrier that it waits at
  bool is_operation = false;  // of Metal's, for the simdgroup
};

// Makes a kernel's access to memory that does not exist a fault of the kernel. To be called on the thread that is to
// run a worker; again is cheap, and needed where others may have taken the signals since.
void watch_memory();

class Worker {
 public:
  Worker();
  ~Worker();

  // Runs every thread of the threadgroup. Throws Fault for a fault in the kernel.
  void run(const mpsk_kernel& kernel, const mpsk_group& group, void* const* slots);

  // Who watches the threadgroups to come; null for nobody.
  void watched_by(Observer* observer) { Observer::current = observer_ = observer; }

  unsigned char* threadgroup_memory() { return threadgroup_memory_.get(); }

  static Worker* current();

  // Called from kernel code, on a lane's fiber.
  void simd(void* payload, Combine combine, bool is_operation, const void* site);
  void barrier(LaneState kind, unsigned flags, const void* site);
  void pause();  // until the other lanes of the simdgroup wait too
  [[noreturn]] void fault(const char* kind, const std::string& message, const Lane* at = nullptr);
  [[noreturn]] void divided(const char* file, unsigned line);
  [[noreturn]] void refuse();  // an access that is among the findings, and cannot be made up for
  [[noreturn]] void memory_fault(const void* address);

 private:
  struct Simdgroup {
    unsigned first, count;  // lanes
  };

  static void lane_main(Fiber::Transfer from);
  void prepare(const mpsk_group& group);
  void wait();   // suspends the current lane until it is ready again
  Lane* next();  // the lane to run now; null when the threadgroup is done
  bool release_simd(const Simdgroup& simdgroup);
  bool release_threadgroup();
  bool resume(const Simdgroup& simdgroup);
  Fault fault_at(const char* kind, const std::string& message, const Lane& lane) const;
  [[noreturn]] void leave();
  void enter(Lane& lane);
  std::string describe(const Lane& lane) const;

  StackArena stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Fiber*> idle_fibers_;
  size_t fibers_made_ = 0;
  std::vector<Lane> lanes_;
  std::vector<Simdgroup> simdgroups_;
  std::vector<unsigned> order_;  // in which lanes run
  size_t simdgroup_ = 0;         // the one whose lanes run now
  size_t cursor_ = 0;            // the next of its lanes to look at
  Lane* current_ = nullptr;
  Fiber main_;
  Fiber* running_ = nullptr;
  std::optional<Fault> fault_;
  Observer* observer_ = nullptr;
  const mpsk_kernel* kernel_ = nullptr;
  void* const* slots_ = nullptr;
  std::unique_ptr<unsigned char[], void (*)(void*)> threadgroup_memory_;
};

}  // namespace mpsk::device
