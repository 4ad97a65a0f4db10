// Stackful fibers on boost::context. A switch costs a few nanoseconds, which is what makes a fiber per GPU thread
// affordable.
#pragma once

#include <cstddef>

#include <boost/context/detail/fcontext.hpp>

#include "abi.h"

namespace mpsk::device {

class Fiber {
 public:
  using Transfer = boost::context::detail::transfer_t;

  // The calling OS thread itself, as a fiber to come back to.
  Fiber() = default;
  // A fiber that will run `body` on the given stack when it is first switched to. body must call arrived() first and
  // must never return.
  Fiber(std::byte* stack_top, size_t stack_bytes, void (*body)(Transfer))
      : context_(boost::context::detail::make_fcontext(stack_top, stack_bytes, body)) {}

  // Suspends the running fiber, which must be *this, and runs `to` until something switches back.
  void switch_to(Fiber& to) { arrived(boost::context::detail::jump_fcontext(to.context_, this)); }

  // Notes where the fiber that was left can be continued.
  static void arrived(Transfer from) { static_cast<Fiber*>(from.data)->context_ = from.fctx; }

 private:
  boost::context::detail::fcontext_t context_ = nullptr;
};

// Memory for stacks as abi.h wants them, every one above an inaccessible page, so that an overflow faults instead of
// silently writing into a neighbour. Pages are committed when they are first touched.
class StackArena {
 public:
  explicit StackArena(size_t count);
  ~StackArena();
  StackArena(const StackArena&) = delete;
  StackArena& operator=(const StackArena&) = delete;
  mpsk_slot& slot(size_t i) const;            // of the thread that runs on stack i
  std::byte* top(size_t i) const;             // where stack i begins, growing down
  size_t bytes() const;                       // from there to the inaccessible page, at least
  bool overflows(const void* address) const;  // whether that is in an inaccessible page

 private:
  std::byte* memory_ = nullptr;
  std::byte* base_ = nullptr;
  size_t count_, page_;
};

// How long that many switches take, there and back between two fibers, in seconds.
double time_switches(size_t count);

}  // namespace mpsk::device
