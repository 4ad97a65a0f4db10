#include "device.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>

#include <boost/crc.hpp>

#include "executor.h"
#include "host.h"
#include "watch.h"

namespace mpsk::device {

namespace {

constexpr char kMagic[8] = "MPSKLIB";
constexpr char kTrailerMagic[8] = "MPSKEND";

std::string quoted(const std::string& text) { return "'" + text + "'"; }

// Kernel code refers to functions of this library, which Python loaded privately.
void make_own_symbols_global() {
  static const bool done = [] {
    Dl_info self{};
    dladdr(reinterpret_cast<void*>(&make_own_symbols_global), &self);
    return dlopen(self.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD) != nullptr;
  }();
  (void)done;
}

// A damaged shared object can kill the process that maps it, so the file is checked first. Returns its checksum.
uint32_t verify_file(const std::string& path) {
  const auto refuse = [&](const std::string& why) { throw Error("metallib " + quoted(path) + " " + why); };
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path))
    refuse(access(path.c_str(), F_OK) == 0 ? "cannot be read" : "does not exist");
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.starts_with("MTLB")) {
    refuse(
        "was built by Apple's compiler for a GPU; the simulator needs one built by its own compiler from the sources");
  }
  if (bytes.size() < 4 || bytes.compare(0, 4,
                                        "\x7f"
                                        "ELF") != 0)
    refuse("is not a metallib");
  mpsk_metallib_trailer trailer;
  if (bytes.size() < sizeof trailer) refuse("is truncated");
  std::memcpy(&trailer, bytes.data() + bytes.size() - sizeof trailer, sizeof trailer);
  if (std::memcmp(trailer.magic, kTrailerMagic, sizeof kTrailerMagic) != 0) refuse("is truncated or not a metallib");
  if (trailer.abi_version != MPSK_ABI_VERSION) {
    refuse("is of version " + std::to_string(trailer.abi_version) + ", this simulator reads version " +
           std::to_string(MPSK_ABI_VERSION) + "; compile it again");
  }
  const size_t body = bytes.size() - sizeof trailer;
  boost::crc_32_type crc;
  crc.process_bytes(bytes.data(), body);
  if (trailer.size != body || trailer.crc32 != crc.checksum()) refuse("is damaged: its checksum does not match");
  return trailer.crc32;
}

// The loader takes a file for one that it has by its name alone, though another has been put in its place. So each file
// that ever had this name gets another spelling of it.
std::string spelling_of_its_own(const std::string& path) {
  static std::mutex mutex;
  static std::map<std::string, std::vector<std::pair<dev_t, ino_t>>> files;
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) return path;
  const std::lock_guard lock(mutex);
  auto& seen = files[path];
  const std::pair file(status.st_dev, status.st_ino);
  auto at = std::ranges::find(seen, file);
  if (at == seen.end()) at = seen.insert(at, file);
  std::string spelling = std::filesystem::absolute(path).parent_path().string() + "/";
  for (auto i = seen.begin(); i != at; ++i) spelling += "./";
  return spelling + std::filesystem::path(path).filename().string();
}

}  // namespace

Function::Function(std::shared_ptr<const Library> library, const mpsk_kernel& kernel)
    : library_(std::move(library)), kernel_(kernel), name_(kernel.name) {
  // A record belongs to the entry that its code was emitted into: the last one that starts before it.
  const mpsk_metallib_header& header = library_->header();
  const auto entry = reinterpret_cast<uintptr_t>(kernel.entry);
  uintptr_t end = UINTPTR_MAX;
  for (const auto* other = header.kernels_begin; other != header.kernels_end; ++other) {
    const auto start = reinterpret_cast<uintptr_t>(other->entry);
    if (start > entry) end = std::min(end, start);
  }
  std::map<unsigned long, const mpsk_threadgroup_record*> declarations;
  for (const auto* record = header.threadgroup_begin; record != header.threadgroup_end; ++record) {
    if (record->where >= entry && record->where < end) declarations[record->id] = record;
  }
  size_t offset = 0;
  for (const auto& [id, record] : declarations) {
    offset = (offset + record->align - 1) / record->align * record->align;
    declarations_.resize(std::max<size_t>(declarations_.size(), id + 1));
    declarations_[id] = {offset, record->size, kernel.threadgroup_names[id]};
    offset += record->size;
  }
  static_threadgroup_bytes_ = (offset + 15) / 16 * 16;
}

size_t Function::max_total_threads() const {
  return kernel_.max_total_threads ? kernel_.max_total_threads : MPSK_MAX_THREADS_PER_THREADGROUP;
}

std::shared_ptr<const Library> Library::open(const std::string& path) {
  const uint32_t checksum = verify_file(path);
  make_own_symbols_global();
  std::shared_ptr<Library> library(new Library);
  library->checksum_ = checksum;
  library->path_ = path;
  library->handle_ = dlopen(spelling_of_its_own(path).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library->handle_) throw Error("metallib " + quoted(path) + " cannot be loaded: " + dlerror());
  library->header_ = static_cast<const mpsk_metallib_header*>(dlsym(library->handle_, "mpsk_metallib"));
  if (!library->header_ || std::memcmp(library->header_->magic, kMagic, sizeof kMagic) != 0) {
    throw Error("metallib " + quoted(path) + " has no kernel table");
  }
  if (!host_supports(library->header_->target)) {
    throw Error("metallib " + quoted(path) + " was compiled for " + library->header_->target +
                ", which this processor does not support; compile it again here");
  }
  return library;
}

Library::~Library() {
  if (handle_) dlclose(handle_);
}

std::vector<std::string> Library::function_names() const {
  std::vector<std::string> names;
  for (const auto* kernel = header_->kernels_begin; kernel != header_->kernels_end; ++kernel) {
    names.emplace_back(kernel->name);
  }
  std::ranges::sort(names);
  return names;
}

std::shared_ptr<const Function> Library::function(const std::string& name) const {
  for (const auto* kernel = header_->kernels_begin; kernel != header_->kernels_end; ++kernel) {
    if (name == kernel->name) return std::make_shared<Function>(shared_from_this(), *kernel);
  }
  return nullptr;
}

namespace {

// Function constants are variables of the metallib, so only one pipeline's values can be in place at a time.
std::mutex execution_mutex;

}  // namespace

Pipeline::Pipeline(std::shared_ptr<const Function> function, ConstantValues constants)
    : function_(std::move(function)), constants_(std::move(constants)) {
  const auto label = [&](const mpsk_constant& constant) {
    return "function " + quoted(function_->name()) + ": constant " + quoted(constant.name) + " (index " +
           std::to_string(constant.index) + ", " + constant.type + ")";
  };
  for (const mpsk_constant* constant : function_->constants()) {
    const auto value = constants_.find(constant->index);
    if (value == constants_.end()) {
      if (!constant->optional) throw Error(label(*constant) + " needs a value");
    } else if (value->second.size() != constant->size) {
      throw Error(label(*constant) + " takes " + std::to_string(constant->size) + " bytes, got " +
                  std::to_string(value->second.size()));
    }
  }
  const std::lock_guard lock(execution_mutex);
  activate();
  for (const mpsk_argument& argument : function_->arguments()) {
    argument_enabled_.push_back(!argument.enabled || *argument.enabled);
  }
}

std::shared_ptr<const Pipeline> Pipeline::instrumented() const {
  const std::lock_guard lock(twin_mutex_);
  if (!twin_) {
    const auto library = device::instrumented(*function_->kernel_.source);
    twin_ = std::make_shared<Pipeline>(library->function(function_->name()), constants_);
  }
  return twin_;
}

void Pipeline::activate() const {
  if (function_->constants().empty()) return;
  for (const mpsk_constant* constant : function_->constants()) {
    const auto value = constants_.find(constant->index);
    *constant->defined = value != constants_.end();
    if (*constant->defined) {
      std::memcpy(constant->value, value->second.data(), constant->size);
    } else {
      std::memset(constant->value, 0, constant->size);
    }
  }
  const mpsk_metallib_header& header = function_->library().header();
  for (auto derive = header.derived_begin; derive != header.derived_end; ++derive) (*derive)();
}

unsigned worker_count() {
  static const unsigned count = [] {
    const char* asked = std::getenv("MPSK_THREADS");
    if (asked == nullptr || *asked == '\0') return std::clamp(std::thread::hardware_concurrency(), 1u, 16u);
    const bool digits = std::string_view(asked).find_first_not_of("0123456789") == std::string_view::npos;
    const unsigned long long wanted = digits ? std::strtoull(asked, nullptr, 10) : 0;
    if (wanted == 0) throw Error("MPSK_THREADS=" + std::string(asked) + " is no positive number");
    return static_cast<unsigned>(std::min(wanted, 16ull));
  }();
  return count;
}

// One dispatch on its way through the workers.
class Execution {
 public:
  Execution(const Dispatch& dispatch, const Watch& watch);
  void work(Worker& worker) noexcept;
  void finish();
  // Under check one worker does all, so that one threadgroup runs at a time and reports come in one order.
  bool by_one() const { return observation_ && observation_->watch().check; }

 private:
  size_t threadgroup(size_t turn) const;

  const Dispatch& dispatch_;
  std::shared_ptr<const Pipeline> pipeline_;
  const mpsk_kernel& kernel_;
  mpsk_grid grid_;
  std::optional<Observation> observation_;
  std::vector<size_t> threadgroup_offsets_;
  std::vector<void*> buffers_;
  size_t threadgroups_;
  size_t turns_;  // of threadgroups that run
  size_t batch_;
  std::atomic<size_t> taken_ = 0;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

namespace {

size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

mpsk_size narrow(const Size& size) {
  return {static_cast<unsigned>(size.x), static_cast<unsigned>(size.y), static_cast<unsigned>(size.z)};
}

}  // namespace

Execution::Execution(const Dispatch& dispatch, const Watch& watch)
    : dispatch_(dispatch),
      pipeline_(watch ? dispatch.pipeline->instrumented() : dispatch.pipeline),
      kernel_(pipeline_->function().kernel_) {
  const Size& threads = dispatch.threads;
  const Size& group = dispatch.threads_per_threadgroup;
  const Size groups = {divide_up(threads.x, group.x), divide_up(threads.y, group.y), divide_up(threads.z, group.z)};
  grid_ = {narrow(threads), narrow(groups), narrow(group)};
  threadgroups_ = groups.count();
  turns_ = watch.only ? *watch.only < threadgroups_ : threadgroups_;
  batch_ = std::clamp<size_t>(threadgroups_ / (worker_count() * 16), 1, 64);
  if (watch) observation_.emplace(watch, dispatch, grid_);
  pipeline_->activate();

  size_t offset = pipeline_->function().static_threadgroup_bytes();
  for (size_t i = 0; i < kernel_.argument_count; ++i) {
    const mpsk_argument& argument = kernel_.arguments[i];
    const bool is_threadgroup = argument.kind == mpsk_argument_threadgroup;
    threadgroup_offsets_.push_back(offset);
    if (is_threadgroup) offset += dispatch.threadgroup_bytes[argument.index];
    const bool is_buffer = argument.kind == mpsk_argument_device || argument.kind == mpsk_argument_constant;
    void* const data = is_buffer ? dispatch.buffers[argument.index].data : nullptr;
    buffers_.push_back(observation_ && data ? observation_->tagged(i) : data);
  }
}

void Execution::work(Worker& worker) noexcept {
  const FlushDenormals flush;
  watch_memory();
  const Function& function = pipeline_->function();
  std::optional<Observer> observer;
  if (observation_) observer.emplace(*observation_, function).threadgroup_memory(worker.threadgroup_memory());
  const struct Watched {
    Watched(Worker& its_worker, Observer* watcher) : worker(its_worker) { worker.watched_by(watcher); }
    ~Watched() { worker.watched_by(nullptr); }
    Worker& worker;
  } watched(worker, observer ? &*observer : nullptr);
  const auto array = [&](size_t offset, size_t bytes, const char* name) {
    unsigned char* const memory = worker.threadgroup_memory() + offset;
    return observer ? observer->add_threadgroup_array(memory, bytes, name) : memory;
  };
  std::vector<void*> slots = buffers_;
  for (size_t i = 0; i < slots.size(); ++i) {
    const mpsk_argument& argument = kernel_.arguments[i];
    if (argument.kind != mpsk_argument_threadgroup) continue;
    slots[i] = array(threadgroup_offsets_[i], dispatch_.threadgroup_bytes[argument.index], argument.name);
  }
  std::vector<unsigned char*> declared;
  for (const auto& declaration : function.declarations_) {
    declared.push_back(array(declaration.offset, declaration.size, declaration.name));
  }
  const mpsk_size& full = grid_.dispatch_threads_per_threadgroup;
  const unsigned full_threads = full.x * full.y * full.z;
  mpsk_group group = {.grid = &grid_,
                      .position = {},
                      .threads = {},
                      .simdgroups = 0,
                      .dispatch_simdgroups = (full_threads + MPSK_SIMD_WIDTH - 1) / MPSK_SIMD_WIDTH,
                      .threadgroup_memory = declared.data()};
  const auto extent = [](unsigned total, unsigned step, unsigned position) {
    return std::min<size_t>(step, total - static_cast<size_t>(step) * position);
  };
  try {
    for (;;) {
      const size_t begin = taken_.fetch_add(batch_);
      const size_t end = std::min(begin + batch_, turns_);
      if (begin >= end) return;
      for (size_t turn = begin; turn < end; ++turn) {
        const size_t i = threadgroup(turn);
        const mpsk_size& groups = grid_.threadgroups;
        group.position = {static_cast<unsigned>(i % groups.x), static_cast<unsigned>(i / groups.x % groups.y),
                          static_cast<unsigned>(i / groups.x / groups.y)};
        group.threads = {static_cast<unsigned>(extent(grid_.threads.x, full.x, group.position.x)),
                         static_cast<unsigned>(extent(grid_.threads.y, full.y, group.position.y)),
                         static_cast<unsigned>(extent(grid_.threads.z, full.z, group.position.z))};
        const unsigned threads = group.threads.x * group.threads.y * group.threads.z;
        group.simdgroups = (threads + MPSK_SIMD_WIDTH - 1) / MPSK_SIMD_WIDTH;
        if (observer) observer->begin(group, i);
        worker.run(kernel_, group, slots.data());
        if (observer) observer->end();
      }
    }
  } catch (...) {
    taken_ = turns_;  // the others stop at their next batch
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

// Which threadgroup's turn it is: a seed permutes them.
size_t Execution::threadgroup(size_t turn) const {
  if (observation_ && observation_->watch().only) return *observation_->watch().only;
  if (!observation_ || !observation_->watch().seed) return turn;
  const uint64_t seed = *observation_->watch().seed;
  size_t step = (seed * 2654435761u + 1) % threadgroups_;
  while (std::gcd(step, threadgroups_) != 1) ++step;
  return (turn * step + seed) % threadgroups_;
}

void Execution::finish() {
  if (error_) {
    try {
      std::rethrow_exception(error_);
    } catch (const Fault& fault) {
      if (!by_one()) throw;
      observation_->faulted(fault);
    }
  }
  if (observation_) observation_->finish();
}

namespace {

// The calling thread is the first worker; the others wait here between dispatches.
class Pool {
 public:
  explicit Pool(unsigned workers) : workers_(workers), process_(getpid()) {
    for (unsigned i = 1; i < workers; ++i) threads_.emplace_back([this, i] { serve(i); });
  }

  // Ends the process with its threads waiting: joining them in a static destructor would hang after a fork.
  pid_t process() const { return process_; }

  void run(Execution& execution) {
    if (execution.by_one()) return execution.work(workers_[0]);
    {
      const std::lock_guard lock(mutex_);
      execution_ = &execution;
      busy_ = static_cast<unsigned>(threads_.size());
      ++generation_;
    }
    wake_.notify_all();
    execution.work(workers_[0]);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  void serve(unsigned i) {
    for (uint64_t seen = 0;;) {
      Execution* execution;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        execution = execution_;
      }
      execution->work(workers_[i]);
      const std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<Worker> workers_;
  std::vector<std::thread> threads_;
  pid_t process_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Execution* execution_ = nullptr;
  unsigned busy_ = 0;
  uint64_t generation_ = 0;
};

}  // namespace

void run(const Dispatch& dispatch) {
  if (dispatch.threads.count() == 0) return;
  const Watch watch = current_watch();
  if (watch) (void)dispatch.pipeline->instrumented();  // compiled before the lock is taken, which that needs as well
  const std::lock_guard lock(execution_mutex);
  static Pool* pool = nullptr;
  // A forked child has the memory of its parent's pool, but not its threads.
  if (!pool || pool->process() != getpid()) pool = new Pool(worker_count());
  Execution execution(dispatch, watch);
  pool->run(execution);
  execution.finish();
}

}  // namespace mpsk::device
