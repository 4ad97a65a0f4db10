// What torch's device (plain C++) needs of the Objective-C side, and what the bindings need of both.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace mpsk {

// An MTLBuffer, as the pointer that a tensor's storage holds. A kernel that leaves elements unwritten must not find an
// earlier result there: all bits are ones, a NaN in each float.
void* new_buffer(size_t bytes);
void release_buffer(void* buffer);
void* buffer_contents(void* buffer);

size_t allocated_bytes();
size_t recommended_working_set();
size_t max_buffer_length();

void* command_buffer();
void* command_queue();

// Hands over what is encoded, without waiting.
void commit();

// Runs all that is encoded and waits for it. Throws what a kernel's fault left.
void synchronize();

// True in the child of a fork that happened after the device was used: nothing can run there.
bool in_bad_fork();

// A place in the stream's work.
class Event {
 public:
  Event();
  ~Event();
  void record();
  bool complete() const;   // also where nothing is recorded
  void wait() const;       // until the work before it is done
  double seconds() const;  // when that was
  bool recorded() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mpsk
