// The Objective-C classes behind <Metal/Metal.h>, shared by this folder's sources.
#pragma once

#import <Metal/Metal.h>
#import <MetalPerformanceShaders/MetalPerformanceShaders.h>

#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../device/device.h"
#include "chips.h"

namespace mpsk {

// Owns one reference to an Objective-C object.
template <class T = id>
class Ref {
 public:
  Ref() = default;
  explicit Ref(T object) : object_([object retain]) {}
  Ref(const Ref& other) : object_([other.object_ retain]) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nil)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() { [object_ release]; }
  T get() const { return object_; }
  explicit operator bool() const { return object_ != nil; }

 private:
  T object_ = nil;
};

// Drained also when an exception passes, unlike @autoreleasepool.
class AutoreleasePool {
 public:
  AutoreleasePool() : pool_([NSAutoreleasePool new]) {}
  ~AutoreleasePool() { [pool_ drain]; }
  AutoreleasePool(const AutoreleasePool&) = delete;
  AutoreleasePool& operator=(const AutoreleasePool&) = delete;

 private:
  NSAutoreleasePool* pool_;
};

inline std::string text(NSString* string) { return string == nil ? std::string() : std::string([string UTF8String]); }
inline NSString* string(std::string_view utf8) {
  return [[[NSString alloc] initWithBytes:utf8.data() length:utf8.size() encoding:NSUTF8StringEncoding] autorelease];
}

// A use that Apple's API validation stops. There it is no exception, so it may leave a dispatch block here.
struct Misuse final : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void invalid(const std::string& message);

// Stores an autoreleased NSError where the caller asked for one; returns nil for `return fail(...)`.
id fail(NSError** error, NSString* domain, NSInteger code, const std::string& message);

// One recorded dispatch with all that it needs to run later.
struct Command {
  device::Dispatch dispatch;
  std::vector<Ref<>> objects;                             // pipeline and buffers
  std::vector<std::shared_ptr<const std::byte[]>> bytes;  // of setBytes
};

id<MTLBinaryArchive> new_binary_archive(MTLBinaryArchiveDescriptor* descriptor, NSError** error);

// Bytes in buffers, now.
size_t allocated_bytes();

// What newLibraryWithSource: calls: returns the path of a metallib, or throws. The mode is "fast", "relaxed" or "safe".
using Compile = std::string (*)(const std::string& source, const std::string& std, const std::string& math_mode);
void set_compiler(Compile compile);

// Lets the running command end and drops the others: for the end of the process.
void shut_down();

// True in the child of a fork that happened after the device was used: nothing can run there.
bool in_bad_fork();
void refuse_in_bad_fork();

}  // namespace mpsk

@interface MPSKDevice : NSObject <MTLDevice> {
  MTLArchitecture* _architecture;
}
+ (MPSKDevice*)shared;
@end

@interface MPSKBuffer : NSObject <MTLBuffer> {
  NSString* _label;
  std::byte* _contents;
  NSUInteger _length;
  MTLResourceOptions _options;
  void (^_deallocator)(void* pointer, NSUInteger length);  // of memory that came from outside
  BOOL _owned;
}
- (id)initWithLength:(NSUInteger)length options:(MTLResourceOptions)options;
- (void)fillWithOnes;
- (id)initWithBytesNoCopy:(void*)pointer
                   length:(NSUInteger)length
                  options:(MTLResourceOptions)options
              deallocator:(void (^)(void* pointer, NSUInteger length))deallocator;
- (std::byte*)memory;  // of any storage mode
@end

@interface MPSKLibrary : NSObject <MTLLibrary> {
  NSString* _label;
  std::shared_ptr<const mpsk::device::Library>* _library;
}
- (id)initWithLibrary:(std::shared_ptr<const mpsk::device::Library>)library;
@end

@interface MPSKFunction : NSObject <MTLFunction> {
  NSString* _label;
  std::shared_ptr<const mpsk::device::Function>* _function;
  mpsk::device::ConstantValues* _constants;
}
- (id)initWithFunction:(std::shared_ptr<const mpsk::device::Function>)function
             constants:(mpsk::device::ConstantValues)constants;
- (const std::shared_ptr<const mpsk::device::Function>&)function;
- (const mpsk::device::ConstantValues&)constants;
@end

@interface MPSKPipeline : NSObject <MTLComputePipelineState> {
  NSString* _label;
  std::shared_ptr<const mpsk::device::Pipeline>* _pipeline;
  NSUInteger _maxThreads;
}
- (id)initWithPipeline:(std::shared_ptr<const mpsk::device::Pipeline>)pipeline
                 label:(NSString*)label
            maxThreads:(NSUInteger)maxThreads;
- (const std::shared_ptr<const mpsk::device::Pipeline>&)pipeline;
@end

@interface MPSKBinaryArchive : NSObject <MTLBinaryArchive> {
  NSString* _label;
  std::set<std::string>* _pipelines;
}
- (id)initWithPipelines:(std::set<std::string>)pipelines;
- (BOOL)holds:(MTLComputePipelineDescriptor*)descriptor;
@end

@interface MPSKCommandQueue : NSObject <MTLCommandQueue> {
  NSString* _label;
}
@end

@interface MPSCommandBuffer (Simulator)
- (id)initWithQueue:(MPSKCommandQueue*)queue;
- (void)record:(mpsk::Command)command;
- (void)encoderEnded;
- (size_t)commandCount;
- (size_t)boundBytes;      // of the buffers of all commands; one that is bound twice counts twice
- (std::string)errorText;  // empty: none
@end

@interface MPSKComputeEncoder : NSObject <MTLComputeCommandEncoder> {
  NSString* _label;
  MPSCommandBuffer* _commandBuffer;
  MTLDispatchType _dispatchType;
  struct mpsk_encoder_state* _state;
  NSUInteger _debugGroups;
  BOOL _ended;
}
- (id)initWithCommandBuffer:(MPSCommandBuffer*)commandBuffer dispatchType:(MTLDispatchType)dispatchType;
- (void)forgetBindings;  // and the pipeline
@end
