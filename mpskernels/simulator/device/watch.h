// Watches instrumented kernels (compiler/instrument.py). What is found wrong becomes findings, what is done becomes
// counts.
//
// A kernel's pointers carry the number of the object that they were made for, a binding or a threadgroup array, so an
// access is judged by what it was meant for and not by where it landed.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "device.h"

namespace mpsk::device {

struct Access {
  std::string kind;  // "read", "write", "atomic"; "wait" of a call that waits for other threads; "shift", "division"
  std::string file, function;
  unsigned line = 0, column = 0;
  mpsk_size threadgroup{}, thread{};
  bool whole_simdgroup = false;  // of a simdgroup_matrix: thread is the first of its simdgroup
};

struct Finding {
  std::string kind, scope, kernel, text, buffer;
  std::optional<Access> access, other;
  size_t count = 1;
};

// Of one dispatch. Bytes are those asked for by all threads.
struct Counts {
  std::string kernel;
  mpsk_size threadgroups{}, threads_per_threadgroup{};
  uint64_t threads = 0, threadgroup_memory = 0;
  uint64_t instructions = 0, simd_instructions = 0;
  uint64_t f32_flops = 0, f16_flops = 0, special = 0, integer_operations = 0, matrix_operations = 0;
  uint64_t tensor_flops = 0;
  uint64_t device_read = 0, device_written = 0, device_read_unique = 0, device_written_unique = 0;
  uint64_t device_accesses = 0, device_lines = 0, device_lines_ideal = 0, device_lines_shared = 0;
  uint64_t constant_read = 0;
  uint64_t threadgroup_read = 0, threadgroup_written = 0;
  uint64_t threadgroup_accesses = 0, bank_cycles = 0, bank_cycles_ideal = 0;
  uint64_t atomics = 0, barriers = 0, simdgroup_barriers = 0, simd_operations = 0;
  std::vector<std::pair<uint64_t, uint64_t>> work;  // threadgroups in a row that have as much of it, and how much
  uint64_t issued() const { return simd_instructions + 16 * matrix_operations + tensor_flops / 256; }
};

struct Watch {
  bool check = false, profile = false;
  std::optional<uint64_t> seed;  // permutes the order of threadgroups, simdgroups and lanes
  std::optional<size_t> only;    // the one threadgroup that runs, of grids that have so many
  explicit operator bool() const { return check || profile; }
};

void set_watch(const Watch& watch);
Watch current_watch();
std::vector<Finding> take_findings();
std::vector<Counts> take_counts();

// How to make an instrumented metallib: a command that gets `--std= --math-mode= --instrument FILE` and prints a path.
void set_instrumenter(std::vector<std::string> command);
std::shared_ptr<const Library> instrumented(const mpsk_source& source);

// --- Memory that tensors are given without a value ---

void memory_allocated(const std::byte* begin, size_t bytes);  // under check: nothing in it has a value yet
void memory_freed(const std::byte* begin);
void memory_written(const std::byte* begin, size_t bytes);  // by the host

// Elements of memory that the host writes, or reads: that a kernel could write what it reads and did not is a finding.
struct Elements {
  const std::byte* storage;
  const std::byte* first;
  std::span<const int64_t> sizes, strides;  // strides in elements
  size_t element_size;
};
void memory_written(const Elements& elements);
void memory_read(const Elements& elements);

// --- For the executor ---

// What ended a dispatch.
struct Fault : Error {
  using Error::Error;
  std::string kind, scope;  // of the finding that it is under check; no kind: it is among them already
  std::string message;      // without the kernel and the thread
  const mpsk_site* site = nullptr;
  std::string file;  // where there is no site
  unsigned line = 0;
  mpsk_size threadgroup{}, thread{};
};

enum class AccessKind : uint8_t { read, write, atomic, atomic_store };
constexpr bool is_atomic(AccessKind kind) { return kind >= AccessKind::atomic; }

struct Object;
struct Log;
class Checker;

// Of one dispatch.
class Observation {
 public:
  Observation(const Watch& watch, const Dispatch& dispatch, const mpsk_grid& grid);
  ~Observation();
  Observation(const Observation&) = delete;
  const Watch& watch() const { return watch_; }
  void* tagged(size_t argument) const;  // what the kernel gets for a buffer argument
  void faulted(const Fault& fault);
  void finish();

 private:
  friend class Observer;
  struct Bits {
    std::vector<std::atomic<uint64_t>> read, written;
  };
  void merge(const Counts& counts);
  std::vector<uint64_t> work_;  // of each threadgroup
  Watch watch_;
  std::vector<Object> objects_;  // of buffers, by their numbers; 0 is none
  std::vector<size_t> object_of_argument_;
  std::map<uintptr_t, Bits> bits_;  // by where a buffer begins
  Counts counts_;
};

// Of one worker during one dispatch.
class Observer {
 public:
  Observer(Observation& observation, const Function& function);
  ~Observer();
  void threadgroup_memory(unsigned char* begin);  // where the worker's lies
  unsigned char* add_threadgroup_array(unsigned char* begin, size_t bytes, const std::string& name);

  void begin(const mpsk_group& group, size_t index);
  void end();
  void threadgroup_barrier(unsigned flags, const mpsk_thread& first, unsigned ended);
  void simdgroup_barrier(unsigned flags, const mpsk_thread& first, unsigned ended);
  void simd_operation() { ++counts_.simd_operations; }
  void flush(unsigned lanes);  // of the simdgroup: all wait, are paused or have ended

  // On a worker's thread: its own.
  static thread_local Observer* current;

  // On behalf of the running thread.
  void run(const mpsk_thread* thread) { thread_ = thread; }
  template <AccessKind kind>
  void* access(void* pointer, size_t bytes, const mpsk_site& site);
  void* matrix(const void* pointer, size_t elements_per_row, size_t x, size_t y, unsigned element_size, bool transpose,
               bool write, const mpsk_site& site);
  // `rows` of an operand of matmul2d, which the simdgroup reads
  void* tensor(const void* pointer, size_t rows, size_t row_bytes, ptrdiff_t pitch, unsigned element_size,
               const mpsk_site& site);
  void tensor_flops(uint64_t flops) { counts_.tensor_flops += thread_->lane == 0 ? flops : 0; }
  void operation(const char* kind, const std::string& text, const mpsk_site& site);  // a finding
  void* within(void* pointer, const mpsk_site& site);
  unsigned* counters(mpsk_code& code) {
    std::vector<unsigned>& nobodys = nobodys_[static_cast<size_t>(&code - first_code_)];
    return nobodys.empty() ? count(code) : nobodys.data();
  }
  void here(const mpsk_site* site) { here_[thread_->index_in_threadgroup] = site; }
  const mpsk_site* where(const mpsk_thread& thread) const { return here_[thread.index_in_threadgroup]; }
  const Watch& watch() const { return observation_.watch_; }

 private:
  friend class Checker;
  void look_over(const Object& object);
  const Object* resolve(uintptr_t pointer, AccessKind kind, size_t bytes, size_t align, const mpsk_site& site);
  void refuse(uintptr_t pointer, AccessKind kind, size_t bytes, size_t align, const mpsk_site& site);
  const Object& simdgroup_access(uintptr_t pointer, AccessKind kind, size_t bytes, size_t align, const mpsk_site& site);
  void* scratch(size_t bytes);
  void parted(const mpsk_site& site, size_t first, size_t count);
  void missed(const char* barrier, const char* scope, const mpsk_thread& first, unsigned ended);
  void finding(const char* kind, const char* scope, const std::string& text, const Object* object,
               std::optional<Access> access, std::optional<Access> other = {});
  Access describe(AccessKind kind, const mpsk_site& site, const mpsk_thread& thread) const;
  size_t threads() const { return static_cast<size_t>(group_->threads.x) * group_->threads.y * group_->threads.z; }
  unsigned* count(mpsk_code& code);
  void count_blocks();
  void count_bytes(const Object& object, uintptr_t address, size_t bytes, bool writes);
  void count_access(const Object& object, uintptr_t* addresses, unsigned count, size_t bytes);

  Observation& observation_;
  std::vector<Object> objects_;  // the dispatch's, then this worker's threadgroup arrays
  struct Range {
    uintptr_t begin = 0;
    size_t bytes = 0;
    bool is_constant = false;
  };
  std::vector<Range> ranges_;  // of the objects whose reads leave nothing to keep; the others have no bytes here
  const mpsk_group* group_ = nullptr;
  const mpsk_thread* thread_ = nullptr;
  size_t index_ = 0;            // of the threadgroup
  uint64_t issued_before_ = 0;  // by the threadgroups before
  uint64_t group_barriers_ = 0;
  uint64_t refused_ = 0;
  std::vector<const mpsk_site*> here_;  // where each thread waits
  std::vector<unsigned> counters_;      // of each lane
  size_t counters_per_lane_ = 0;
  mpsk_code* first_code_ = nullptr;
  std::vector<bool> ran_;                       // which functions this threadgroup ran through
  std::vector<bool> has_matrix_;                // which have operations on matrices
  std::vector<std::vector<unsigned>> nobodys_;  // counters of a function, of all lanes, where nobody looks at them
  std::vector<uint64_t> sums_, busiest_;
  std::vector<unsigned> most_, least_;
  std::unique_ptr<Log> log_;
  std::unique_ptr<Checker> checker_;
  std::vector<unsigned char> scratch_;
  std::set<std::pair<uintptr_t, size_t>> operands_;  // of matmul2d, read since the last barrier of the threadgroup
  Counts counts_;
};

}  // namespace mpsk::device
