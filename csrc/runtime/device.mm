#include <ATen/mps/MPSDevice.h>

#include "runtime/metal.h"
#include "runtime/runtime.h"

namespace mpsk {

id<MTLDevice> metal_device() { return at::mps::MPSDevice::getInstance()->device(); }

const Device& device() {
  static const Device facts = [] {
    @autoreleasepool {
      id<MTLDevice> metal = metal_device();
      int family = 7;
      // The enumerators of MTLGPUFamily are 1000 + n; older SDKs do not name the newest.
      while ([metal supportsFamily:static_cast<MTLGPUFamily>(1000 + family + 1)]) ++family;
      const std::string name = [[metal name] UTF8String];
      const auto is_a = [&name](const char* word) { return name.find(word) != std::string::npos; };
      return Device{name, family, is_a("Ultra") ? 80 : is_a("Max") ? 40 : is_a("Pro") ? 20 : 10};
    }
  }();
  return facts;
}

}  // namespace mpsk
