#include "executor.h"

#include <signal.h>

#include <algorithm>
#include <compare>
#include <cstdlib>
#include <numeric>
#include <random>
#include <sstream>
#include <utility>

namespace mpsk::device {

namespace {

// A worker's OS thread never changes while kernel code runs on it, whichever fiber that is.
[[gnu::tls_model("initial-exec")]] thread_local Worker* current_worker = nullptr;

std::string position(const mpsk_size& p) {
  return "(" + std::to_string(p.x) + ", " + std::to_string(p.y) + ", " + std::to_string(p.z) + ")";
}

std::string lane_list(unsigned mask) {
  std::string text;
  for (unsigned lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) {
    if (!(mask >> lane & 1)) continue;
    unsigned last = lane;
    while (last + 1 < MPSK_SIMD_WIDTH && (mask >> (last + 1) & 1)) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(lane) + (last > lane ? "-" + std::to_string(last) : "");
    lane = last;
  }
  return text;
}

// --- Signals: a kernel that touches memory that is not there ends its threadgroup, not the process ---

struct sigaction previous_actions[NSIG];

void on_memory_signal(int signal, siginfo_t* info, void* context) {
  if (Worker* const worker = Worker::current()) {
    if (signal == SIGFPE) worker->fault("division", "the smallest integer is divided by -1");
    worker->memory_fault(info->si_addr);
  }
  // Not a kernel's: whoever was asked before us decides.
  const struct sigaction& previous = previous_actions[signal];
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else {
    sigaction(signal, &previous, nullptr);  // the access is repeated when we return, and ends the process
  }
}

// A handler needs a stack of its own, as the fault may be that there is no more.
class SignalStack {
 public:
  SignalStack() : memory_(new std::byte[kBytes]) {
    const stack_t stack = {.ss_sp = memory_.get(), .ss_flags = 0, .ss_size = kBytes};
    sigaltstack(&stack, &previous_);
  }
  ~SignalStack() { sigaltstack(&previous_, nullptr); }

 private:
  static constexpr size_t kBytes = 64 * 1024;
  std::unique_ptr<std::byte[]> memory_;
  stack_t previous_{};
};

}  // namespace

void watch_memory() {
  thread_local const SignalStack stack;
  struct sigaction action{};
  action.sa_sigaction = &on_memory_signal;
  // The handler leaves by switching fibers, so the signal must not stay blocked.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE}) {
    struct sigaction present{};
    sigaction(signal, nullptr, &present);
    if (present.sa_sigaction != &on_memory_signal) sigaction(signal, &action, &previous_actions[signal]);
  }
}

Worker* Worker::current() { return current_worker; }

Worker::Worker()
    : stacks_(MPSK_MAX_THREADS_PER_THREADGROUP),
      fibers_(MPSK_MAX_THREADS_PER_THREADGROUP),
      threadgroup_memory_(static_cast<unsigned char*>(std::aligned_alloc(128, MPSK_MAX_THREADGROUP_BYTES)),
                          &std::free) {}

Worker::~Worker() = default;

void Worker::prepare(const mpsk_group& group) {
  const mpsk_size& threads = group.threads;
  const unsigned count = threads.x * threads.y * threads.z;
  const mpsk_size& full = group.grid->dispatch_threads_per_threadgroup;
  const mpsk_size origin = {group.position.x * full.x, group.position.y * full.y, group.position.z * full.z};
  lanes_.resize(count);
  unsigned i = 0;
  for (unsigned z = 0; z < threads.z; ++z) {
    for (unsigned y = 0; y < threads.y; ++y) {
      for (unsigned x = 0; x < threads.x; ++x, ++i) {
        Lane& lane = lanes_[i];
        lane.thread = {.group = &group,
                       .position_in_grid = {origin.x + x, origin.y + y, origin.z + z},
                       .position_in_threadgroup = {x, y, z},
                       .index_in_threadgroup = i,
                       .lane = i % MPSK_SIMD_WIDTH,
                       .simdgroup = i / MPSK_SIMD_WIDTH};
        lane.state = LaneState::unstarted;
      }
    }
  }
  simdgroups_.clear();
  for (unsigned first = 0; first < count; first += MPSK_SIMD_WIDTH) {
    simdgroups_.push_back({first, std::min(MPSK_SIMD_WIDTH, count - first)});
  }
  order_.resize(count);
  std::iota(order_.begin(), order_.end(), 0u);
  if (observer_ && observer_->watch().seed) {
    std::mt19937_64 random(*observer_->watch().seed + group.position.x + 31ull * group.position.y);
    for (const Simdgroup& simdgroup : simdgroups_) {
      std::shuffle(&order_[simdgroup.first], &order_[simdgroup.first] + simdgroup.count, random);
    }
    std::ranges::shuffle(simdgroups_, random);
  }
  simdgroup_ = 0;
  cursor_ = 0;
}

void Worker::run(const mpsk_kernel& kernel, const mpsk_group& group, void* const* slots) {
  current_worker = this;
  kernel_ = &kernel;
  slots_ = slots;
  prepare(group);
  running_ = &main_;
  enter(*next());
  current_worker = nullptr;
  if (fault_) {
    // The faulted lanes never end: their fibers are made anew.
    const Fault fault = *std::exchange(fault_, std::nullopt);
    fibers_made_ = 0;
    idle_fibers_.clear();
    throw fault;
  }
}

// Runs lanes for ever. A lane that ends hands its fiber to the next one that has not started, so that kernels that
// never wait run on a single fiber without a switch.
void Worker::lane_main(Fiber::Transfer from) {
  Fiber::arrived(from);
  Worker& worker = *current_worker;
  for (;;) {
    Lane* const lane = worker.current_;
    lane->fiber = worker.running_;
    mpsk_slot& slot = worker.stacks_.slot(static_cast<size_t>(lane->fiber - worker.fibers_.data()));
    slot.running = &lane->thread;
    slot.passes_by = lane->thread.lane != 0;
    slot.place = slot.depth = 0;
    lane->slot = &slot;
    if (worker.observer_) worker.observer_->run(&lane->thread);
    worker.kernel_->entry(&lane->thread, worker.slots_);
    lane->state = LaneState::ended;
    Lane* const next = worker.next();
    if (next && next->state == LaneState::unstarted) {
      worker.current_ = next;
      continue;
    }
    worker.idle_fibers_.push_back(worker.running_);
    if (next) {
      worker.enter(*next);
    } else {
      std::exchange(worker.running_, &worker.main_)->switch_to(worker.main_);
    }
  }
}

// Switches from the running fiber to the lane's.
void Worker::enter(Lane& lane) {
  current_ = &lane;
  Fiber* target = lane.fiber;
  if (lane.state == LaneState::unstarted) {
    if (idle_fibers_.empty()) {
      Fiber& made = fibers_[fibers_made_];
      made = Fiber(stacks_.top(fibers_made_), stacks_.bytes(), &Worker::lane_main);
      ++fibers_made_;
      target = &made;
    } else {
      target = idle_fibers_.back();
      idle_fibers_.pop_back();
    }
  }
  if (observer_) observer_->run(&lane.thread);
  if (target == running_) return;
  std::exchange(running_, target)->switch_to(*target);
}

void Worker::wait() {
  Lane* const self = current_;
  Lane* const lane = next();  // never null: this lane has not ended
  if (lane != self) {
    enter(*lane);
  } else {
    current_ = self;
    if (observer_) observer_->run(&self->thread);
  }
}

// Goes through the lanes of the current simdgroup, then releases its simd operations, then moves on to the next
// simdgroup, and at last releases the threadgroup barrier.
Lane* Worker::next() {
  for (;;) {
    const Simdgroup& simdgroup = simdgroups_[simdgroup_];
    while (cursor_ < simdgroup.count) {
      Lane& lane = lanes_[order_[simdgroup.first + cursor_++]];
      if (lane.state <= LaneState::ready) return &lane;
    }
    cursor_ = 0;
    if (observer_ && resume(simdgroup)) continue;
    if (release_simd(simdgroup)) continue;
    if (++simdgroup_ < simdgroups_.size()) continue;
    simdgroup_ = 0;
    if (!release_threadgroup()) return nullptr;
  }
}

namespace {

bool waits_for_simdgroup(const Lane& lane) {
  return lane.state == LaneState::simd || lane.state == LaneState::simdgroup_barrier;
}

// The order of the source: of the calls that led to where the lanes wait, then of the operations. Operations at one
// place of the source are told apart by their code.
std::strong_ordering in_source(const Lane& a, const Lane& b) {
  const mpsk_slot &x = *a.slot, &y = *b.slot;
  const auto place = [](const mpsk_slot& slot, unsigned i) { return i < slot.depth ? slot.calls[i] : slot.place; };
  const unsigned shared = std::min({x.depth, y.depth, MPSK_MAX_CALLS});
  for (unsigned i = 0; i <= shared && i < MPSK_MAX_CALLS; ++i) {
    if (const auto order = place(x, i) <=> place(y, i); order != 0) return order;
  }
  if (const auto order = x.place <=> y.place; order != 0) return order;
  return a.site <=> b.site;
}

// Whether two lanes wait at the same place, as they mostly do.
bool together(const Lane& a, const Lane& b) {
  const mpsk_slot &x = *a.slot, &y = *b.slot;
  if (a.site != b.site || x.place != y.place || x.depth != y.depth) return in_source(a, b) == 0;
  return std::equal(x.calls, x.calls + std::min(x.depth, MPSK_MAX_CALLS), y.calls);
}

}  // namespace

// What the lanes did since they last met is complete; the paused ones go on.
bool Worker::resume(const Simdgroup& simdgroup) {
  observer_->flush(simdgroup.count);
  bool any = false;
  for (unsigned i = 0; i < simdgroup.count; ++i) {
    Lane& lane = lanes_[simdgroup.first + i];
    if (lane.state != LaneState::paused) continue;
    lane.state = LaneState::ready;
    any = true;
  }
  return any;
}

bool Worker::release_simd(const Simdgroup& simdgroup) {
  Lane* const lanes = &lanes_[simdgroup.first];
  const Lane* first = nullptr;
  for (unsigned i = 0; i < simdgroup.count; ++i) {
    if (!waits_for_simdgroup(lanes[i])) continue;
    if (!first || (!together(lanes[i], *first) && in_source(lanes[i], *first) < 0)) first = &lanes[i];
  }
  if (!first) return false;
  unsigned active = 0, live = 0;
  void* payloads[MPSK_SIMD_WIDTH];
  const LaneState kind = first->state;
  for (unsigned i = 0; i < simdgroup.count; ++i) {
    Lane& lane = lanes[i];
    payloads[i] = nullptr;
    if (lane.state != LaneState::ended) live |= 1u << i;
    if (!waits_for_simdgroup(lane) || !together(lane, *first)) continue;
    active |= 1u << i;
    payloads[i] = lane.payload;
  }
  for (unsigned i = 0; i < simdgroup.count; ++i) {
    if (active >> i & 1) lanes[i].state = LaneState::ready;
  }
  current_ = &lanes[std::countr_zero(active)];
  if (kind == LaneState::simdgroup_barrier) {
    if (active != live) {
      fault("divergence",
            "simdgroup_barrier reached by lanes " + lane_list(active) + " of the live lanes " + lane_list(live),
            current_);
    }
    if (observer_) {
      const auto ended = simdgroup.count - static_cast<unsigned>(std::popcount(live));
      observer_->simdgroup_barrier(current_->flags, current_->thread, ended);
    }
  } else {
    if (observer_) {
      observer_->run(&current_->thread);
      if (current_->is_operation) observer_->simd_operation();
    }
    current_->combine(payloads, active);
  }
  return true;
}

bool Worker::release_threadgroup() {
  const Lane* first = nullptr;
  unsigned ended = 0;
  for (const Lane& lane : lanes_) {
    if (lane.state == LaneState::ended) ++ended;
    if (lane.state != LaneState::threadgroup_barrier) continue;
    if (!first) first = &lane;
    if (!together(lane, *first)) {
      fault("divergence",
            "divergent threadgroup_barrier: thread " + position(first->thread.position_in_threadgroup) +
                " and thread " + position(lane.thread.position_in_threadgroup) + " wait at different barriers",
            first);
    }
  }
  if (!first) return false;
  if (observer_) observer_->threadgroup_barrier(first->flags, first->thread, ended);
  for (Lane& lane : lanes_) {
    if (lane.state == LaneState::threadgroup_barrier) lane.state = LaneState::ready;
  }
  return true;
}

void Worker::simd(void* payload, Combine combine, bool is_operation, const void* site) {
  current_->is_operation = is_operation;
  current_->payload = payload;
  current_->combine = combine;
  current_->site = site;
  current_->state = LaneState::simd;
  wait();
}

void Worker::barrier(LaneState kind, unsigned flags, const void* site) {
  current_->site = site;
  current_->flags = flags;
  current_->state = kind;
  wait();
}

void Worker::pause() {
  current_->state = LaneState::paused;
  wait();
}

std::string Worker::describe(const Lane& lane) const {
  return "thread " + position(lane.thread.position_in_threadgroup) + " of threadgroup " +
         position(lane.thread.group->position);
}

void Worker::memory_fault(const void* address) {
  if (stacks_.overflows(address)) {
    fault("memory", "needs more than " + std::to_string(MPSK_STACK_BYTES / 1024) +
                        " KB of private memory, for its variables or by calling itself without an end");
  }
  std::ostringstream text;
  text << "touches memory that does not exist, at address " << address;
  fault("bounds", text.str());
}

Fault Worker::fault_at(const char* kind, const std::string& message, const Lane& lane) const {
  Fault fault(std::string("kernel ") + kernel_->name + ": " + message + ", at " + describe(lane) + " (" +
              kernel_->file + ":" + std::to_string(kernel_->line) + ")");
  fault.kind = kind;
  fault.message = message;
  fault.threadgroup = lane.thread.group->position;
  fault.thread = lane.thread.position_in_threadgroup;
  return fault;
}

void Worker::fault(const char* kind, const std::string& message, const Lane* at) {
  const Lane& lane = at ? *at : *current_;
  fault_ = fault_at(kind, message, lane);
  if (fault_->kind == "divergence") {
    fault_->scope = lane.state == LaneState::threadgroup_barrier ? "threadgroup" : "simdgroup";
  }
  if (observer_) fault_->site = observer_->where(lane.thread);
  leave();
}

void Worker::divided(const char* file, unsigned line) {
  fault_ =
      fault_at("division", std::string("integer division by zero or overflow at ") + file + ":" + std::to_string(line),
               *current_);
  fault_->file = file;
  fault_->line = line;
  leave();
}

void Worker::refuse() {
  fault_ = Fault("");
  leave();
}

void Worker::leave() {
  std::exchange(running_, &main_)->switch_to(main_);
  std::abort();  // a faulted fiber is never continued
}

}  // namespace mpsk::device
