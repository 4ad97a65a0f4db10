#include <ATen/mps/MPSDevice.h>

#include <string>

#include "runtime/metal.h"
#include "runtime/runtime.h"

namespace mpsk {

namespace {

constexpr int kCores = 8;  // of an M1, where the GPU of a virtual machine tells no number

}  // namespace

id<MTLDevice> metal_device() { return at::mps::MPSDevice::getInstance()->device(); }

const Device& device() {
  static const Device facts = [] {
    @autoreleasepool {
      id<MTLDevice> metal = metal_device();
      int family = 7;
      // The enumerators of MTLGPUFamily are 1000 + n; older SDKs do not name the newest.
      while ([metal supportsFamily:static_cast<MTLGPUFamily>(1000 + family + 1)]) ++family;
      const auto cores = static_cast<int>(at::mps::MPSDevice::getInstance()->getCoreCount());
      return Device{[[metal name] UTF8String], family, cores > 0 ? cores : kCores};
    }
  }();
  return facts;
}

}  // namespace mpsk
