#include <ATen/mps/MPSStream.h>
#include <c10/util/Exception.h>

#include <exception>
#include <mutex>
#include <utility>

#include "runtime/metal.h"
#include "runtime/pipeline.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

struct Counters {
  std::mutex mutex;
  Launches launches;
};

Counters& counters() {
  static Counters* const instance = new Counters;
  return *instance;
}

MTLSize metal_size(Size size) { return MTLSizeMake(size.x, size.y, size.z); }

}  // namespace

void Encoder::use(std::shared_ptr<const Pipeline> kernel) {
  kernel_ = std::move(kernel);
  [encoder_ setComputePipelineState:kernel_->state()];
}

void Encoder::tensor(unsigned index, const at::Tensor& tensor) {
  if (tensor.numel() == 0) {  // its storage may be null, which is not a valid binding
    static constexpr std::byte zeros[16] = {};
    bytes(index, zeros, sizeof zeros);
    return;
  }
  // The data pointer of mps storage is the buffer itself; the offset is 64 bits wide as tensors may pass 4 GB.
  auto buffer = __builtin_bit_cast(id<MTLBuffer>, tensor.storage().data());
  auto offset = static_cast<NSUInteger>(tensor.storage_offset()) * static_cast<NSUInteger>(tensor.element_size());
  [encoder_ setBuffer:buffer offset:offset atIndex:index];
}

void Encoder::bytes(unsigned index, const void* data, size_t size) {
  [encoder_ setBytes:data length:size atIndex:index];
}

void Encoder::threadgroup_memory(unsigned index, size_t bytes) {
  [encoder_ setThreadgroupMemoryLength:(bytes + 15) / 16 * 16 atIndex:index];
}

void Encoder::dispatch(Size threadgroups, Size threads_per_threadgroup) {
  TORCH_CHECK(kernel_, "mpsk::", op_, ": dispatch before use");
  const std::string& label = kernel_->label();
  const size_t threads = threads_per_threadgroup.x * threads_per_threadgroup.y * threads_per_threadgroup.z;
  const size_t limit = [kernel_->state() maxTotalThreadsPerThreadgroup];
  TORCH_CHECK(threads <= limit, "mpsk::", op_, ": ", label, " allows ", limit, " threads per threadgroup, got ",
              threads);
  [encoder_ pushDebugGroup:[kernel_->state() label]];
  [encoder_ dispatchThreadgroups:metal_size(threadgroups) threadsPerThreadgroup:metal_size(threads_per_threadgroup)];
  [encoder_ popDebugGroup];
  std::lock_guard lock(counters().mutex);
  ++counters().launches[op_][label];
}

void Encoder::barrier() { [encoder_ memoryBarrierWithScope:MTLBarrierScopeBuffers]; }

void launch(const char* op, c10::function_ref<void(Encoder&)> encode) {
  at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
  // Exceptions must not cross the block: libdispatch's frames do not unwind.
  std::exception_ptr failure;
  std::exception_ptr* const caught = &failure;
  dispatch_sync(stream->queue(), ^{
    @autoreleasepool {
      try {
        Encoder encoder(op, stream->commandEncoder());
        encode(encoder);
      } catch (...) {
        *caught = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

Launches launches() {
  std::lock_guard lock(counters().mutex);
  return counters().launches;
}

void reset_launches() {
  std::lock_guard lock(counters().mutex);
  counters().launches.clear();
}

}  // namespace mpsk
