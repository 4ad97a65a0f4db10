#include "watch.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <tuple>
#include <unordered_map>

#include "checker.h"
#include "executor.h"

extern char** environ;

namespace mpsk::device {

namespace {

std::string position(const mpsk_size& p) {
  return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}

struct State {
  std::mutex mutex;
  Watch watch;
  std::vector<Finding> findings;
  std::vector<Counts> counts;
  std::vector<std::string> instrumenter;
  std::map<std::string, std::shared_ptr<const Library>> instrumented;  // by the path of the metallib
  std::map<std::string, std::string> paths;                            // of what was made of a source
  std::map<uintptr_t, std::shared_ptr<Initialised>> memory;            // by where an allocation begins
  std::map<uintptr_t, std::unique_ptr<Shadow>> shadows;                // of buffers, of the dispatch at hand
};

State& state() {
  static State* const instance = new State;
  return *instance;
}

std::string sentence(const Access& access, size_t bytes) {
  std::string text = access.kind;
  if (bytes) text += " of " + std::to_string(bytes) + " bytes";
  return text + " at " + access.file + ":" + std::to_string(access.line) +
         (access.column ? ":" + std::to_string(access.column) : "") + " (" + access.function + ") by " +
         (access.whole_simdgroup ? "the simdgroup of " : "") + "thread " + position(access.thread) +
         " of threadgroup " + position(access.threadgroup);
}

void add_finding(Finding finding) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  const auto same_place = [](const std::optional<Access>& a, const std::optional<Access>& b) {
    return a.has_value() == b.has_value() &&
           (!a || (a->file == b->file && a->line == b->line && a->column == b->column));
  };
  for (Finding& known : all.findings) {
    if (known.kind == finding.kind && known.kernel == finding.kernel && known.buffer == finding.buffer &&
        known.scope == finding.scope &&
        ((same_place(known.access, finding.access) && same_place(known.other, finding.other)) ||
         (same_place(known.access, finding.other) && same_place(known.other, finding.access)))) {
      ++known.count;
      return;
    }
  }
  finding.text = finding.kind + " in kernel " + finding.kernel + ": " + finding.text;
  if (!finding.buffer.empty()) finding.text += "\n  in " + finding.buffer;
  if (finding.access) finding.text += "\n  " + sentence(*finding.access, 0);
  if (finding.other) finding.text += "\n  and " + sentence(*finding.other, 0);
  all.findings.push_back(std::move(finding));
}

// The allocation that an address lies in.
std::shared_ptr<Initialised> initialised_at(uintptr_t address, uintptr_t& begin) {
  auto& memory = state().memory;
  auto at = memory.upper_bound(address);
  if (at == memory.begin()) return nullptr;
  --at;
  begin = at->first;
  return address < begin + at->second->bytes ? at->second : nullptr;
}

}  // namespace

void set_watch(const Watch& watch) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.watch = watch;
  if (!watch.check) all.memory.clear();
}

Watch current_watch() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  return all.watch;
}

std::vector<Finding> take_findings() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  return std::exchange(all.findings, {});
}

std::vector<Counts> take_counts() {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  return std::exchange(all.counts, {});
}

// --- Instrumented metallibs ---

void set_instrumenter(std::vector<std::string> command) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.instrumenter = std::move(command);
}

namespace {

// Runs a program and gives what it prints. Throws Error with what it complains of.
std::string output_of(const std::vector<std::string>& command) {
  std::vector<char*> arguments;
  for (const std::string& part : command) arguments.push_back(const_cast<char*>(part.c_str()));
  arguments.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw Error("no pipe to the compiler");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  pid_t child = 0;
  const int failed = posix_spawn(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string text;
  if (!failed) {
    char buffer[4096];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(got));
  }
  close(ends[0]);
  if (failed) throw Error("cannot run " + command[0] + ": " + std::strerror(failed));
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) throw Error("cannot instrument a kernel: " + text);
  return text;
}

}  // namespace

std::shared_ptr<const Library> instrumented(const mpsk_source& source) {
  State& all = state();
  std::vector<std::string> command;
  const std::string key = std::string(source.std) + source.math_mode + std::string(source.text, source.size);
  {
    const std::lock_guard lock(all.mutex);
    command = all.instrumenter;
    const auto known = all.paths.find(key);
    if (known != all.paths.end()) return all.instrumented.at(known->second);
  }
  if (command.empty()) throw Error("no compiler for instrumented kernels is loaded in this process");
  const char* const folder = std::getenv("TMPDIR");
  std::string path = std::string(folder ? folder : "/tmp") + "/mpsk-XXXXXX";
  const int file = mkstemp(path.data());
  if (file < 0) throw Error("cannot write a temporary file " + path);
  const bool written = write(file, source.text, source.size) == static_cast<ssize_t>(source.size);
  close(file);
  command.insert(command.end(), {"--instrument", path, "--std", source.std, "--math-mode", source.math_mode});
  std::string made;
  try {
    if (!written) throw Error("cannot write a temporary file " + path);
    made = output_of(command);
  } catch (...) {
    unlink(path.c_str());
    throw;
  }
  unlink(path.c_str());
  while (!made.empty() && made.back() == '\n') made.pop_back();
  const std::lock_guard lock(all.mutex);
  auto& library = all.instrumented[made];
  if (!library) {
    try {
      library = Library::open(made);
    } catch (const Error&) {
      unlink(made.c_str());  // damaged: the next one makes it again
      all.instrumented.erase(made);
      throw;
    }
    // Where the counters of each function are among a lane's: those of functions that several kernels call, then those
    // of the one entry that runs.
    const mpsk_metallib_header& header = library->header();
    unsigned shared = 0;
    for (mpsk_code* code = header.code_begin; code != header.code_end; ++code) {
      if (!code->shared) continue;
      code->first = shared;
      shared += code->block_count;
    }
    for (mpsk_code* code = header.code_begin; code != header.code_end; ++code) {
      if (!code->shared) code->first = shared;
    }
  }
  all.paths[key] = made;
  return library;
}

// --- Memory without a value ---

void memory_allocated(const std::byte* begin, size_t bytes) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  if (all.watch.check) all.memory[reinterpret_cast<uintptr_t>(begin)] = std::make_shared<Initialised>(bytes);
}

void memory_freed(const std::byte* begin) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.memory.erase(reinterpret_cast<uintptr_t>(begin));
}

void memory_written(const std::byte* begin, size_t bytes) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  uintptr_t storage = 0;
  if (const auto known = initialised_at(reinterpret_cast<uintptr_t>(begin), storage)) {
    const size_t offset = reinterpret_cast<uintptr_t>(begin) - storage;
    known->set(offset, std::min(bytes, known->bytes - offset));
  }
}

namespace {

// Calls `visit` with the offset in the storage and the bytes of each run of elements that lie one behind the other, in
// the elements' order.
template <class Visit>
void for_each_run(const Elements& elements, Visit visit) {
  size_t run = elements.element_size, dims = elements.sizes.size();
  while (dims > 0 &&
         elements.strides[dims - 1] * static_cast<int64_t>(elements.element_size) == static_cast<int64_t>(run)) {
    run *= static_cast<size_t>(elements.sizes[--dims]);
  }
  const auto base = static_cast<size_t>(elements.first - elements.storage);
  std::vector<int64_t> index(dims, 0);
  for (;;) {
    int64_t offset = 0;
    for (size_t d = 0; d < dims; ++d) offset += index[d] * elements.strides[d];
    visit(base + static_cast<size_t>(offset) * elements.element_size, run);
    size_t d = dims;
    while (d > 0 && ++index[d - 1] == elements.sizes[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

// The index of an element in a tensor of these sizes, from its number.
std::string index_text(size_t number, std::span<const int64_t> sizes) {
  std::string text;
  for (size_t d = sizes.size(); d-- > 0;) {
    const auto size = static_cast<size_t>(sizes[d]);
    text.insert(0, (d ? ", " : "") + std::to_string(number % size));
    number /= size;
  }
  return text;
}

}  // namespace

void memory_written(const Elements& elements) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  const auto at = all.memory.find(reinterpret_cast<uintptr_t>(elements.storage));
  if (at == all.memory.end()) return;
  for_each_run(elements, [&](size_t offset, size_t bytes) { at->second->set(offset, bytes); });
}

void memory_read(const Elements& elements) {
  State& all = state();
  size_t missing = 0, total = 0, first = 0;
  Finding finding;
  {
    const std::lock_guard lock(all.mutex);
    const auto at = all.memory.find(reinterpret_cast<uintptr_t>(elements.storage));
    if (at == all.memory.end() || !at->second->bound_for_writing) return;
    Initialised& known = *at->second;
    finding.kernel = known.kernel;
    finding.buffer = known.buffer;
    for_each_run(elements, [&](size_t offset, size_t bytes) {
      const size_t count = bytes / elements.element_size;
      const size_t look_at = known.all(offset, bytes) ? 0 : count;
      for (size_t i = 0; i < look_at; ++i) {
        if (known.all(offset + i * elements.element_size, elements.element_size)) continue;
        if (missing++ == 0) first = total + i;
      }
      total += count;
    });
    if (missing == 0) return;
    known.set(0, known.bytes);  // once is enough
  }
  finding.kind = "not stored";
  finding.text = std::to_string(missing) + " of the " + std::to_string(total) +
                 " elements that are read back were never stored, the first at index (" +
                 index_text(first, elements.sizes) + ")";
  add_finding(std::move(finding));
}

// --- Objects ---

std::string Object::text() const {
  if (kind == mpsk_argument_threadgroup) return "threadgroup memory `" + name + "`";
  return "buffer(" + std::to_string(index) + ") `" + name + "`";
}

Observation::Observation(const Watch& watch, const Dispatch& dispatch, const mpsk_grid& grid)
    : watch_(watch), objects_(1) {
  const auto arguments = dispatch.pipeline->function().arguments();
  counts_.kernel = dispatch.label.empty() ? dispatch.pipeline->function().name() : dispatch.label;
  counts_.threadgroups = grid.threadgroups;
  counts_.threads_per_threadgroup = grid.dispatch_threads_per_threadgroup;
  counts_.threads = static_cast<uint64_t>(grid.threads.x) * grid.threads.y * grid.threads.z;
  if (watch_.profile)
    work_.resize(static_cast<size_t>(grid.threadgroups.x) * grid.threadgroups.y * grid.threadgroups.z);
  counts_.threadgroup_memory = dispatch.pipeline->function().static_threadgroup_bytes();
  for (size_t bytes : dispatch.threadgroup_bytes) counts_.threadgroup_memory += bytes;
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.shadows.clear();
  std::map<uintptr_t, std::pair<size_t, bool>> buffers;  // begin -> size, whether it may be written
  for (size_t i = 0; i < arguments.size(); ++i) {
    const mpsk_argument& argument = arguments[i];
    object_of_argument_.push_back(0);
    const bool is_buffer = argument.kind == mpsk_argument_device || argument.kind == mpsk_argument_constant;
    if (!is_buffer || !dispatch.buffers[argument.index].data) continue;
    const Binding& binding = dispatch.buffers[argument.index];
    Object object;
    object.begin = reinterpret_cast<uintptr_t>(binding.data);
    object.bytes = binding.length;
    object.kind = argument.kind;
    object.index = argument.index;
    object.name = argument.name;
    object.writable = argument.kind == mpsk_argument_device && !argument.is_const;
    object.storage = object.begin - binding.offset;
    auto& [size, written] = buffers[object.storage];
    size = std::max(size, binding.offset + binding.length);
    written |= object.writable;
    object_of_argument_.back() = objects_.size();
    objects_.push_back(std::move(object));
  }
  for (Object& object : objects_) {
    if (object.storage == 0) continue;
    const auto& [size, written] = buffers[object.storage];
    if (watch_.check) {
      if (written) {
        auto& shadow = all.shadows[object.storage];
        if (!shadow) shadow = std::make_unique<Shadow>(object.storage, size);
        object.shadow = shadow.get();
      }
      uintptr_t begin = 0;
      object.initialised = initialised_at(object.storage, begin);
      if (object.initialised) {
        object.storage = begin;
        if (object.writable) {
          object.initialised->bound_for_writing = true;
          object.initialised->kernel = counts_.kernel;
          object.initialised->buffer = object.text();
        }
        // Memory never loses its values, so there is nothing to keep.
        if (object.initialised->complete(object.begin + object.bytes - begin)) object.initialised = nullptr;
      }
    }
    object.checked = object.shadow || object.initialised;
    if (watch_.profile && object.kind == mpsk_argument_device) {
      auto& bits = bits_[object.storage];
      for (auto* each : {&bits.read, &bits.written}) {
        if (each->empty()) *each = std::vector<std::atomic<uint64_t>>((size + 63) / 64);
      }
      object.bytes_read = bits.read.data();
      object.bytes_written = bits.written.data();
    }
  }
}

Observation::~Observation() = default;

void* Observation::tagged(size_t argument) const {
  const size_t number = object_of_argument_[argument];
  if (number == 0) return nullptr;
  return reinterpret_cast<void*>(objects_[number].begin | MPSK_TAGGED | number << MPSK_TAG_SHIFT);
}

void Observation::merge(const Counts& counts) {
  const std::lock_guard lock(state().mutex);
  for (uint64_t Counts::* field : {&Counts::instructions,
                                   &Counts::simd_instructions,
                                   &Counts::f32_flops,
                                   &Counts::f16_flops,
                                   &Counts::special,
                                   &Counts::integer_operations,
                                   &Counts::matrix_operations,
                                   &Counts::tensor_flops,
                                   &Counts::device_read,
                                   &Counts::device_written,
                                   &Counts::device_accesses,
                                   &Counts::device_lines,
                                   &Counts::device_lines_ideal,
                                   &Counts::device_lines_shared,
                                   &Counts::constant_read,
                                   &Counts::threadgroup_read,
                                   &Counts::threadgroup_written,
                                   &Counts::threadgroup_accesses,
                                   &Counts::bank_cycles,
                                   &Counts::bank_cycles_ideal,
                                   &Counts::atomics,
                                   &Counts::simdgroup_barriers,
                                   &Counts::simd_operations}) {
    counts_.*field += counts.*field;
  }
  counts_.barriers = std::max(counts_.barriers, counts.barriers);
}

void Observation::finish() {
  if (!watch_.profile) return;
  for (const auto& [storage, bits] : bits_) {
    for (const auto& word : bits.read) counts_.device_read_unique += static_cast<uint64_t>(std::popcount(word.load()));
    for (const auto& word : bits.written) {
      counts_.device_written_unique += static_cast<uint64_t>(std::popcount(word.load()));
    }
  }
  for (const uint64_t work : work_) {
    if (counts_.work.empty() || counts_.work.back().second != work) counts_.work.emplace_back(0, work);
    ++counts_.work.back().first;
  }
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.counts.push_back(counts_);
}

void Observation::faulted(const Fault& fault) {
  for (const Object& object : objects_) {  // nobody wonders at what the rest of the kernel did not store
    if (object.writable && object.initialised) object.initialised->set(0, object.initialised->bytes);
  }
  if (fault.kind.empty()) return;  // it is among the findings
  Finding finding;
  finding.kind = fault.kind;
  finding.scope = fault.scope;
  finding.kernel = counts_.kernel;
  finding.text = fault.message;
  if (fault.site || fault.line) {
    Access access;
    access.kind = "wait";
    if (fault.line) {
      access.kind = "division";
      access.file = fault.file;
      access.line = fault.line;
    } else {
      access.file = fault.site->file;
      access.function = fault.site->function;
      access.line = fault.site->line;
      access.column = fault.site->column;
    }
    access.threadgroup = fault.threadgroup;
    access.thread = fault.thread;
    finding.access = std::move(access);
  }
  add_finding(std::move(finding));
}

// --- Observers ---

[[gnu::tls_model("initial-exec")]] thread_local Observer* Observer::current = nullptr;

// What the lanes of a simdgroup have accessed since they last met.
struct Log {
  struct Entry {
    uintptr_t address;
    const mpsk_site* site;
    uint32_t bytes;
    uint16_t object;
    bool writes;
    bool goes_with(const Entry& other) const {
      return site == other.site && bytes == other.bytes && object == other.object && writes == other.writes;
    }
  };
  static constexpr size_t limit = 512;
  struct alignas(64) Lane {  // so aligned, entries of one number lie in different sets of the host's caches
    size_t size = 0;
    Entry entries[limit];
    std::span<const Entry> all() const { return {entries, size}; }
  };
  Lane lanes[MPSK_SIMD_WIDTH];
};

Observer::Observer(Observation& observation, const Function& function)
    : observation_(observation), objects_(observation.objects_), here_(MPSK_MAX_THREADS_PER_THREADGROUP) {
  if (watch().profile) log_ = std::make_unique<Log>();
  if (watch().check) {
    checker_ = std::make_unique<Checker>(*this);
    checker_->begin_dispatch();
  }
  const mpsk_metallib_header& header = function.library().header();
  first_code_ = header.code_begin;
  ran_.resize(static_cast<size_t>(header.code_end - header.code_begin));
  for (const mpsk_code* code = header.code_begin; code != header.code_end; ++code) {
    const std::span blocks(code->blocks, code->block_count);
    has_matrix_.push_back(std::ranges::any_of(blocks, [](const mpsk_block& block) { return block.matrix != nullptr; }));
    const bool counted = watch().profile || has_matrix_.back();
    nobodys_.emplace_back(counted ? 0 : code->block_count);
    if (counted && code->shared) {
      counters_per_lane_ = std::max<size_t>(counters_per_lane_, code->first + code->block_count);
    }
  }
  for (const Object& object : objects_) look_over(object);
}

Observer::~Observer() { observation_.merge(counts_); }

void Observer::threadgroup_memory(unsigned char* begin) {
  if (checker_) {
    checker_->threadgroup_shadow_ =
        std::make_unique<Shadow>(reinterpret_cast<uintptr_t>(begin), MPSK_MAX_THREADGROUP_BYTES);
  }
}

unsigned char* Observer::add_threadgroup_array(unsigned char* begin, size_t bytes, const std::string& name) {
  Object object;
  object.begin = reinterpret_cast<uintptr_t>(begin);
  object.bytes = bytes;
  object.kind = mpsk_argument_threadgroup;
  object.name = name;
  objects_.push_back(std::move(object));
  look_over(objects_.back());
  return reinterpret_cast<unsigned char*>(objects_.back().begin | MPSK_TAGGED |
                                          (objects_.size() - 1) << MPSK_TAG_SHIFT);
}

void Observer::look_over(const Object& object) {
  const bool is_constant = object.kind == mpsk_argument_constant;
  const bool unwatched = (!log_ || is_constant) && !(checker_ && object.checked);
  ranges_.push_back(unwatched ? Range{object.begin, object.bytes, is_constant} : Range{});
}

void Observer::begin(const mpsk_group& group, size_t index) {
  group_ = &group;
  index_ = index;
  issued_before_ = counts_.issued();
  counters_.assign(threads() * counters_per_lane_, 0);
  ran_.assign(ran_.size(), false);
  std::ranges::fill(here_, nullptr);
  group_barriers_ = 0;
  operands_.clear();
  if (checker_) checker_->begin_group(index);
}

void Observer::end() {
  counts_.barriers = std::max(counts_.barriers, group_barriers_);
  count_blocks();
  if (watch().profile) observation_.work_[index_] = counts_.issued() - issued_before_;
}

unsigned* Observer::count(mpsk_code& code) {
  if (code.first + code.block_count > counters_per_lane_) {
    // The entry's, which comes before all that it calls, in the first threadgroup.
    counters_per_lane_ = code.first + code.block_count;
    counters_.assign(threads() * counters_per_lane_, 0);
  }
  ran_[static_cast<size_t>(&code - first_code_)] = true;
  return &counters_[thread_->index_in_threadgroup * counters_per_lane_ + code.first];
}

// A block counts for a simdgroup as often as for its busiest lane: those that a branch has parted meet again.
void Observer::count_blocks() {
  const size_t all = threads();
  for (size_t c = 0; c < ran_.size(); ++c) {
    if (!ran_[c]) continue;
    const mpsk_code& code = first_code_[c];
    const size_t blocks = code.block_count;
    sums_.assign(blocks, 0);
    busiest_.assign(blocks, 0);
    for (size_t first = 0; first < all; first += MPSK_SIMD_WIDTH) {
      const size_t count = std::min<size_t>(MPSK_SIMD_WIDTH, all - first);
      const unsigned* const passes = &counters_[first * counters_per_lane_ + code.first];
      size_t alike = 1;  // lanes with the same counts as the first
      while (alike < count && std::memcmp(passes, passes + alike * counters_per_lane_, blocks * sizeof *passes) == 0) {
        ++alike;
      }
      most_.assign(passes, passes + blocks);
      least_ = most_;
      for (size_t b = 0; b < blocks; ++b) sums_[b] += passes[b] * alike;
      for (size_t lane = alike; lane < count; ++lane) {
        const unsigned* const its = passes + lane * counters_per_lane_;
        for (size_t b = 0; b < blocks; ++b) {
          sums_[b] += its[b];
          most_[b] = std::max(most_[b], its[b]);
          least_[b] = std::min(least_[b], its[b]);
        }
      }
      for (size_t b = 0; b < blocks; ++b) busiest_[b] += most_[b];
      if (!checker_ || !has_matrix_[c] || (alike == count && count == MPSK_SIMD_WIDTH)) continue;
      for (size_t b = 0; b < blocks; ++b) {
        if (most_[b] == 0 || !code.blocks[b].matrix) continue;
        if (most_[b] != least_[b] || count < MPSK_SIMD_WIDTH) parted(*code.blocks[b].matrix, first, count);
      }
    }
    for (size_t b = 0; b < blocks; ++b) {
      const mpsk_block& block = code.blocks[b];
      counts_.instructions += sums_[b] * block.instructions;
      counts_.simd_instructions += busiest_[b] * block.instructions;
      counts_.f32_flops += sums_[b] * block.f32_flops;
      counts_.f16_flops += sums_[b] * block.f16_flops;
      counts_.special += sums_[b] * block.special;
      counts_.integer_operations += sums_[b] * block.integer_operations;
      counts_.matrix_operations += busiest_[b] * block.matrix_operations;
    }
  }
}

// A simdgroup whose lanes have not all performed an operation on matrices.
void Observer::parted(const mpsk_site& site, size_t first, size_t count) {
  mpsk_thread thread{};
  thread.group = group_;
  const mpsk_size& size = group_->threads;
  const auto index = static_cast<unsigned>(first);
  thread.position_in_threadgroup = {index % size.x, index / size.x % size.y, index / size.x / size.y};
  Access access = describe(AccessKind::read, site, thread);
  access.kind = "wait";
  access.whole_simdgroup = true;
  finding("divergence", "simdgroup",
          count < MPSK_SIMD_WIDTH
              ? "an operation on simdgroup matrices by a simdgroup of " + std::to_string(count) + " threads"
              : "an operation on simdgroup matrices that not all lanes of the simdgroup perform",
          nullptr, access);
}

void Observer::threadgroup_barrier(unsigned flags, const mpsk_thread& first, unsigned ended) {
  ++group_barriers_;
  operands_.clear();
  if (!checker_) return;
  checker_->threadgroup_barrier(flags);
  if (ended) missed("threadgroup_barrier", "threadgroup", first, ended);
}

void Observer::simdgroup_barrier(unsigned flags, const mpsk_thread& first, unsigned ended) {
  ++counts_.simdgroup_barriers;
  if (!checker_) return;
  checker_->simdgroup_barrier(first.simdgroup, flags);
  if (ended) missed("simdgroup_barrier", "simdgroup", first, ended);
}

void Observer::missed(const char* barrier, const char* scope, const mpsk_thread& first, unsigned ended) {
  std::optional<Access> access;
  if (const mpsk_site* site = where(first)) {
    access = describe(AccessKind::read, *site, first);
    access->kind = "wait";
  }
  finding(
      "divergence", scope,
      std::string("a ") + barrier + " that " + std::to_string(ended) + " of the threads do not reach: they have ended",
      nullptr, access);
}

// --- Accesses ---

Access Observer::describe(AccessKind kind, const mpsk_site& site, const mpsk_thread& thread) const {
  static constexpr const char* names[] = {"read", "write", "atomic", "atomic"};
  Access access;
  access.kind = names[static_cast<int>(kind)];
  access.file = site.file;
  access.function = site.function;
  access.line = site.line;
  access.column = site.column;
  access.threadgroup = thread.group->position;
  access.thread = thread.position_in_threadgroup;
  return access;
}

void Observer::finding(const char* kind, const char* scope, const std::string& text, const Object* object,
                       std::optional<Access> access, std::optional<Access> other) {
  Finding finding;
  finding.kind = kind;
  finding.scope = scope;
  finding.kernel = observation_.counts_.kernel;
  finding.text = text;
  if (object) finding.buffer = object->text();
  finding.access = std::move(access);
  finding.other = std::move(other);
  add_finding(std::move(finding));
}

void* Observer::scratch(size_t bytes) {
  if (bytes > 65536) Worker::current()->refuse();
  scratch_.assign(bytes + 64, 0);
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch_.data()) + 63) / 64 * 64);
}

// Why an access may not be: it is among the findings then.
void Observer::refuse(uintptr_t pointer, AccessKind kind, size_t bytes, size_t align, const mpsk_site& site) {
  if (++refused_ > 65536) Worker::current()->refuse();  // a loop that has run away
  if (!watch().check) return;
  const auto report = [&](const char* what, const std::string& text, const Object* object) {
    finding(what, "", text, object, describe(kind, site, *thread_));
  };
  if (!(pointer & MPSK_TAGGED)) return report("null", "an access through a null pointer", nullptr);
  const size_t number = pointer >> MPSK_TAG_SHIFT & 0x3fff;
  if (number >= objects_.size()) return report("bounds", "an access very far from any buffer", nullptr);
  const Object& object = objects_[number];
  const auto offset = static_cast<int64_t>((pointer & MPSK_ADDRESS) - object.begin);
  if (pointer & MPSK_WRAPPED) {
    report("overflow", "the 32-bit index of this access is cut off: it needs 64 bits", &object);
  } else if (offset < 0 || static_cast<size_t>(offset) + bytes > object.bytes) {
    report("bounds",
           "an access of " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + ", of " +
               std::to_string(object.bytes) + " bytes that are there",
           &object);
  } else if (kind != AccessKind::read && !object.writable) {
    report("read-only", "a write to memory that this argument may only read", &object);
  } else {
    report("misaligned",
           "an access of a type that must lie at a multiple of " + std::to_string(align) + " bytes, at offset " +
               std::to_string(offset),
           &object);
  }
}

// An access that only has to lie within its object: where it does, and null otherwise.
inline void* Observer::within(void* pointer, const mpsk_site& site) {
  const auto tagged = reinterpret_cast<uintptr_t>(pointer);
  const size_t number = (tagged >> MPSK_TAG_SHIFT) - (MPSK_TAGGED >> MPSK_TAG_SHIFT);  // huge without a tag
  if (number >= ranges_.size()) return nullptr;
  const Range& range = ranges_[number];
  const size_t offset = (tagged & (MPSK_WRAPPED | MPSK_ADDRESS)) - range.begin;  // huge where the index was cut off
  if (offset + site.size > range.bytes || offset > range.bytes || (tagged & (site.align - 1)) != 0) return nullptr;
  if (range.is_constant) counts_.constant_read += site.size;
  return reinterpret_cast<void*>(range.begin + offset);
}

// The object that a tagged pointer was made for, or null where the access may not be. `align` is a power of two.
inline const Object* Observer::resolve(uintptr_t pointer, AccessKind kind, size_t bytes, size_t align,
                                       const mpsk_site& site) {
  const size_t number = pointer >> MPSK_TAG_SHIFT & 0x3fff;
  const Object& object = objects_[number < objects_.size() ? number : 0];  // 0 has no bytes
  const uintptr_t address = pointer & MPSK_ADDRESS;
  const size_t offset = address - object.begin;  // huge below the beginning
  const bool inside = offset <= object.bytes && object.bytes - offset >= bytes;
  const bool may = kind == AccessKind::read || object.writable;
  const bool usable = inside && may && !(pointer & MPSK_WRAPPED) && (address & (align - 1)) == 0;
  if (__builtin_expect(usable, 1)) return &object;
  refuse(pointer, kind, bytes, align, site);
  return nullptr;
}

template <AccessKind kind>
void* Observer::access(void* pointer, size_t bytes, const mpsk_site& site) {
  auto tagged = reinterpret_cast<uintptr_t>(pointer);
  if (!(tagged & MPSK_TAGGED)) {
    tagged &= ~MPSK_WRAPPED;
    if (tagged >= 65536) return reinterpret_cast<void*>(tagged);  // the thread's own memory
    refuse(0, kind, bytes, 1, site);
    return scratch(bytes);
  }
  const uintptr_t address = tagged & MPSK_ADDRESS;
  if (bytes == 0) return reinterpret_cast<void*>(address);
  const Object* const object = resolve(tagged, kind, bytes, site.align, site);
  if (!object) return scratch(bytes);
  if (object->kind == mpsk_argument_constant) counts_.constant_read += bytes;
  if (object->checked && checker_) {
    checker_->access<kind>(*object, address, bytes, static_cast<uint16_t>(thread_->index_in_threadgroup), site);
  }
  if (log_ && object->kind != mpsk_argument_constant) {
    if (is_atomic(kind)) ++counts_.atomics;
    Log::Lane& lane = log_->lanes[thread_->lane];
    lane.entries[lane.size++] = {address, &site, static_cast<uint32_t>(bytes),
                                 static_cast<uint16_t>(object - objects_.data()), kind != AccessKind::read};
    if (lane.size == Log::limit) Worker::current()->pause();
  }
  return reinterpret_cast<void*>(address);
}

// An access that the first lane makes for all.
const Object& Observer::simdgroup_access(uintptr_t pointer, AccessKind kind, size_t bytes, size_t align,
                                         const mpsk_site& site) {
  const Object* const object = resolve(pointer, kind, bytes, align, site);
  if (!object) Worker::current()->refuse();
  if (checker_ && object->checked) {
    const auto simdgroup = static_cast<uint16_t>(whole_simdgroup | thread_->simdgroup);
    const uintptr_t address = pointer & MPSK_ADDRESS;
    if (kind == AccessKind::read) {
      checker_->access<AccessKind::read>(*object, address, bytes, simdgroup, site);
    } else {
      checker_->access<AccessKind::write>(*object, address, bytes, simdgroup, site);
    }
  }
  return *object;
}

void* Observer::matrix(const void* pointer, size_t elements_per_row, size_t x, size_t y, unsigned element_size,
                       bool transpose, bool write, const mpsk_site& site) {
  const auto tagged = reinterpret_cast<uintptr_t>(pointer);
  if (!(tagged & MPSK_TAGGED)) {
    if (tagged >= 65536) return const_cast<void*>(pointer);
    refuse(0, write ? AccessKind::write : AccessKind::read, 0, 1, site);
    Worker::current()->refuse();
  }
  const uintptr_t base = tagged & MPSK_ADDRESS;
  if (thread_->lane != 0) return reinterpret_cast<void*>(base);
  (void)transpose;  // a transposed matrix is the same memory
  const AccessKind kind = write ? AccessKind::write : AccessKind::read;
  const size_t bytes = 8 * static_cast<size_t>(element_size);
  uintptr_t rows[8];
  const Object* object = nullptr;
  for (size_t row = 0; row < 8; ++row) {
    const uintptr_t its = tagged + ((y + row) * elements_per_row + x) * element_size;
    object = &simdgroup_access(its, kind, bytes, element_size, site);
    rows[row] = its & MPSK_ADDRESS;
  }
  if (log_) {
    for (const uintptr_t row : rows) count_bytes(*object, row, bytes, write);
    uintptr_t words[MPSK_SIMD_WIDTH];
    // Two elements that lie side by side for each lane.
    for (unsigned lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) words[lane] = rows[lane / 4] + lane % 4 * 2 * element_size;
    count_access(*object, words, MPSK_SIMD_WIDTH, 2 * element_size);
  }
  return reinterpret_cast<void*>(base);
}

void* Observer::tensor(const void* pointer, size_t rows, size_t row_bytes, ptrdiff_t pitch, unsigned element_size,
                       const mpsk_site& site) {
  const auto tagged = reinterpret_cast<uintptr_t>(pointer);
  if (!(tagged & MPSK_TAGGED)) {
    if (tagged >= 65536) return const_cast<void*>(pointer);
    refuse(0, AccessKind::read, 0, 1, site);
    Worker::current()->refuse();
  }
  const uintptr_t base = tagged & MPSK_ADDRESS;
  if (thread_->lane != 0) return reinterpret_cast<void*>(base);
  // How the hardware reads operands is not known; it is counted as lanes that read 16 bytes each, row after row.
  constexpr size_t piece = 16;
  const bool shared = !operands_.emplace(base, rows).second;
  const uint64_t lines_before = counts_.device_lines;
  uintptr_t addresses[MPSK_SIMD_WIDTH];
  unsigned count = 0;
  const Object* object = nullptr;
  for (size_t row = 0; row < rows; ++row) {
    const uintptr_t begin = tagged + static_cast<uintptr_t>(static_cast<ptrdiff_t>(row) * pitch);
    object = &simdgroup_access(begin, AccessKind::read, row_bytes, element_size, site);
    if (!log_) continue;
    count_bytes(*object, begin & MPSK_ADDRESS, row_bytes, false);
    for (size_t at = 0; at < row_bytes; at += piece) {
      addresses[count++] = (begin & MPSK_ADDRESS) + at;
      if (count < MPSK_SIMD_WIDTH && row_bytes - at >= piece) continue;
      count_access(*object, addresses, count, std::min(piece, row_bytes - at));
      count = 0;
    }
  }
  if (count) count_access(*object, addresses, count, piece);
  if (shared) counts_.device_lines_shared += counts_.device_lines - lines_before;
  return reinterpret_cast<void*>(base);
}

void Observer::operation(const char* kind, const std::string& text, const mpsk_site& site) {
  if (!watch().check) return;
  Access access = describe(AccessKind::read, site, *thread_);
  access.kind = kind;
  finding(kind, "", text, nullptr, access);
}

// --- Counts ---

void Observer::count_bytes(const Object& object, uintptr_t address, size_t bytes, bool writes) {
  if (object.kind == mpsk_argument_threadgroup) {
    (writes ? counts_.threadgroup_written : counts_.threadgroup_read) += bytes;
    return;
  }
  (writes ? counts_.device_written : counts_.device_read) += bytes;
  std::atomic<uint64_t>* const bits = writes ? object.bytes_written : object.bytes_read;
  const size_t begin = address - object.storage;
  for (size_t at = begin; at < begin + bytes;) {
    const size_t bit = at % 64, here = std::min<size_t>(64 - bit, begin + bytes - at);
    const uint64_t mask = (here == 64 ? ~0ull : (1ull << here) - 1) << bit;
    std::atomic<uint64_t>& word = bits[at / 64];
    if ((word.load(std::memory_order_relaxed) & mask) != mask) word.fetch_or(mask, std::memory_order_relaxed);
    at += here;
  }
}

// One access by the lanes of a simdgroup: the cache lines or the banks that it takes, and the fewest it could take.
void Observer::count_access(const Object& object, uintptr_t* addresses, unsigned count, size_t bytes) {
  if (object.kind == mpsk_argument_constant) return;
  constexpr size_t line = 128, bank_bytes = 4, banks = 32;
  if (!std::is_sorted(addresses, addresses + count)) std::sort(addresses, addresses + count);
  const bool banked = object.kind == mpsk_argument_threadgroup;
  const size_t unit = banked ? bank_bytes : line;
  uint64_t distinct_units = 0, distinct_bytes = 0;
  uintptr_t next_unit = 0, end = 0;  // past what is counted
  uint32_t load[banks] = {};
  for (unsigned i = 0; i < count; ++i) {
    const uintptr_t from = std::max(addresses[i], end), to = addresses[i] + bytes;
    if (to > from) distinct_bytes += to - from;
    end = std::max(end, to);
    uintptr_t first = std::max(addresses[i] / unit, next_unit);
    const uintptr_t last = (to - 1) / unit;
    for (; first <= last; ++first) {
      ++distinct_units;
      if (banked) ++load[first % banks];
    }
    next_unit = std::max(next_unit, last + 1);
  }
  if (banked) {
    ++counts_.threadgroup_accesses;
    counts_.bank_cycles += *std::max_element(load, load + banks);
    counts_.bank_cycles_ideal += (distinct_units + banks - 1) / banks;
  } else {
    ++counts_.device_accesses;
    counts_.device_lines += distinct_units;
    counts_.device_lines_ideal += (distinct_bytes + line - 1) / line;
  }
}

// The lanes' accesses of one place in the source go together: the first of each, the second of each, ...
void Observer::flush(unsigned count) {
  if (!log_) return;
  const std::span lanes(log_->lanes, count);
  size_t longest = 0;
  bool uniform = true;
  for (const Log::Lane& lane : lanes) {
    longest = std::max(longest, lane.size);
    uniform = uniform && lane.size == lanes[0].size;
  }
  if (longest == 0) return;
  for (size_t i = 0; uniform && i < longest; ++i) {
    for (const Log::Lane& lane : lanes) uniform = uniform && lane.entries[i].goes_with(lanes[0].entries[i]);
  }
  uintptr_t addresses[MPSK_SIMD_WIDTH];
  if (uniform) {
    for (size_t i = 0; i < longest; ++i) {
      const Log::Entry& first = lanes[0].entries[i];
      bool in_order = true;  // each lane right behind the one before
      for (unsigned lane = 0; lane < count; ++lane) {
        addresses[lane] = lanes[lane].entries[i].address;
        in_order = in_order && addresses[lane] == first.address + lane * first.bytes;
      }
      const Object& object = objects_[first.object];
      if (in_order) {
        count_bytes(object, first.address, count * first.bytes, first.writes);
      } else {
        for (const uintptr_t address : std::span(addresses, count)) {
          count_bytes(object, address, first.bytes, first.writes);
        }
      }
      count_access(object, addresses, count, first.bytes);
    }
  } else {
    struct Group {
      uint16_t object;
      uint32_t bytes;
      unsigned count;
      uintptr_t addresses[MPSK_SIMD_WIDTH];
    };
    std::vector<Group> groups;
    std::map<std::tuple<const mpsk_site*, unsigned, uint16_t, uint32_t>, size_t> known;  // of a place, how often before
    for (const Log::Lane& lane : lanes) {
      std::unordered_map<const mpsk_site*, unsigned> times;
      for (const Log::Entry& entry : lane.all()) {
        count_bytes(objects_[entry.object], entry.address, entry.bytes, entry.writes);
        const auto [at, fresh] =
            known.try_emplace({entry.site, times[entry.site]++, entry.object, entry.bytes}, groups.size());
        if (fresh) groups.push_back({entry.object, entry.bytes, 0, {}});
        Group& group = groups[at->second];
        group.addresses[group.count++] = entry.address;
      }
    }
    for (Group& group : groups) count_access(objects_[group.object], group.addresses, group.count, group.bytes);
  }
  for (Log::Lane& lane : lanes) lane.size = 0;
}

}  // namespace mpsk::device

// --- What instrumented kernels call ---

#define MPSK_KERNEL_API extern "C" __attribute__((visibility("default"), used))

using mpsk::device::AccessKind;

namespace {

// Nobody watches the code that works out constants from others.
mpsk::device::Observer* observer() { return mpsk::device::Observer::current; }

template <AccessKind kind>
void* access(void* pointer, size_t bytes, const mpsk_site& site) {
  mpsk::device::Observer* const its = observer();
  return its ? its->access<kind>(pointer, bytes, site) : pointer;
}

}  // namespace

MPSK_KERNEL_API void* mpsk_read(void* pointer, const mpsk_site* site) {
  if (auto* const its = observer()) {
    if (void* const address = its->within(pointer, *site)) return address;
  }
  return access<AccessKind::read>(pointer, site->size, *site);
}
MPSK_KERNEL_API void* mpsk_write(void* pointer, const mpsk_site* site) {
  return access<AccessKind::write>(pointer, site->size, *site);
}
MPSK_KERNEL_API void* mpsk_atomic(void* pointer, const mpsk_site* site) {
  return access<AccessKind::atomic>(pointer, site->size, *site);
}
MPSK_KERNEL_API void* mpsk_read_bytes(void* pointer, unsigned long bytes, const mpsk_site* site) {
  return access<AccessKind::read>(pointer, bytes, *site);
}
MPSK_KERNEL_API void* mpsk_write_bytes(void* pointer, unsigned long bytes, const mpsk_site* site) {
  return access<AccessKind::write>(pointer, bytes, *site);
}
MPSK_KERNEL_API void* mpsk_matrix_memory(const void* memory, unsigned long elements_per_row, unsigned long x,
                                         unsigned long y, unsigned element_size, bool transpose, bool write,
                                         const mpsk_site* site) {
  return observer()->matrix(memory, elements_per_row, x, y, element_size, transpose, write, *site);
}
MPSK_KERNEL_API void* mpsk_tensor_memory(const void* memory, unsigned long rows, unsigned long row_bytes,
                                         long pitch_bytes, unsigned element_size, const mpsk_site* site) {
  return observer()->tensor(memory, rows, row_bytes, pitch_bytes, element_size, *site);
}
MPSK_KERNEL_API void mpsk_tensor_flops(unsigned long flops) { observer()->tensor_flops(flops); }
MPSK_KERNEL_API void mpsk_here(const mpsk_site* site) {
  if (observer()) observer()->here(site);
}
MPSK_KERNEL_API unsigned* mpsk_counters(mpsk_code* code) {
  if (auto* const its = observer()) return its->counters(*code);
  thread_local std::vector<unsigned> nobodys;
  nobodys.resize(std::max<size_t>(nobodys.size(), code->block_count));
  return nobodys.data();
}
MPSK_KERNEL_API void* mpsk_atomic_store(void* pointer, const mpsk_site* site) {
  return access<AccessKind::atomic_store>(pointer, site->size, *site);
}
MPSK_KERNEL_API void mpsk_shift(unsigned long amount, unsigned long most, const mpsk_site* site) {
  if (amount <= most || !observer()) return;
  observer()->operation("shift", "a shift by " + std::to_string(amount) + " of " + std::to_string(most + 1) + " bits",
                        *site);
}
MPSK_KERNEL_API void mpsk_zero_division(const mpsk_site* site) {
  if (observer()) observer()->operation("division", "an integer division by zero", *site);
}
