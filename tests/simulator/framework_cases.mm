// Uses of the Metal classes, right and wrong, each by name. Prints "name<TAB>outcome": what the case returned, or
// "error: " and the text of the exception. Driven by test_framework.py.
#include <ATen/mps/MPSStream.h>
#import <Metal/Metal.h>
#include <torch/mps.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace mpsk {
using Compile = std::string (*)(const std::string& source, const std::string& std, const std::string& math_mode);
void set_compiler(Compile compile);
}  // namespace mpsk

namespace {

id<MTLDevice> device;
id<MTLLibrary> library;
id<MTLCommandQueue> queue;

std::string text(NSString* string) { return string == nil ? "nil" : [string UTF8String]; }

id<MTLBuffer> floats(std::vector<float> values) {
  return [[device newBufferWithBytes:values.data() length:values.size() * sizeof(float) options:0] autorelease];
}
const float* contents(id<MTLBuffer> buffer) { return static_cast<const float*>([buffer contents]); }

id<MTLComputePipelineState> pipeline(const char* name, MTLFunctionConstantValues* constants = nil) {
  NSError* error = nil;
  NSString* wanted = [NSString stringWithUTF8String:name];
  id<MTLFunction> function = constants == nil
                                 ? [library newFunctionWithName:wanted]
                                 : [library newFunctionWithName:wanted constantValues:constants error:&error];
  id<MTLComputePipelineState> state =
      function == nil ? nil : [device newComputePipelineStateWithFunction:function error:&error];
  if (state == nil) throw std::runtime_error("NSError " + text([error localizedDescription]));
  return [state autorelease];
}

MTLFunctionConstantValues* has_bias(bool value) {
  MTLFunctionConstantValues* constants = [[MTLFunctionConstantValues new] autorelease];
  [constants setConstantValue:&value type:MTLDataTypeBool atIndex:0];
  return constants;
}

MTLComputePipelineDescriptor* descriptor(const char* name, MTLFunctionConstantValues* constants = nil) {
  MTLComputePipelineDescriptor* result = [[MTLComputePipelineDescriptor new] autorelease];
  result.computeFunction = [[library newFunctionWithName:[NSString stringWithUTF8String:name]
                                          constantValues:constants
                                                   error:nullptr] autorelease];
  return result;
}

// A folder for one case.
std::string scratch() {
  std::string path = std::string(getenv("TMPDIR") == nullptr ? "/tmp" : getenv("TMPDIR")) + "/archives-XXXXXX";
  return mkdtemp(path.data());
}

NSURL* file_url(const std::string& path) {
  return [NSURL fileURLWithPath:[NSString stringWithUTF8String:path.c_str()]];
}

id<MTLBinaryArchive> archive(NSURL* url, NSError** error = nullptr) {
  MTLBinaryArchiveDescriptor* from = [[MTLBinaryArchiveDescriptor new] autorelease];
  from.url = url;
  return [[device newBinaryArchiveWithDescriptor:from error:error] autorelease];
}

// A command buffer with an encoder on which `kernel` is set; `axpy` has its arguments bound too.
struct Encoding {
  explicit Encoding(const char* kernel = "axpy")
      : buffer([queue commandBuffer]), encoder([buffer computeCommandEncoder]) {
    [encoder setComputePipelineState:pipeline(kernel)];
    const float scale = 2;
    [encoder setBuffer:x offset:0 atIndex:0];
    [encoder setBuffer:y offset:0 atIndex:1];
    [encoder setBytes:&scale length:sizeof scale atIndex:2];
  }
  void dispatch(NSUInteger threads = 4, NSUInteger group = 4) {
    [encoder dispatchThreads:MTLSizeMake(threads, 1, 1) threadsPerThreadgroup:MTLSizeMake(group, 1, 1)];
  }
  void finish() {
    [encoder endEncoding];
    [buffer commit];
    [buffer waitUntilCompleted];
  }
  std::string result() const {
    std::string list;
    for (int i = 0; i < 4; ++i) list += std::to_string(static_cast<int>(contents(y)[i])) + " ";
    return list;
  }

  id<MTLBuffer> x = floats({1, 2, 3, 4}), y = floats({0, 0, 0, 0});
  id<MTLCommandBuffer> buffer;
  id<MTLComputeCommandEncoder> encoder;
};

// The complaint about `work`, which must not have run through.
template <class Work>
std::string complaint(const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "none";
}

using Case = std::function<std::string()>;

const std::vector<std::pair<const char*, Case>> cases = {
    // What works.
    {"runs_after_commit",
     [] {
       Encoding e;
       e.dispatch();
       [e.encoder endEncoding];
       std::this_thread::sleep_for(std::chrono::milliseconds(20));
       const std::string before = e.result();
       [e.buffer commit];
       [e.buffer waitUntilCompleted];
       return before + "| " + e.result() + "status " + std::to_string([e.buffer status]);
     }},
    {"commands_keep_buffers_and_bytes",
     [] {
       Encoding e;
       id<MTLBuffer> gone = [device newBufferWithLength:16 options:0];
       float* values = static_cast<float*>([gone contents]);
       for (int i = 0; i < 4; ++i) values[i] = 5;
       float scale = 3;
       [e.encoder setBuffer:gone offset:0 atIndex:0];
       [e.encoder setBytes:&scale length:4 atIndex:2];
       e.dispatch();
       scale = 100;
       [gone release];
       [e.encoder setBuffer:nil offset:0 atIndex:0];
       e.finish();
       return e.result();
     }},
    {"offsets_select_parts",
     [] {
       Encoding e;
       [e.encoder setBufferOffset:8 atIndex:0];
       e.dispatch(2, 2);
       e.finish();
       return e.result();
     }},
    {"commands_run_in_order",
     [] {
       Encoding e;
       e.dispatch();
       [e.encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
       [e.encoder setBuffer:e.y offset:0 atIndex:0];
       e.dispatch();
       e.dispatch();
       e.finish();
       return e.result();
     }},
    {"threadgroups_make_a_grid",
     [] {
       Encoding e;
       [e.encoder dispatchThreadgroups:MTLSizeMake(2, 1, 1) threadsPerThreadgroup:MTLSizeMake(2, 1, 1)];
       e.finish();
       return e.result();
     }},
    {"completed_handler_is_called",
     [] {
       static std::atomic<int> calls;
       Encoding e;
       [e.buffer addCompletedHandler:^(id<MTLCommandBuffer> buffer) {
         calls += [buffer status] == MTLCommandBufferStatusCompleted ? 1 : 100;
       }];
       e.dispatch();
       e.finish();
       while (calls == 0) std::this_thread::yield();
       return std::to_string(calls);
     }},
    {"scheduled_handler_comes_first",
     [] {
       static std::string calls;
       static std::atomic<bool> completed;
       Encoding e;
       [e.buffer addCompletedHandler:^(id<MTLCommandBuffer>) {
         calls += "completed ";
         completed = true;
       }];
       [e.buffer addScheduledHandler:^(id<MTLCommandBuffer> buffer) {
         calls += [buffer status] < MTLCommandBufferStatusCompleted ? "scheduled " : "late ";
       }];
       e.dispatch();
       e.finish();
       while (!completed) std::this_thread::yield();
       return calls;
     }},
    {"times_enclose_the_work",
     [] {
       Encoding e;
       const double before = [e.buffer GPUEndTime];
       e.dispatch();
       e.finish();
       return std::string(before == 0 && 0 < [e.buffer GPUStartTime] && [e.buffer GPUStartTime] <= [e.buffer GPUEndTime]
                              ? "in order"
                              : "out of order");
     }},
    {"buffers_in_a_range",
     [] {
       Encoding e;
       const id<MTLBuffer> buffers[] = {e.x, e.y};
       const NSUInteger offsets[] = {8, 4};
       [e.encoder setBuffers:buffers offsets:offsets withRange:NSMakeRange(0, 2)];
       e.dispatch(2, 2);
       e.finish();
       return e.result();
     }},
    {"private_memory_is_the_devices_alone",
     [] {
       id<MTLBuffer> between = [[device newBufferWithLength:16 options:MTLResourceStorageModePrivate] autorelease];
       Encoding e;
       [e.encoder setBuffer:between offset:0 atIndex:1];
       e.dispatch();
       [e.encoder setBuffer:between offset:0 atIndex:0];
       [e.encoder setBuffer:e.y offset:0 atIndex:1];
       e.dispatch();
       e.finish();
       return e.result() + ([between contents] == nullptr ? "nothing to see" : "in sight");
     }},
    {"no_copy_uses_the_memory_given",
     [] {
       constexpr size_t bytes = 16384;
       auto* memory = static_cast<float*>(std::aligned_alloc(bytes, bytes));
       for (int i = 0; i < 4; ++i) memory[i] = 10;
       static int freed = 0;
       id<MTLBuffer> buffer = [device newBufferWithBytesNoCopy:memory
                                                        length:bytes
                                                       options:0
                                                   deallocator:^(void* pointer, NSUInteger length) {
                                                     freed += length == bytes;
                                                     std::free(pointer);
                                                   }];
       @autoreleasepool {
         Encoding e;
         [e.encoder setBuffer:buffer offset:0 atIndex:1];
         e.dispatch();
         e.finish();
       }
       const int last = static_cast<int>(memory[3]), before = freed;
       [buffer release];
       return std::to_string(last) + " freed " + std::to_string(before) + " " + std::to_string(freed);
     }},
    {"memory_is_given_back",
     [] {
       const NSUInteger before = [device currentAllocatedSize];
       id<MTLBuffer> buffer = [device newBufferWithLength:20000 options:0];
       const NSUInteger held = [device currentAllocatedSize] - before;
       [buffer release];
       return std::to_string(held) + " " + std::to_string([device currentAllocatedSize] - before);
     }},
    {"large_buffers_are_zeros_on_a_page",
     [] {
       const NSUInteger before = [device currentAllocatedSize], length = (NSUInteger{1} << 24) + 1;
       id<MTLBuffer> buffer = [device newBufferWithLength:length options:0];
       const auto* memory = static_cast<const char*>([buffer contents]);
       const auto written = std::count_if(memory, memory + length, [](char byte) { return byte != 0; });
       const auto beyond_page = reinterpret_cast<uintptr_t>(memory) % 16384;
       [buffer release];
       return std::to_string(written) + " " + std::to_string(beyond_page) + " " +
              std::to_string([device currentAllocatedSize] - before);
     }},
    {"threadgroup_memory",
     [] {
       Encoding e("scratch");
       [e.encoder setBuffer:e.y offset:0 atIndex:0];
       [e.encoder setThreadgroupMemoryLength:16 atIndex:0];
       e.dispatch();
       e.finish();
       return e.result();
     }},
    {"disabled_argument_needs_no_buffer",
     [] {
       Encoding e;
       [e.encoder setComputePipelineState:pipeline("maybe_bias", has_bias(false))];
       [e.encoder setBuffer:nil offset:0 atIndex:1];
       [e.encoder setBuffer:e.y offset:0 atIndex:0];
       e.dispatch();
       e.finish();
       return e.result();
     }},
    {"constant_by_name",
     [] {
       Encoding e;
       MTLFunctionConstantValues* constants = [[MTLFunctionConstantValues new] autorelease];
       const bool yes = true;
       [constants setConstantValue:&yes type:MTLDataTypeBool withName:@"has_bias"];
       [e.encoder setComputePipelineState:pipeline("maybe_bias", constants)];
       [e.encoder setBuffer:e.y offset:0 atIndex:0];
       [e.encoder setBuffer:e.x offset:0 atIndex:1];
       e.dispatch();
       e.finish();
       return e.result();
     }},
    {"constants_dictionary",
     [] {
       id<MTLFunction> function = [[library newFunctionWithName:@"maybe_bias"] autorelease];
       MTLFunctionConstant* constant = [function.functionConstantsDictionary objectForKey:@"has_bias"];
       return text(constant.name) + " " + std::to_string(constant.type) + " " + std::to_string(constant.index) +
              (constant.required ? " required" : " optional");
     }},
    {"library_names",
     [] {
       return text([library.functionNames componentsJoinedByString:@" "]) + " " +
              text([library newFunctionWithName:@"none"] == nil ? @"nil" : @"found");
     }},
    {"pipeline_facts",
     [] {
       id<MTLComputePipelineState> state = pipeline("limited");
       return text(state.label) + " " + std::to_string(state.maxTotalThreadsPerThreadgroup) + " " +
              std::to_string(state.threadExecutionWidth) + " " +
              std::to_string(pipeline("wide").staticThreadgroupMemoryLength);
     }},
    {"descriptor_limits_threads",
     [] {
       MTLComputePipelineDescriptor* descriptor = [[MTLComputePipelineDescriptor new] autorelease];
       descriptor.label = @"mine";
       descriptor.computeFunction = [[library newFunctionWithName:@"axpy"] autorelease];
       descriptor.maxTotalThreadsPerThreadgroup = 128;
       id<MTLComputePipelineState> state = [device newComputePipelineStateWithDescriptor:descriptor
                                                                                 options:MTLPipelineOptionNone
                                                                              reflection:nullptr
                                                                                   error:nullptr];
       return text(state.label) + " " + std::to_string(state.maxTotalThreadsPerThreadgroup);
     }},
    {"library_from_data",
     [] {
       NSData* bytes = [NSData dataWithContentsOfFile:[NSString stringWithUTF8String:getenv("METALLIB")]];
       dispatch_data_t data =
           dispatch_data_create([bytes bytes], [bytes length], nullptr, DISPATCH_DATA_DESTRUCTOR_DEFAULT);
       NSError* error = nil;
       id<MTLLibrary> loaded = [[device newLibraryWithData:data error:&error] autorelease];
       dispatch_release(data);
       return std::to_string([loaded.functionNames count] == [library.functionNames count]);
     }},
    {"fault_is_an_error_of_its_buffer",
     [] {
       Encoding bad("divergent");
       [bad.encoder setBuffer:bad.y offset:0 atIndex:0];
       bad.dispatch();
       bad.finish();
       Encoding good;
       good.dispatch();
       good.finish();
       return std::to_string([bad.buffer status]) + " " + text([[bad.buffer error] localizedDescription]) + " | " +
              std::to_string([good.buffer status]) + " " + good.result();
     }},

    // What Apple's validation stops.
    {"unbound_buffer",
     [] {
       Encoding e;
       [e.encoder setBuffer:nil offset:0 atIndex:1];
       e.dispatch();
       return "ran";
     }},
    {"enabled_argument_unbound",
     [] {
       Encoding e;
       [e.encoder setComputePipelineState:pipeline("maybe_bias", has_bias(true))];
       [e.encoder setBuffer:nil offset:0 atIndex:1];
       e.dispatch();
       return "ran";
     }},
    {"offset_outside",
     [] {
       Encoding e;
       [e.encoder setBuffer:e.x offset:16 atIndex:0];
       return "ran";
     }},
    {"later_offset_outside",
     [] {
       Encoding e;
       [e.encoder setBufferOffset:20 atIndex:1];
       return "ran";
     }},
    {"offset_without_buffer",
     [] {
       Encoding e;
       [e.encoder setBufferOffset:0 atIndex:7];
       return "ran";
     }},
    {"offset_misaligned",
     [] {
       Encoding e;
       [e.encoder setBufferOffset:2 atIndex:0];
       e.dispatch(1, 1);
       return "ran";
     }},
    {"bytes_over_4096",
     [] {
       Encoding e;
       [e.encoder setBytes:std::vector<char>(4097).data() length:4097 atIndex:2];
       return "ran";
     }},
    {"bytes_empty",
     [] {
       Encoding e;
       [e.encoder setBytes:"" length:0 atIndex:2];
       return "ran";
     }},
    {"index_31",
     [] {
       Encoding e;
       [e.encoder setBuffer:e.x offset:0 atIndex:31];
       return "ran";
     }},
    {"struct_too_small",
     [] {
       Encoding e;
       [e.encoder setBytes:"ab" length:2 atIndex:2];
       e.dispatch();
       return "ran";
     }},
    {"too_many_threads",
     [] {
       Encoding e;
       e.dispatch(4096, 1025);
       return "ran";
     }},
    {"too_many_threads_for_kernel",
     [] {
       Encoding e("limited");
       e.dispatch(128, 65);
       return "ran";
     }},
    {"threads_overflow",
     [] {
       Encoding e;
       [e.encoder dispatchThreads:MTLSizeMake(4, 1, 1) threadsPerThreadgroup:MTLSizeMake(1ul << 32, 1ul << 32, 1)];
       return "ran";
     }},
    {"no_threads_in_group",
     [] {
       Encoding e;
       e.dispatch(4, 0);
       return "ran";
     }},
    {"empty_grid",
     [] {
       Encoding e;
       e.dispatch(0, 4);
       return "ran";
     }},
    {"grid_too_large",
     [] {
       Encoding e;
       e.dispatch(1ul << 32, 4);
       return "ran";
     }},
    {"groups_too_many",
     [] {
       Encoding e;
       [e.encoder dispatchThreadgroups:MTLSizeMake(1ul << 62, 1, 1) threadsPerThreadgroup:MTLSizeMake(4, 1, 1)];
       return "ran";
     }},
    {"threadgroup_length_missing",
     [] {
       Encoding e("scratch");
       [e.encoder setBuffer:e.y offset:0 atIndex:0];
       e.dispatch();
       return "ran";
     }},
    {"threadgroup_length_not_16",
     [] {
       Encoding e("scratch");
       [e.encoder setThreadgroupMemoryLength:20 atIndex:0];
       return "ran";
     }},
    {"threadgroup_length_too_large",
     [] {
       Encoding e("scratch");
       [e.encoder setThreadgroupMemoryLength:32784 atIndex:0];
       return "ran";
     }},
    {"threadgroup_sum_too_large",
     [] {
       Encoding e("wide");
       [e.encoder setThreadgroupMemoryLength:16400 atIndex:0];
       e.dispatch();
       return "ran";
     }},
    {"no_pipeline",
     [] {
       id<MTLComputeCommandEncoder> encoder = [[queue commandBuffer] computeCommandEncoder];
       [encoder dispatchThreads:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(1, 1, 1)];
       return "ran";
     }},
    {"nil_pipeline",
     [] {
       Encoding e;
       [e.encoder setComputePipelineState:nil];
       return "ran";
     }},
    {"encoder_after_end",
     [] {
       Encoding e;
       [e.encoder endEncoding];
       e.dispatch();
       return "ran";
     }},
    {"encoder_ended_twice",
     [] {
       Encoding e;
       [e.encoder endEncoding];
       [e.encoder endEncoding];
       return "ran";
     }},
    {"two_encoders",
     [] {
       Encoding e;
       [e.buffer computeCommandEncoder];
       return "ran";
     }},
    {"commit_twice",
     [] {
       Encoding e;
       e.finish();
       [e.buffer commit];
       return "ran";
     }},
    {"commit_with_open_encoder",
     [] {
       Encoding e;
       [e.buffer commit];
       return "ran";
     }},
    {"encoder_after_commit",
     [] {
       Encoding e;
       e.finish();
       [e.buffer computeCommandEncoder];
       return "ran";
     }},
    {"handler_after_commit",
     [] {
       Encoding e;
       e.finish();
       [e.buffer addCompletedHandler:^(id<MTLCommandBuffer>){
       }];
       return "ran";
     }},
    {"wait_before_commit",
     [] {
       Encoding e;
       [e.encoder endEncoding];
       [e.buffer waitUntilCompleted];
       return "ran";
     }},
    {"unbalanced_debug_group",
     [] {
       Encoding e;
       [e.encoder popDebugGroup];
       return "ran";
     }},
    {"debug_group_left_open",
     [] {
       Encoding e;
       [e.encoder pushDebugGroup:@"group"];
       [e.encoder endEncoding];
       return "ran";
     }},
    {"enqueue_after_commit",
     [] {
       Encoding e;
       e.finish();
       [e.buffer enqueue];
       return "ran";
     }},
    {"scheduled_handler_after_commit",
     [] {
       Encoding e;
       e.finish();
       [e.buffer addScheduledHandler:^(id<MTLCommandBuffer>){
       }];
       return "ran";
     }},
    {"threadgroup_struct_too_small",
     [] {
       Encoding e("shared_struct");
       [e.encoder setBuffer:e.y offset:0 atIndex:0];
       [e.encoder setThreadgroupMemoryLength:16 atIndex:0];
       e.dispatch();
       return "ran";
     }},
    {"pipeline_without_function",
     [] {
       [device newComputePipelineStateWithFunction:nil error:nullptr];
       return "ran";
     }},
    {"pipeline_of_too_many_threads",
     [] {
       MTLComputePipelineDescriptor* descriptor = [[MTLComputePipelineDescriptor new] autorelease];
       descriptor.computeFunction = [[library newFunctionWithName:@"axpy"] autorelease];
       descriptor.maxTotalThreadsPerThreadgroup = 1025;
       [device newComputePipelineStateWithDescriptor:descriptor
                                             options:MTLPipelineOptionNone
                                          reflection:nullptr
                                               error:nullptr];
       return "ran";
     }},
    {"constant_index_too_large",
     [] {
       [[[MTLFunctionConstantValues new] autorelease] setConstantValue:"" type:MTLDataTypeBool atIndex:65536];
       return "ran";
     }},
    {"constant_range_wraps",
     [] {
       [[[MTLFunctionConstantValues new] autorelease] setConstantValues:""
                                                                   type:MTLDataTypeBool
                                                              withRange:NSRange{NSUIntegerMax, 1}];
       return "ran";
     }},
    {"constant_missing",
     [] {
       pipeline("maybe_bias");
       return "ran";
     }},
    {"constant_missing_in_values",
     [] {
       pipeline("maybe_bias", [[MTLFunctionConstantValues new] autorelease]);
       return "ran";
     }},
    {"constant_ill_typed",
     [] {
       MTLFunctionConstantValues* constants = [[MTLFunctionConstantValues new] autorelease];
       const int one = 1;
       [constants setConstantValue:&one type:MTLDataTypeInt atIndex:0];
       pipeline("maybe_bias", constants);
       return "ran";
     }},
    {"constant_of_no_type",
     [] {
       [[MTLFunctionConstantValues new] setConstantValue:"" type:MTLDataTypeStruct atIndex:0];
       return "ran";
     }},
    {"buffer_empty",
     [] {
       [device newBufferWithLength:0 options:0];
       return "ran";
     }},
    {"buffer_too_long",
     [] {
       [device newBufferWithLength:[device maxBufferLength] + 1 options:0];
       return "ran";
     }},
    {"no_copy_unaligned",
     [] {
       static char memory[64];
       [device newBufferWithBytesNoCopy:memory + 1 length:16 options:0 deallocator:nil];
       return "ran";
     }},
    {"library_missing",
     [] {
       NSError* error = nil;
       [device newLibraryWithURL:[NSURL fileURLWithPath:@"/nowhere/x.metallib"] error:&error];
       return std::to_string([error code]) + " " + text([error localizedDescription]);
     }},

    {"library_from_source_without_compiler",
     [] {
       NSError* error = nil;
       [device newLibraryWithSource:@"kernel void f() {}" options:nil error:&error];
       return std::to_string([error code]) + " " + text([error localizedDescription]);
     }},

    // Binary archives.
    {"archive_gives_what_was_added",
     [] {
       const std::string folder = scratch();
       id<MTLBinaryArchive> made = archive(nil);
       [made addComputePipelineFunctionsWithDescriptor:descriptor("axpy") error:nullptr];
       [made addComputePipelineFunctionsWithDescriptor:descriptor("maybe_bias", has_bias(true)) error:nullptr];
       const bool written = [made serializeToURL:file_url(folder + "/one") error:nullptr];
       NSArray* archives = [NSArray arrayWithObjects:archive(nil), archive(file_url(folder + "/one")), nil];
       std::filesystem::remove_all(folder);
       std::string seen = written ? "written" : "not written";
       const auto create = [&](MTLComputePipelineDescriptor* from, MTLPipelineOption options) {
         NSError* error = nil;
         id state = [[device newComputePipelineStateWithDescriptor:from options:options reflection:nullptr
                                                             error:&error] autorelease];
         seen += ", " + (state == nil ? text([error localizedDescription]) : text([state label]));
       };
       for (MTLComputePipelineDescriptor* from : {descriptor("axpy"), descriptor("maybe_bias", has_bias(true)),
                                                  descriptor("maybe_bias", has_bias(false)), descriptor("limited")}) {
         from.binaryArchives = archives;
         create([[from copy] autorelease], MTLPipelineOptionFailOnBinaryArchiveMiss);
       }
       MTLComputePipelineDescriptor* other = descriptor("axpy");
       other.binaryArchives = archives;
       other.maxTotalThreadsPerThreadgroup = 64;
       create(other, MTLPipelineOptionFailOnBinaryArchiveMiss);
       create(other, MTLPipelineOptionNone);
       create(descriptor("axpy"), MTLPipelineOptionFailOnBinaryArchiveMiss);
       return seen;
     }},
    {"archive_is_read_from_whole_archives_only",
     [] {
       const std::string folder = scratch(), path = folder + "/one";
       id<MTLBinaryArchive> made = archive(nil);
       [made addComputePipelineFunctionsWithDescriptor:descriptor("axpy") error:nullptr];
       [made serializeToURL:file_url(path) error:nullptr];
       std::string seen;
       const auto open = [&](NSURL* url) {
         NSError* error = nil;
         const bool opened = archive(url, &error) != nil;
         const std::string why = text([error localizedDescription]);
         seen += (seen.empty() ? "" : ", ") +
                 (opened ? "opened" : std::to_string([error code]) + why.substr(why.find(' ', why.find("://"))));
       };
       open(file_url(path));
       std::filesystem::resize_file(path, std::filesystem::file_size(path) - 5);
       open(file_url(path));
       std::ofstream(path) << "not written by serializeToURL";
       open(file_url(path));
       open(file_url(folder));
       open(file_url("/nowhere/x"));
       open([NSURL URLWithString:@"https://example.org/x"]);
       std::filesystem::remove_all(folder);
       return seen;
     }},
    {"archive_goes_into_files_only",
     [] {
       std::string seen;
       for (NSURL *url in
            [NSArray arrayWithObjects:file_url("/nowhere/x"), [NSURL URLWithString:@"https://example.org/x"], nil]) {
         NSError* error = nil;
         const bool written = [archive(nil) serializeToURL:url error:&error];
         seen += std::string(seen.empty() ? "" : ", ") +
                 (written ? "written" : std::to_string([error code]) + " " + text([error localizedDescription]));
       }
       return seen;
     }},
    {"archive_without_descriptor",
     [] {
       [device newBinaryArchiveWithDescriptor:nil error:nullptr];
       return "ran";
     }},
    {"archive_of_no_function",
     [] {
       MTLComputePipelineDescriptor* empty = [[MTLComputePipelineDescriptor new] autorelease];
       [archive(nil) addComputePipelineFunctionsWithDescriptor:empty error:nullptr];
       return "ran";
     }},

    {"library_of_a_url_that_is_no_file",
     [] {
       NSError* error = nil;
       [device newLibraryWithURL:[NSURL URLWithString:@"https://example.org/x.metallib"] error:&error];
       return std::to_string([error code]) + " " + text([error localizedDescription]);
     }},
    {"function_missing",
     [] {
       NSError* error = nil;
       [library newFunctionWithName:@"none" constantValues:has_bias(true) error:&error];
       const std::string message = text([error localizedDescription]);
       return std::to_string([error code]) + " " + message.substr(0, message.find(" /"));
     }},
    {"source_compiles_in_the_mode_asked",
     [] {
       static std::string modes;
       mpsk::set_compiler([](const std::string&, const std::string& std, const std::string& mode) {
         modes += std + ' ' + mode + ' ';
         return std::string(getenv("METALLIB"));
       });
       MTLCompileOptions* options = [[MTLCompileOptions new] autorelease];
       const auto compile = [](MTLCompileOptions* with) {
         return [[[device newLibraryWithSource:@"" options:with error:nullptr] autorelease] functionNames] != nil;
       };
       bool opened = compile(nil) && compile(options);
       for (const MTLMathMode mode : {MTLMathModeSafe, MTLMathModeRelaxed, MTLMathModeFast}) {
         options.mathMode = mode;
         opened = opened && compile(options);
       }
       options.fastMathEnabled = NO;
       opened = opened && compile(options);
       options.languageVersion = MTLLanguageVersion4_0;
       opened = opened && compile(options);
       mpsk::set_compiler(nullptr);
       return modes + (opened ? "opened" : "not opened");
     }},

    // Queues and torch's stream.
    {"dispatch_sync_reentered",
     [] {
       dispatch_queue_t serial = dispatch_queue_create("mine", DISPATCH_QUEUE_SERIAL);
       dispatch_sync(serial, ^{
         dispatch_sync(serial, ^{
                       });
       });
       return "ran";
     }},
    {"block_lets_an_exception_out",
     [] {
       dispatch_queue_t serial = dispatch_queue_create("mine", DISPATCH_QUEUE_SERIAL);
       __block std::string seen = complaint([&] {
         dispatch_sync(serial, ^{
           throw std::runtime_error("out of the block");
         });
       });
       dispatch_sync(serial, ^{
         seen += ", and on";
       });
       return seen;
     }},
    {"inner_block_lets_an_exception_out",
     [] {
       dispatch_queue_t outer = dispatch_queue_create("outer", DISPATCH_QUEUE_SERIAL);
       dispatch_queue_t inner = dispatch_queue_create("inner", DISPATCH_QUEUE_SERIAL);
       return complaint([&] {
         dispatch_sync(outer, ^{
           dispatch_sync(inner, ^{
             throw std::runtime_error("out of both");
           });
         });
       });
     }},
    {"block_lets_an_error_of_torch_out",
     [] {
       return complaint([] {
         dispatch_sync(dispatch_queue_create("mine", nullptr), ^{
           TORCH_CHECK_VALUE(false, "wrong value");
         });
       });
     }},
    {"block_lets_an_objc_exception_out",
     [] {
       return complaint([] {
         dispatch_sync(dispatch_queue_create("mine", nullptr), ^{
           [[NSArray array] objectAtIndex:3];
         });
       });
     }},
    {"function_lets_an_exception_out",
     [] {
       return complaint([] {
         dispatch_sync_f(dispatch_queue_create("mine", nullptr), nullptr,
                         [](void*) { throw std::runtime_error("out of the function"); });
       });
     }},
    {"once_lets_an_exception_out",
     [] {
       return complaint([] {
         static dispatch_once_t predicate;
         dispatch_once(&predicate, ^{
           throw std::runtime_error("out of the one");
         });
       });
     }},
    {"rethrow_carries_an_exception_out",
     [] {
       dispatch_queue_t serial = dispatch_queue_create("mine", DISPATCH_QUEUE_SERIAL);
       try {
         at::mps::dispatch_sync_with_rethrow(serial, ^{
           throw std::out_of_range("of its own type");
         });
       } catch (const std::out_of_range& error) {
         __block std::string seen = error.what();
         at::mps::dispatch_sync_with_rethrow(serial, ^{
           seen += ", and on";
         });
         return seen;
       }
       return std::string("none");
     }},
    {"once_runs_once",
     [] {
       static dispatch_once_t predicate;
       static int runs = 0;
       std::vector<std::thread> threads;
       for (int t = 0; t < 4; ++t) {
         threads.emplace_back([] {
           dispatch_once(&predicate, ^{
             ++runs;
           });
         });
       }
       for (std::thread& thread : threads) thread.join();
       return std::to_string(runs);
     }},
    {"queues_nest",
     [] {
       dispatch_queue_t outer = dispatch_queue_create("outer", DISPATCH_QUEUE_SERIAL);
       dispatch_queue_t inner = dispatch_queue_create(nullptr, DISPATCH_QUEUE_SERIAL);
       __block std::string seen;
       dispatch_sync(outer, ^{
         dispatch_sync(inner, ^{
           dispatch_assert_queue(outer);
           dispatch_assert_queue(inner);
           seen = std::string(dispatch_queue_get_label(outer)) + "[" + dispatch_queue_get_label(inner) + "]";
         });
       });
       dispatch_release(outer);
       dispatch_release(inner);
       return seen;
     }},
    {"queue_left_is_asserted",
     [] {
       dispatch_queue_t serial = dispatch_queue_create("mine", nullptr);
       dispatch_sync(serial, ^{
                     });
       dispatch_assert_queue(serial);
       return "ran";
     }},
    {"queue_excludes_threads",
     [] {
       dispatch_queue_t serial = dispatch_queue_create("mine", DISPATCH_QUEUE_SERIAL);
       int count = 0;
       int* const counter = &count;
       std::vector<std::thread> threads;
       for (int t = 0; t < 4; ++t) {
         threads.emplace_back([serial, counter] {
           for (int i = 0; i < 2000; ++i)
             dispatch_sync(serial, ^{
               ++*counter;
             });
         });
       }
       for (std::thread& thread : threads) thread.join();
       return std::to_string(count);
     }},
    {"assert_queue_elsewhere",
     [] {
       dispatch_assert_queue(dispatch_queue_create("mine", nullptr));
       return "ran";
     }},
    {"stream_encoder_outside_queue",
     [] {
       at::mps::getCurrentMPSStream()->commandEncoder();
       return "ran";
     }},
    {"stream_coalesces_and_runs",
     [] {
       auto* stream = at::mps::getCurrentMPSStream();
       id<MTLBuffer> x = floats({1, 2, 3, 4}), y = floats({0, 0, 0, 0});
       __block std::vector<void*> encoders;
       for (int i = 0; i < 3; ++i) {
         dispatch_sync(stream->queue(), ^{
           id<MTLComputeCommandEncoder> encoder = stream->commandEncoder();
           encoders.push_back(encoder);
           const float scale = 2;
           [encoder setComputePipelineState:pipeline("axpy")];
           [encoder setBuffer:x offset:0 atIndex:0];
           [encoder setBuffer:y offset:0 atIndex:1];
           [encoder setBytes:&scale length:4 atIndex:2];
           [encoder dispatchThreads:MTLSizeMake(4, 1, 1) threadsPerThreadgroup:MTLSizeMake(4, 1, 1)];
         });
       }
       const int before = static_cast<int>(contents(y)[3]);
       stream->synchronize(at::mps::SyncType::COMMIT_AND_WAIT);
       return std::to_string(before) + " " + std::to_string(static_cast<int>(contents(y)[3])) +
              (encoders[0] == encoders[2] ? " one encoder" : " several encoders");
     }},
    {"stream_commit_runs_without_a_wait",
     [] {
       auto* stream = at::mps::getCurrentMPSStream();
       static std::atomic<int> completed;
       id<MTLBuffer> x = floats({1, 2, 3, 4}), y = floats({0, 0, 0, 0});
       dispatch_sync(stream->queue(), ^{
         id<MTLComputeCommandEncoder> encoder = stream->commandEncoder();
         const float scale = 3;
         [encoder setComputePipelineState:pipeline("axpy")];
         [encoder setBuffer:x offset:0 atIndex:0];
         [encoder setBuffer:y offset:0 atIndex:1];
         [encoder setBytes:&scale length:4 atIndex:2];
         [encoder dispatchThreads:MTLSizeMake(4, 1, 1) threadsPerThreadgroup:MTLSizeMake(4, 1, 1)];
       });
       stream->addCompletedHandler(^(id<MTLCommandBuffer>) {
         ++completed;
       });
       stream->synchronize(at::mps::SyncType::NONE);
       stream->synchronize(at::mps::SyncType::COMMIT_ADAPTIVE);
       std::this_thread::sleep_for(std::chrono::milliseconds(20));
       const int before = static_cast<int>(contents(y)[3]);
       stream->synchronize(at::mps::SyncType::COMMIT);
       while (completed == 0) std::this_thread::yield();
       return std::to_string(before) + " " + std::to_string(static_cast<int>(contents(y)[3]));
     }},
    {"stream_makes_way_for_an_own_encoder",
     [] {
       auto* stream = at::mps::getCurrentMPSStream();
       Encoding e;
       dispatch_sync(torch::mps::get_dispatch_queue(), ^{
         [stream->commandEncoder() setComputePipelineState:pipeline("axpy")];
         id<MTLComputeCommandEncoder> encoder = [torch::mps::get_command_buffer() computeCommandEncoder];
         const float scale = 4;
         [encoder setComputePipelineState:pipeline("axpy")];
         [encoder setBuffer:e.x offset:0 atIndex:0];
         [encoder setBuffer:e.y offset:0 atIndex:1];
         [encoder setBytes:&scale length:4 atIndex:2];
         [encoder dispatchThreads:MTLSizeMake(4, 1, 1) threadsPerThreadgroup:MTLSizeMake(4, 1, 1)];
         [encoder endEncoding];
         torch::mps::commit();
       });
       torch::mps::synchronize();
       return e.result();
     }},
    {"stream_forgets_the_last_block",
     [] {
       auto* stream = at::mps::getCurrentMPSStream();
       dispatch_sync(stream->queue(), ^{
         [stream->commandEncoder() setComputePipelineState:pipeline("axpy")];
       });
       dispatch_sync(stream->queue(), ^{
         [stream->commandEncoder() dispatchThreads:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(1, 1, 1)];
       });
       return "ran";
     }},
    {"stream_commits_by_itself",
     [] {
       auto* stream = at::mps::getCurrentMPSStream();
       id<MTLBuffer> x = floats({1, 1, 1, 1}), y = floats({0, 0, 0, 0});
       id<MTLComputePipelineState> state = pipeline("axpy");
       for (int i = 0; i < 20000; ++i) {
         dispatch_sync(stream->queue(), ^{
           id<MTLComputeCommandEncoder> encoder = stream->commandEncoder();
           const float scale = 1;
           [encoder setComputePipelineState:state];
           [encoder setBuffer:x offset:0 atIndex:0];
           [encoder setBuffer:y offset:0 atIndex:1];
           [encoder setBytes:&scale length:4 atIndex:2];
           [encoder dispatchThreads:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(1, 1, 1)];
         });
       }
       const bool begun = contents(y)[0] > 0;
       stream->synchronize(at::mps::SyncType::COMMIT_AND_WAIT);
       return std::string(begun ? "begun, " : "not begun, ") + std::to_string(static_cast<int>(contents(y)[0]));
     }},
};

}  // namespace

int main(int argc, char** argv) {
  @autoreleasepool {
    device = MTLCreateSystemDefaultDevice();
    if (argc > 1 && std::string(argv[1]) == "chip") {
      std::printf("%s|%s|", text(device.name).c_str(), text(device.architecture.name).c_str());
      for (int family = MTLGPUFamilyApple7; family <= MTLGPUFamilyApple10; ++family) {
        std::printf("%d", [device supportsFamily:static_cast<MTLGPUFamily>(family)]);
      }
      std::printf("|%d%d|%lu\n", [device supportsFamily:MTLGPUFamilyMac2], [device supportsFamily:MTLGPUFamilyMetal3],
                  static_cast<unsigned long>(device.maxThreadgroupMemoryLength));
      return 0;
    }
    queue = [device newCommandQueue];
    NSError* error = nil;
    NSString* path = [NSString stringWithUTF8String:getenv("METALLIB")];
    library = [device newLibraryWithURL:[NSURL fileURLWithPath:path] error:&error];
    if (library == nil) throw std::runtime_error(text([error localizedDescription]));
    for (const auto& [name, run] : cases) {
      std::string outcome;
      try {
        outcome = run();
      } catch (const std::exception& problem) {
        outcome = "error: " + std::string(problem.what());
      }
      std::printf("%s\t%s\n", name, outcome.substr(0, outcome.find('\n')).c_str());
    }
  }
  return 0;
}
