// Metal, for the runtime's own files.
#pragma once

#import <Metal/Metal.h>

#include <string>
#include <utility>

namespace mpsk {

// Owns one reference to an Objective-C object; takes over the reference it is made from.
template <class Object>
class Retained {
 public:
  Retained() = default;
  explicit Retained(Object object) : object_(object) {}
  Retained(Retained&& other) noexcept : object_(std::exchange(other.object_, nil)) {}
  Retained& operator=(Retained&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Retained() { [object_ release]; }
  Object get() const { return object_; }
  explicit operator bool() const { return object_ != nil; }

 private:
  Object object_ = nil;
};

// Takes the kernels from a library that the binary itself holds; `open` is called when one is first asked for.
void set_metallib(id<MTLLibrary> (*open)(id<MTLDevice> device, NSError** error));

id<MTLDevice> metal_device();

inline NSString* ns_string(const std::string& text) { return [NSString stringWithUTF8String:text.c_str()]; }
inline std::string message(NSError* error) {
  return error == nil ? "no reason given" : [[error localizedDescription] UTF8String];
}

}  // namespace mpsk
