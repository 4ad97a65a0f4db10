#include <ATen/mps/MPSDevice.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "runtime/metal.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

// GPU cores of the largest version of each class, as Metal tells no number.
struct generation {
  std::string_view name;
  int base, pro, max, ultra;
};
constexpr generation generations[] = {
    {"M1", 8, 16, 32, 64},
    {"M2", 10, 19, 38, 76},
    {"M3", 10, 18, 40, 80},
    {"", 10, 20, 40, 80},
};

int cores_of(std::string_view name) {
  const auto is_a = [name](std::string_view word) { return name.find(word) != std::string_view::npos; };
  const generation& cores = *std::ranges::find_if(generations, is_a, &generation::name);
  return is_a("Ultra") ? cores.ultra : is_a("Max") ? cores.max : is_a("Pro") ? cores.pro : cores.base;
}

}  // namespace

id<MTLDevice> metal_device() { return at::mps::MPSDevice::getInstance()->device(); }

const Device& device() {
  static const Device facts = [] {
    @autoreleasepool {
      id<MTLDevice> metal = metal_device();
      int family = 7;
      // The enumerators of MTLGPUFamily are 1000 + n; older SDKs do not name the newest.
      while ([metal supportsFamily:static_cast<MTLGPUFamily>(1000 + family + 1)]) ++family;
      const std::string name = [[metal name] UTF8String];
      return Device{name, family, cores_of(name)};
    }
  }();
  return facts;
}

}  // namespace mpsk
