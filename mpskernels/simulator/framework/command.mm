// Command queues, command buffers and the compute encoder: commands are checked and recorded as they are encoded, and
// run later, in order, on one thread.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "objects.h"

using namespace mpsk;

// What a command buffer holds. The executor shares it while it runs.
struct mpsk_command_buffer {
  std::string label;
  std::vector<Command> commands;
  std::vector<MTLCommandBufferHandler> scheduled_handlers, completed_handlers;
  MPSKComputeEncoder* encoder = nil;  // the open one, not retained
  size_t bound_bytes = 0;

  std::atomic<MTLCommandBufferStatus> status = MTLCommandBufferStatusNotEnqueued;
  std::string error;  // written before the status
  double start = 0, end = 0;
};

namespace {

std::atomic<bool> used{false}, bad_fork{false};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// One thread that runs committed command buffers in order. Never destroyed: it may outlive the main thread's statics.
class Executor {
 public:
  static Executor& shared() {
    static Executor* const executor = new Executor;
    return *executor;
  }

  // The buffer stays alive until it has run.
  void submit(MPSCommandBuffer* buffer, mpsk_command_buffer* work) {
    refuse_in_bad_fork();
    const std::scoped_lock lock(mutex_);
    if (!used.exchange(true)) {
      pthread_atfork(nullptr, nullptr, [] { bad_fork = true; });
      std::thread([this] { serve(); }).detach();
    }
    pending_.push_back({Ref<MPSCommandBuffer*>(buffer), work});
    changed_.notify_all();
  }

  void wait(const mpsk_command_buffer& work) {
    refuse_in_bad_fork();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return work.status >= MTLCommandBufferStatusCompleted; });
  }

  void shut_down() {
    if (!used || bad_fork) return;
    std::unique_lock lock(mutex_);
    closing_ = true;
    changed_.wait(lock, [&] { return !running_; });
  }

 private:
  struct Submission {
    Ref<MPSCommandBuffer*> buffer;
    mpsk_command_buffer* work;
  };

  void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      running_ = false;
      changed_.notify_all();
      changed_.wait(lock, [&] { return !pending_.empty() && !closing_; });
      running_ = true;
      const Submission submission = std::move(pending_.front());
      pending_.pop_front();
      mpsk_command_buffer& work = *submission.work;
      work.status = MTLCommandBufferStatusScheduled;
      lock.unlock();
      {
        const AutoreleasePool pool;
        call(work.scheduled_handlers, submission.buffer.get());
        run(work);
        work.commands.clear();
      }
      lock.lock();
      work.status = work.error.empty() ? MTLCommandBufferStatusCompleted : MTLCommandBufferStatusError;
      changed_.notify_all();
      lock.unlock();
      {
        const AutoreleasePool pool;
        call(work.completed_handlers, submission.buffer.get());
      }
      lock.lock();
    }
  }

  static void call(std::vector<MTLCommandBufferHandler>& handlers, MPSCommandBuffer* buffer) {
    for (MTLCommandBufferHandler handler : handlers) {
      handler(buffer);
      Block_release(handler);
    }
    handlers.clear();
  }

  void run(mpsk_command_buffer& work) {
    work.start = now();
    try {
      for (const Command& command : work.commands) {
        if (closing_) break;
        device::run(command.dispatch);
      }
    } catch (const std::exception& fault) {
      work.error = fault.what();
    }
    work.end = now();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Submission> pending_;
  bool running_ = false;
  std::atomic<bool> closing_ = false;
};

std::string size_text(const MTLSize& size) {
  return "(" + std::to_string(size.width) + ", " + std::to_string(size.height) + ", " + std::to_string(size.depth) +
         ")";
}

}  // namespace

namespace mpsk {

void shut_down() { Executor::shared().shut_down(); }

bool in_bad_fork() { return bad_fork; }

void refuse_in_bad_fork() {
  if (bad_fork) {
    invalid("the mps device was used before this process forked, and cannot be used in the child; start it with "
            "multiprocessing's method \"spawn\"");
  }
}

}  // namespace mpsk

@implementation MPSKCommandQueue

- (void)dealloc {
  [_label release];
  [super dealloc];
}
- (NSString*)label {
  return _label;
}
- (void)setLabel:(NSString*)label {
  [_label autorelease];
  _label = [label copy];
}
- (id<MTLDevice>)device {
  return [MPSKDevice shared];
}
- (id<MTLCommandBuffer>)commandBuffer {
  return [[[MPSCommandBuffer alloc] initWithQueue:self] autorelease];
}
- (id<MTLCommandBuffer>)commandBufferWithUnretainedReferences {
  return [self commandBuffer];
}

@end

@implementation MPSCommandBuffer

+ (instancetype)commandBufferFromCommandQueue:(id<MTLCommandQueue>)commandQueue {
  return static_cast<MPSCommandBuffer*>([commandQueue commandBuffer]);
}

- (id)initWithQueue:(MPSKCommandQueue*)queue {
  if ((self = [super init]) == nil) return nil;
  _impl = new mpsk_command_buffer;
  _queue = [queue retain];
  return self;
}
- (void)dealloc {
  for (MTLCommandBufferHandler handler : _impl->scheduled_handlers) Block_release(handler);
  for (MTLCommandBufferHandler handler : _impl->completed_handlers) Block_release(handler);
  delete _impl;
  [_queue release];
  [super dealloc];
}

- (id<MTLCommandBuffer>)rootCommandBuffer {
  return self;
}
- (NSString*)label {
  return string(_impl->label);
}
- (void)setLabel:(NSString*)label {
  _impl->label = text(label);
}
- (id<MTLDevice>)device {
  return [MPSKDevice shared];
}
- (id<MTLCommandQueue>)commandQueue {
  return _queue;
}
- (MTLCommandBufferStatus)status {
  return _impl->status;
}
- (double)GPUStartTime {
  return _impl->status >= MTLCommandBufferStatusCompleted ? _impl->start : 0;
}
- (double)GPUEndTime {
  return _impl->status >= MTLCommandBufferStatusCompleted ? _impl->end : 0;
}
- (NSError*)error {
  if (_impl->status != MTLCommandBufferStatusError) return nil;
  NSError* error = nil;
  fail(&error, MTLCommandBufferErrorDomain, MTLCommandBufferErrorPageFault, _impl->error);
  return error;
}
- (std::string)errorText {
  return _impl->status == MTLCommandBufferStatusError ? _impl->error : std::string();
}

- (void)refuseAfterCommit:(const char*)what {
  if (_impl->status >= MTLCommandBufferStatusCommitted)
    invalid(std::string(what) + ": the command buffer is already committed");
}

- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
  return [self computeCommandEncoderWithDispatchType:MTLDispatchTypeSerial];
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:(MTLDispatchType)dispatchType {
  [self refuseAfterCommit:"computeCommandEncoder"];
  if (_impl->encoder != nil) {
    invalid("computeCommandEncoder: a command encoder is already encoding to this command buffer; end it first");
  }
  _impl->encoder = [[[MPSKComputeEncoder alloc] initWithCommandBuffer:self dispatchType:dispatchType] autorelease];
  return _impl->encoder;
}

- (void)record:(Command)command {
  for (const device::Binding& binding : command.dispatch.buffers) _impl->bound_bytes += binding.length;
  _impl->commands.push_back(std::move(command));
}
- (void)encoderEnded {
  _impl->encoder = nil;
}
- (size_t)commandCount {
  return _impl->commands.size();
}
- (size_t)boundBytes {
  return _impl->bound_bytes;
}

- (void)enqueue {
  [self refuseAfterCommit:"enqueue"];
  _impl->status = MTLCommandBufferStatusEnqueued;
}

- (void)commit {
  [self refuseAfterCommit:"commit"];
  if (_impl->encoder != nil) invalid("commit: the command buffer's encoder has not been ended; call endEncoding first");
  _impl->status = MTLCommandBufferStatusCommitted;
  Executor::shared().submit(self, _impl);
}

- (void)addScheduledHandler:(MTLCommandBufferHandler)block {
  [self refuseAfterCommit:"addScheduledHandler"];
  _impl->scheduled_handlers.push_back(Block_copy(block));
}
- (void)addCompletedHandler:(MTLCommandBufferHandler)block {
  [self refuseAfterCommit:"addCompletedHandler"];
  _impl->completed_handlers.push_back(Block_copy(block));
}

- (void)waitUntilScheduled {
  [self waitUntilCompleted];
}
- (void)waitUntilCompleted {
  if (_impl->status < MTLCommandBufferStatusCommitted) {
    invalid("waitUntilCompleted: the command buffer is not committed; a Mac waits for ever here");
  }
  Executor::shared().wait(*_impl);
}
- (void)pushDebugGroup:(NSString*)string {
}
- (void)popDebugGroup {
}

@end

namespace {

// What is set at a buffer index: a buffer from an offset on, or a copy of some bytes.
struct Slot {
  Ref<MPSKBuffer*> buffer;
  size_t offset = 0;
  std::shared_ptr<const std::byte[]> bytes;
  size_t length = 0;

  explicit operator bool() const { return buffer || bytes; }
  device::Binding binding() const {
    if (buffer) return {[buffer.get() memory] + offset, [buffer.get() length] - offset, offset};
    return {const_cast<std::byte*>(bytes.get()), length};
  }
};

}  // namespace

struct mpsk_encoder_state {
  Ref<MPSKPipeline*> pipeline;
  std::array<Slot, MPSK_MAX_BUFFERS> slots;
  std::array<size_t, MPSK_MAX_BUFFERS> threadgroup_bytes{};
};

namespace {

// Names the kernel in front of a complaint, and the argument where the kernel has one there.
std::string at(const mpsk_encoder_state& state, size_t index, bool threadgroup = false) {
  const std::string slot = (threadgroup ? "threadgroup memory " : "buffer ") + std::to_string(index);
  if (!state.pipeline) return "compute encoder: " + slot;
  const std::string label = text([state.pipeline.get() label]);
  const device::Function& function = [state.pipeline.get() pipeline]->function();
  for (const mpsk_argument& argument : function.arguments()) {
    if (argument.kind == mpsk_argument_builtin || argument.index != index) continue;
    if (threadgroup != (argument.kind == mpsk_argument_threadgroup)) continue;
    return label + ": argument " + argument.name + " (" + slot + ", " + argument.type + ")";
  }
  return label + ": " + slot;
}

void check_index(const mpsk_encoder_state& state, NSUInteger index, bool threadgroup = false) {
  if (index >= MPSK_MAX_BUFFERS) {
    invalid(at(state, index, threadgroup) + ": the index must be below " + std::to_string(MPSK_MAX_BUFFERS));
  }
}

void check_offset(const mpsk_encoder_state& state, NSUInteger index, NSUInteger offset, NSUInteger length) {
  if (offset >= length) {
    invalid(at(state, index) + ": offset " + std::to_string(offset) + " lies outside the buffer of " +
            std::to_string(length) + " bytes");
  }
}

// The checks that need a pipeline and all that is bound.
void check_arguments(const mpsk_encoder_state& state) {
  const device::Pipeline& pipeline = *[state.pipeline.get() pipeline];
  const auto arguments = pipeline.function().arguments();
  size_t threadgroup_bytes = pipeline.function().static_threadgroup_bytes();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const mpsk_argument& argument = arguments[i];
    if (argument.kind == mpsk_argument_builtin || !pipeline.argument_enabled(i)) continue;
    if (argument.kind == mpsk_argument_threadgroup) {
      const size_t length = state.threadgroup_bytes[argument.index];
      if (length == 0) {
        invalid(at(state, argument.index, true) + " has no length; call setThreadgroupMemoryLength:atIndex:");
      }
      if (argument.is_reference && length < argument.element_size) {
        invalid(at(state, argument.index, true) + ": expected at least " + std::to_string(argument.element_size) +
                " bytes, got " + std::to_string(length));
      }
      threadgroup_bytes += length;
      continue;
    }
    const Slot& slot = state.slots[argument.index];
    if (!slot) {
      invalid(at(state, argument.index) +
              " is not bound; call setBuffer:offset:atIndex: or setBytes:length:atIndex: in the block that dispatches");
    }
    const device::Binding binding = slot.binding();
    if (argument.element_align > 1 && reinterpret_cast<uintptr_t>(binding.data) % argument.element_align != 0) {
      invalid(at(state, argument.index) + ": offset " + std::to_string(slot.offset) + " is not a multiple of " +
              std::to_string(argument.element_align) + ", the alignment of its type");
    }
    if (argument.is_reference && binding.length < argument.element_size) {
      invalid(at(state, argument.index) + ": expected at least " + std::to_string(argument.element_size) +
              " bytes, got " + std::to_string(binding.length));
    }
  }
  if (threadgroup_bytes > MPSK_MAX_THREADGROUP_BYTES) {
    invalid(text([state.pipeline.get() label]) + ": " + std::to_string(threadgroup_bytes) +
            " bytes of threadgroup memory (" + std::to_string(pipeline.function().static_threadgroup_bytes()) +
            " of them declared in the kernel) exceed the limit of " + std::to_string(MPSK_MAX_THREADGROUP_BYTES));
  }
}

void check_grid(const mpsk_encoder_state& state, const MTLSize& threads, const MTLSize& group) {
  const std::string label = text([state.pipeline.get() label]);
  const auto some = [](const MTLSize& size) { return size.width > 0 && size.height > 0 && size.depth > 0; };
  if (!some(group)) invalid(label + ": threadsPerThreadgroup must not be 0 in any dimension, got " + size_text(group));
  const NSUInteger limit = [state.pipeline.get() maxTotalThreadsPerThreadgroup];
  // Each alone first, so that the product cannot overflow.
  if (std::max({group.width, group.height, group.depth}) > limit || group.width * group.height * group.depth > limit) {
    invalid(label + ": threadsPerThreadgroup " + size_text(group) + " exceeds maxTotalThreadsPerThreadgroup, " +
            std::to_string(limit));
  }
  if (!some(threads))
    invalid(label + ": the grid must not be empty in any dimension, got " + size_text(threads) + " threads");
  if (std::max({threads.width, threads.height, threads.depth}) > UINT32_MAX) {
    invalid(label + ": the grid must be below 2^32 threads in each dimension, got " + size_text(threads));
  }
}

}  // namespace

@implementation MPSKComputeEncoder

- (id)initWithCommandBuffer:(MPSCommandBuffer*)commandBuffer dispatchType:(MTLDispatchType)dispatchType {
  if ((self = [super init]) == nil) return nil;
  _commandBuffer = [commandBuffer retain];
  _dispatchType = dispatchType;
  _state = new mpsk_encoder_state;
  return self;
}
- (void)dealloc {
  delete _state;
  [_label release];
  [_commandBuffer release];
  [super dealloc];
}

- (mpsk_encoder_state&)open {
  if (_ended) invalid("compute encoder: used after endEncoding");
  return *_state;
}
- (void)forgetBindings {
  [self open] = {};
}

- (NSString*)label {
  return _label;
}
- (void)setLabel:(NSString*)label {
  [_label autorelease];
  _label = [label copy];
}
- (id<MTLDevice>)device {
  return [MPSKDevice shared];
}
- (MTLDispatchType)dispatchType {
  return _dispatchType;
}

- (void)setComputePipelineState:(id<MTLComputePipelineState>)state {
  if (state == nil) invalid("setComputePipelineState: the pipeline is nil");
  [self open].pipeline = Ref<MPSKPipeline*>(static_cast<MPSKPipeline*>(state));
}

- (void)setBytes:(const void*)bytes length:(NSUInteger)length atIndex:(NSUInteger)index {
  mpsk_encoder_state& state = [self open];
  check_index(state, index);
  if (length == 0 || length > 4096) {
    invalid(at(state, index) + ": setBytes takes 1 to 4096 bytes, got " + std::to_string(length));
  }
  std::shared_ptr<std::byte[]> copy(new (std::align_val_t(256)) std::byte[length],
                                    [](std::byte* memory) { operator delete[](memory, std::align_val_t(256)); });
  std::memcpy(copy.get(), bytes, length);
  state.slots[index] = {.buffer = {}, .offset = 0, .bytes = std::move(copy), .length = length};
}

- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index {
  mpsk_encoder_state& state = [self open];
  check_index(state, index);
  if (buffer == nil) {
    state.slots[index] = {};
    return;
  }
  check_offset(state, index, offset, [buffer length]);
  state.slots[index] = {
      .buffer = Ref<MPSKBuffer*>(static_cast<MPSKBuffer*>(buffer)), .offset = offset, .bytes = {}, .length = 0};
}

- (void)setBufferOffset:(NSUInteger)offset atIndex:(NSUInteger)index {
  mpsk_encoder_state& state = [self open];
  check_index(state, index);
  Slot& slot = state.slots[index];
  if (!slot.buffer) invalid(at(state, index) + ": setBufferOffset needs a buffer there first");
  check_offset(state, index, offset, [slot.buffer.get() length]);
  slot.offset = offset;
}

- (void)setBuffers:(const id<MTLBuffer>[])buffers offsets:(const NSUInteger[])offsets withRange:(NSRange)range {
  for (NSUInteger i = 0; i < range.length; ++i) {
    [self setBuffer:buffers[i] offset:offsets[i] atIndex:range.location + i];
  }
}

- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index {
  mpsk_encoder_state& state = [self open];
  check_index(state, index, true);
  if (length % 16 != 0) {
    invalid(at(state, index, true) + ": the length must be a multiple of 16, got " + std::to_string(length));
  }
  if (length > MPSK_MAX_THREADGROUP_BYTES) {
    invalid(at(state, index, true) + ": " + std::to_string(length) + " bytes exceed the limit of " +
            std::to_string(MPSK_MAX_THREADGROUP_BYTES));
  }
  state.threadgroup_bytes[index] = length;
}

- (void)dispatchThreadgroups:(MTLSize)threadgroupsPerGrid threadsPerThreadgroup:(MTLSize)threadsPerThreadgroup {
  constexpr NSUInteger limit = UINT32_MAX;
  const auto threads = [&](NSUInteger groups, NSUInteger size) { return groups > limit ? groups : groups * size; };
  [self dispatchThreads:MTLSizeMake(threads(threadgroupsPerGrid.width, threadsPerThreadgroup.width),
                                    threads(threadgroupsPerGrid.height, threadsPerThreadgroup.height),
                                    threads(threadgroupsPerGrid.depth, threadsPerThreadgroup.depth))
      threadsPerThreadgroup:threadsPerThreadgroup];
}

- (void)dispatchThreads:(MTLSize)threadsPerGrid threadsPerThreadgroup:(MTLSize)threadsPerThreadgroup {
  const mpsk_encoder_state& state = [self open];
  if (!state.pipeline) {
    invalid("dispatch: no pipeline is set; call setComputePipelineState: in the block that dispatches");
  }
  check_grid(state, threadsPerGrid, threadsPerThreadgroup);
  check_arguments(state);

  Command command;
  command.dispatch.pipeline = [state.pipeline.get() pipeline];
  command.dispatch.label = text([state.pipeline.get() label]);
  command.dispatch.threads = {threadsPerGrid.width, threadsPerGrid.height, threadsPerGrid.depth};
  command.dispatch.threads_per_threadgroup = {threadsPerThreadgroup.width, threadsPerThreadgroup.height,
                                              threadsPerThreadgroup.depth};
  const device::Pipeline& pipeline = *command.dispatch.pipeline;
  const auto arguments = pipeline.function().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const unsigned kind = arguments[i].kind, index = arguments[i].index;
    if (kind == mpsk_argument_builtin || !pipeline.argument_enabled(i)) continue;
    if (kind == mpsk_argument_threadgroup) {
      command.dispatch.threadgroup_bytes[index] = state.threadgroup_bytes[index];
      continue;
    }
    const Slot& slot = state.slots[index];
    command.dispatch.buffers[index] = slot.binding();
    if (slot.buffer) {
      command.objects.emplace_back(slot.buffer.get());
    } else {
      command.bytes.push_back(slot.bytes);
    }
  }
  [_commandBuffer record:std::move(command)];
}

// Dispatches run one after the other, so a barrier has nothing to do.
- (void)memoryBarrierWithScope:(MTLBarrierScope)scope {
  [self open];
}
- (void)memoryBarrierWithResources:(const id<MTLResource>[])resources count:(NSUInteger)count {
  [self open];
}

- (void)insertDebugSignpost:(NSString*)string {
  [self open];
}
- (void)pushDebugGroup:(NSString*)string {
  [self open];
  ++_debugGroups;
}
- (void)popDebugGroup {
  [self open];
  if (_debugGroups == 0) invalid("compute encoder: popDebugGroup without a pushDebugGroup");
  --_debugGroups;
}

- (void)endEncoding {
  [self open];
  if (_debugGroups != 0)
    invalid("compute encoder: endEncoding with " + std::to_string(_debugGroups) + " open debug groups");
  _ended = YES;
  *_state = {};
  [_commandBuffer encoderEnded];
}

@end
