// torch's at::mps on Linux: the device and the stream that <ATen/mps/*.h> declare and libtorch here lacks.
#include <ATen/mps/MPSStream.h>

#include <deque>
#include <exception>
#include <mutex>

#include "objects.h"
#include "torch_device.h"

using mpsk::AutoreleasePool;

namespace at::mps {

namespace {

// A command buffer is committed once it holds this much, so that memory stays bounded.
constexpr size_t max_commands = 512;
constexpr size_t max_bound_bytes = size_t{1} << 30;
// And no more than this many wait to run.
constexpr size_t max_pending = 8;

// What the stream's class, fixed by torch, has no field for. Guarded by the stream's queue.
struct Pending {
  std::deque<mpsk::Ref<MPSCommandBuffer*>> committed;  // oldest first
  std::string error;                                   // the first since the last wait
  unsigned long generation = 0;                        // of the block that fetched the encoder last
  size_t commands = 0;                                 // encoded since the process started
};

Pending& pending() {
  static Pending* const state = new Pending;
  return *state;
}

void wait_for_oldest(Pending& state) {
  const mpsk::Ref<MPSCommandBuffer*> oldest = std::move(state.committed.front());
  state.committed.pop_front();
  [oldest.get() waitUntilCompleted];
  if (state.error.empty()) state.error = [oldest.get() errorText];
}

// Runs on the queue; exceptions go round it, as none may leave what a queue runs.
template <class Work>
void sync_with_rethrow(dispatch_queue_t queue, const Work& work) {
  struct Call {
    const Work& work;
    std::exception_ptr failure;
  } call{work, nullptr};
  dispatch_sync_f(queue, &call, [](void* context) {
    auto& [todo, failure] = *static_cast<Call*>(context);
    try {
      todo();
    } catch (...) {
      failure = std::current_exception();
    }
  });
  if (call.failure) std::rethrow_exception(call.failure);
}

// Runs on the queue, entering it where the caller has not.
template <class Work>
void on_queue(dispatch_queue_t queue, const Work& work) {
  if (mpsk::on_queue(queue)) {
    const AutoreleasePool pool;
    work();
  } else {
    sync_with_rethrow(queue, work);
  }
}

}  // namespace

MPSStream::MPSStream(Stream stream) : _stream(stream) {
  TORCH_CHECK(_stream.device_type() == DeviceType::MPS, "MPSStream: expected a stream of device mps, got ", stream);
  _commandQueue = [MPSDevice::getInstance()->device() newCommandQueue];
  _serialQueue = dispatch_queue_create("metal gpu stream", DISPATCH_QUEUE_SERIAL);
}

MPSStream::~MPSStream() = default;  // the one stream lives as long as the process

MTLDevice_t MPSStream::device() const { return [_commandQueue device]; }

MPSCommandBuffer_t MPSStream::commandBuffer() {
  if (_commandBuffer == nil) _commandBuffer = [[MPSCommandBuffer commandBufferFromCommandQueue:_commandQueue] retain];
  return _commandBuffer;
}

MTLComputeCommandEncoder_t MPSStream::commandEncoder() {
  TORCH_CHECK(
      mpsk::on_queue(_serialQueue),
      "MPSStream::commandEncoder() was called outside dispatch_sync(stream->queue(), ...): another thread could "
      "encode at the same time");
  Pending& state = pending();
  const unsigned long generation = mpsk::queue_generation(_serialQueue);
  if (generation != state.generation) {
    state.generation = generation;
    if (_commandBuffer != nil &&
        ([_commandBuffer commandCount] >= max_commands || [_commandBuffer boundBytes] >= max_bound_bytes)) {
      commit();
      while (state.committed.size() > max_pending) wait_for_oldest(state);
    }
    // On a Mac the shared encoder still holds what other ops bound. No op may lean on that, so here it is gone.
    [static_cast<MPSKComputeEncoder*>(_commandEncoder) forgetBindings];
  }
  if (_commandEncoder == nil) _commandEncoder = [[commandBuffer() computeCommandEncoder] retain];
  return _commandEncoder;
}

void MPSStream::endKernelCoalescing() {
  [_commandEncoder endEncoding];
  [_commandEncoder release];
  _commandEncoder = nil;
}

void MPSStream::commit() {
  endKernelCoalescing();
  if (_commandBuffer == nil) return;
  [_commandBuffer commit];
  pending().committed.emplace_back(_commandBuffer);
  [_commandBuffer release];
  _commandBuffer = nil;
}

void MPSStream::commitAndWait() {
  commit();
  Pending& state = pending();
  while (!state.committed.empty()) wait_for_oldest(state);
  const std::string error = std::exchange(state.error, {});
  TORCH_CHECK(error.empty(), error);
}

void MPSStream::commitAndContinue() { commit(); }

void MPSStream::flush() { commit(); }

void MPSStream::synchronize(SyncType syncType) {
  if (syncType == SyncType::NONE) return;
  on_queue(_serialQueue, [&] {
    if (syncType == SyncType::COMMIT_AND_WAIT) {
      commitAndWait();
    } else if (syncType != SyncType::COMMIT_ADAPTIVE || _commandBuffer == nil ||
               [_commandBuffer commandCount] >= max_commands) {
      commit();
    }
  });
}

void MPSStream::addCompletedHandler(MTLCommandBufferHandler block) {
  on_queue(_serialQueue, [&] { [commandBuffer() addCompletedHandler:block]; });
}

MPSStream* MPSStreamImpl::_stream = nullptr;

MPSStreamImpl::MPSStreamImpl() = default;

MPSStream* MPSStreamImpl::getInstance() {
  static MPSStream* const stream = new MPSStream(Stream(Stream::UNSAFE, Device(DeviceType::MPS, 0), 0));
  return stream;
}

MPSStream* getCurrentMPSStream() { return MPSStreamImpl::getInstance(); }

MPSStream* getDefaultMPSStream() { return MPSStreamImpl::getInstance(); }

void dispatch_sync_with_rethrow(dispatch_queue_t queue, void (^block)()) { sync_with_rethrow(queue, block); }

MPSDevice* MPSDevice::_device = nullptr;

MPSDevice::MPSDevice() : _mtl_device(MTLCreateSystemDefaultDevice()) {}

MPSDevice::~MPSDevice() = default;

MPSDevice* MPSDevice::getInstance() {
  static MPSDevice* const device = new MPSDevice;
  return device;
}

bool MPSDevice::isMacOS13Plus(MacOSVersion version) const { return version <= MacOSVersion::MACOS_VER_15_0_PLUS; }

std::string MPSDevice::getName() const { return mpsk::chip().name; }

unsigned MPSDevice::getCoreCount() const { return mpsk::chip().gpu_cores; }

bool is_available() { return true; }

bool is_macos_13_or_newer(MacOSVersion version) { return MPSDevice::getInstance()->isMacOS13Plus(version); }

bool is_apple_family_or_newer(AppleGPUFamily family) {
  return [MPSDevice::getInstance()->device() supportsFamily:static_cast<MTLGPUFamily>(family)];
}

}  // namespace at::mps

namespace mpsk {

void* new_buffer(size_t bytes) {
  auto* buffer = static_cast<MPSKBuffer*>([[MPSKDevice shared] newBufferWithLength:bytes
                                                                           options:MTLResourceStorageModeShared]);
  [buffer fillWithOnes];
  return buffer;
}

void release_buffer(void* buffer) { [static_cast<id>(buffer) release]; }

void* buffer_contents(void* buffer) { return [static_cast<MPSKBuffer*>(buffer) memory]; }

size_t recommended_working_set() { return recommended_working_set(chip()); }

size_t max_buffer_length() { return max_buffer_length(chip()); }

void* command_buffer() {
  at::mps::MPSStream* stream = at::mps::getDefaultMPSStream();
  void* buffer = nullptr;
  at::mps::on_queue(stream->queue(), [&] {
    stream->endKernelCoalescing();  // the caller will open an encoder of its own
    buffer = stream->commandBuffer();
  });
  return buffer;
}

void* command_queue() { return at::mps::getDefaultMPSStream()->queue(); }

void commit() { at::mps::getDefaultMPSStream()->synchronize(at::mps::SyncType::COMMIT); }

void synchronize() { at::mps::getDefaultMPSStream()->synchronize(at::mps::SyncType::COMMIT_AND_WAIT); }

struct Event::State {
  Ref<MPSCommandBuffer*> buffer;  // the last one of the work before the event
};

Event::Event() : state_(new State) {}

Event::~Event() = default;

void Event::record() {
  at::mps::MPSStream* stream = at::mps::getDefaultMPSStream();
  at::mps::on_queue(stream->queue(), [&] {
    state_->buffer = Ref<MPSCommandBuffer*>(stream->commandBuffer());
    stream->synchronize(at::mps::SyncType::COMMIT);
  });
}

bool Event::recorded() const { return static_cast<bool>(state_->buffer); }

bool Event::complete() const { return !recorded() || [state_->buffer.get() status] >= MTLCommandBufferStatusCompleted; }

void Event::wait() const { [state_->buffer.get() waitUntilCompleted]; }

double Event::seconds() const { return [state_->buffer.get() GPUEndTime]; }

}  // namespace mpsk
