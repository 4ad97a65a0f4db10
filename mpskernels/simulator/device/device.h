// The software Metal device: opens metallibs, specialises functions, executes grids. Knows nothing of Objective-C or
// torch.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "abi.h"

namespace mpsk::device {

// Everything that goes wrong in the device: an unusable metallib, a fault in a kernel.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Size {
  size_t x = 1, y = 1, z = 1;
  size_t count() const { return x * y * z; }
};

class Library;

// One kernel of a library, before specialisation.
class Function {
 public:
  Function(std::shared_ptr<const Library> library, const mpsk_kernel& kernel);
  const std::string& name() const { return name_; }
  std::span<const mpsk_argument> arguments() const { return {kernel_.arguments, kernel_.argument_count}; }
  std::span<const mpsk_constant* const> constants() const { return {kernel_.constants, kernel_.constant_count}; }
  size_t static_threadgroup_bytes() const { return static_threadgroup_bytes_; }
  size_t max_total_threads() const;  // of a threadgroup
  const char* file() const { return kernel_.file; }
  unsigned line() const { return kernel_.line; }
  const Library& library() const { return *library_; }

 private:
  friend class Pipeline;
  friend class Execution;
  std::shared_ptr<const Library> library_;
  const mpsk_kernel& kernel_;
  std::string name_;
  struct Declaration {
    size_t offset, size;
    const char* name;
  };
  size_t static_threadgroup_bytes_ = 0;
  std::vector<Declaration> declarations_;  // of threadgroup memory, by their numbers
};

// An opened metallib. Closed when the last Function, Pipeline and pending Dispatch that uses it is gone.
class Library : public std::enable_shared_from_this<Library> {
 public:
  // Throws Error, naming the file and what is wrong with it: missing, truncated, of another version, Apple's own
  // format, for another processor.
  static std::shared_ptr<const Library> open(const std::string& path);
  ~Library();
  const std::string& path() const { return path_; }
  const mpsk_metallib_header& header() const { return *header_; }
  uint32_t checksum() const { return checksum_; }                           // of its code
  std::vector<std::string> function_names() const;                          // sorted
  std::shared_ptr<const Function> function(const std::string& name) const;  // null where there is none
  std::span<const mpsk_constant> constants() const { return {header_->constants_begin, header_->constants_end}; }

 private:
  Library() = default;
  std::string path_;
  void* handle_ = nullptr;
  const mpsk_metallib_header* header_ = nullptr;
  uint32_t checksum_ = 0;
};

// Values of function constants, by index: exactly the bytes of the constant's type.
using ConstantValues = std::map<unsigned, std::vector<std::byte>>;

// A function with its constants fixed. Immutable; may be used from any thread.
class Pipeline {
 public:
  // Throws Error where a value has the wrong size or one that the function needs is missing.
  Pipeline(std::shared_ptr<const Function> function, ConstantValues constants);
  const Function& function() const { return *function_; }
  // Whether arguments()[i] is switched on by its [[function_constant]].
  bool argument_enabled(size_t i) const { return argument_enabled_[i]; }
  // The same kernel, compiled to be watched (watch.h).
  std::shared_ptr<const Pipeline> instrumented() const;

 private:
  friend class Execution;
  void activate() const;
  std::shared_ptr<const Function> function_;
  ConstantValues constants_;
  std::vector<bool> argument_enabled_;
  mutable std::mutex twin_mutex_;
  mutable std::shared_ptr<const Pipeline> twin_;
};

// Memory bound to a buffer slot: from the binding's offset to the end of the buffer. data == nullptr: unbound.
struct Binding {
  std::byte* data = nullptr;
  size_t length = 0;
  size_t offset = 0;  // of data in the buffer
};

struct Dispatch {
  std::shared_ptr<const Pipeline> pipeline;
  std::string label;  // of the pipeline
  std::array<Binding, MPSK_MAX_BUFFERS> buffers{};
  std::array<size_t, MPSK_MAX_BUFFERS> threadgroup_bytes{};  // [[threadgroup(n)]] arguments
  Size threads;  // of the whole grid; edge threadgroups are smaller where it is no multiple
  Size threads_per_threadgroup;
};

// Executes one dispatch on all workers and returns when it is done. Throws Error for a fault in the kernel (divergent
// barrier, read of an inactive lane, ...), naming kernel and position. Dispatches are executed one at a time, whichever
// threads they come from. The argument checks are the caller's (the Metal framework's).
void run(const Dispatch& dispatch);

// Worker threads, MPSK_THREADS or the number of processors; at most 16.
unsigned worker_count();

}  // namespace mpsk::device
