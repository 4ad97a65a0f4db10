// MTLDevice and MTLBuffer.
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>

#include "objects.h"

NSString* const MTLLibraryErrorDomain = @"MTLLibraryErrorDomain";
NSString* const MTLCommandBufferErrorDomain = @"MTLCommandBufferErrorDomain";

namespace mpsk {

namespace {

constexpr size_t page = 16384;  // of Apple's processors: buffers begin on one
constexpr size_t poison_limit = size_t{1} << 28;
// Buffers of so many bytes or more are mapped, so that pages cost nothing until they are touched: runs of a few
// threadgroups of a large product touch little of it.
constexpr size_t mapped_length = size_t{1} << 22;

std::atomic<size_t> allocated{0};
Compile compiler = nullptr;

const Chip& chosen_chip() {
  const char* wanted = std::getenv("MPSK_SIMULATE");
  if (wanted == nullptr || *wanted == '\0') wanted = "m4";
  std::string allowed;
  for (const Chip& candidate : chips) {
    if (candidate.key == wanted) return candidate;
    allowed += (allowed.empty() ? "" : ", ") + std::string(candidate.key);
  }
  invalid("MPSK_SIMULATE=" + std::string(wanted) + " names no chip; allowed: " + allowed);
}

// What the host can still give, in bytes; 0 where it does not say.
size_t available_memory() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key; meminfo >> key;) {
    size_t kib = 0;
    if (key == "MemAvailable:" && meminfo >> kib) return kib << 10;
    meminfo.ignore(256, '\n');
  }
  return 0;
}

size_t whole_pages(size_t length) { return (length + page - 1) / page * page; }

bool is_mapped(size_t length) { return length >= mapped_length; }

// Zeros that begin on a page; null where no memory is left.
std::byte* map_zeros(size_t bytes) {
  void* const memory = mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  const size_t before = (page - reinterpret_cast<uintptr_t>(memory) % page) % page;
  std::byte* const begin = static_cast<std::byte*>(memory) + before;
  if (before > 0) munmap(memory, before);
  munmap(begin + bytes, page - before);
  return begin;
}

// A file of mapped_length ones, to be mapped where pages are to hold those; -1 where the host has no such files.
int file_of_ones() {
  static const int opened = [] {
    const int file = memfd_create("mpskernels_ones", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, mapped_length) != 0) return -1;
    void* const memory = mmap(nullptr, mapped_length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) return -1;
    std::memset(memory, 0xff, mapped_length);
    munmap(memory, mapped_length);
    return file;
  }();
  return opened;
}

}  // namespace

void invalid(const std::string& message) { throw Misuse(message); }

id fail(NSError** error, NSString* domain, NSInteger code, const std::string& message) {
  if (error != nullptr) {
    NSDictionary* info = [NSDictionary dictionaryWithObject:string(message) forKey:NSLocalizedDescriptionKey];
    *error = [NSError errorWithDomain:domain code:code userInfo:info];
  }
  return nil;
}

const Chip& chip() {
  static const Chip& chosen = chosen_chip();
  return chosen;
}

size_t allocated_bytes() { return allocated; }

void set_compiler(Compile compile) { compiler = compile; }

}  // namespace mpsk

using namespace mpsk;

extern "C" id<MTLDevice> MTLCreateSystemDefaultDevice(void) { return [[MPSKDevice shared] retain]; }

@implementation MTLArchitecture
- (NSString*)name {
  return string(chip().architecture);
}
@end

@implementation MPSKDevice

+ (MPSKDevice*)shared {
  static MPSKDevice* const device = (static_cast<void>(chip()), [MPSKDevice new]);
  return device;
}

- (NSString*)name {
  return string(chip().name);
}
- (MTLArchitecture*)architecture {
  static MTLArchitecture* const architecture = [MTLArchitecture new];
  return architecture;
}
- (uint64_t)registryID {
  return 0x100000000 + static_cast<uint64_t>(&chip() - chips);
}
- (BOOL)hasUnifiedMemory {
  return YES;
}
- (BOOL)isLowPower {
  return NO;
}
- (BOOL)isHeadless {
  return NO;
}
- (BOOL)isRemovable {
  return NO;
}
- (uint64_t)recommendedMaxWorkingSetSize {
  return recommended_working_set(chip());
}
- (NSUInteger)currentAllocatedSize {
  return allocated_bytes();
}
- (NSUInteger)maxBufferLength {
  return max_buffer_length(chip());
}
- (NSUInteger)maxThreadgroupMemoryLength {
  return MPSK_MAX_THREADGROUP_BYTES;
}
- (MTLSize)maxThreadsPerThreadgroup {
  return MTLSizeMake(MPSK_MAX_THREADS_PER_THREADGROUP, MPSK_MAX_THREADS_PER_THREADGROUP,
                     MPSK_MAX_THREADS_PER_THREADGROUP);
}

- (BOOL)supportsFamily:(MTLGPUFamily)gpuFamily {
  switch (gpuFamily) {
    case MTLGPUFamilyMac1:
    case MTLGPUFamilyMac2:
    case MTLGPUFamilyCommon1:
    case MTLGPUFamilyCommon2:
    case MTLGPUFamilyCommon3:
    case MTLGPUFamilyMetal3:
    case MTLGPUFamilyMetal4:  // comes with macOS 26
      return YES;
    default:
      return gpuFamily >= MTLGPUFamilyApple1 && gpuFamily <= static_cast<NSInteger>(1000 + chip().apple_family);
  }
}

- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
  return [[MPSKBuffer alloc] initWithLength:length options:options];
}

- (id<MTLBuffer>)newBufferWithBytes:(const void*)pointer length:(NSUInteger)length options:(MTLResourceOptions)options {
  MPSKBuffer* buffer = [[MPSKBuffer alloc] initWithLength:length options:options];
  std::memcpy([buffer memory], pointer, length);
  return buffer;
}

- (id<MTLBuffer>)newBufferWithBytesNoCopy:(void*)pointer
                                   length:(NSUInteger)length
                                  options:(MTLResourceOptions)options
                              deallocator:(void (^)(void* pointer, NSUInteger length))deallocator {
  return [[MPSKBuffer alloc] initWithBytesNoCopy:pointer length:length options:options deallocator:deallocator];
}

- (id<MTLCommandQueue>)newCommandQueue {
  return [MPSKCommandQueue new];
}
- (id<MTLCommandQueue>)newCommandQueueWithMaxCommandBufferCount:(NSUInteger)maxCommandBufferCount {
  return [MPSKCommandQueue new];
}

- (id<MTLLibrary>)newLibraryWithPath:(const std::string&)path error:(NSError**)error {
  try {
    return [[MPSKLibrary alloc] initWithLibrary:device::Library::open(path)];
  } catch (const device::Error& problem) {
    const bool missing = access(path.c_str(), F_OK) != 0;
    return fail(error, MTLLibraryErrorDomain, missing ? MTLLibraryErrorFileNotFound : MTLLibraryErrorInternal,
                problem.what());
  }
}

- (id<MTLLibrary>)newLibraryWithURL:(NSURL*)url error:(NSError**)error {
  if (![url isFileURL]) {
    return fail(error, MTLLibraryErrorDomain, MTLLibraryErrorFileNotFound,
                "newLibraryWithURL: expected a file URL, got " + text([url absoluteString]));
  }
  return [self newLibraryWithPath:text([url path]) error:error];
}

// A library is a shared object, which only a file can hold; the file goes as soon as it is open.
- (id<MTLLibrary>)newLibraryWithData:(dispatch_data_t)data error:(NSError**)error {
  size_t size = 0;
  const auto* bytes = static_cast<const char*>(dispatch_data_bytes(data, &size));
  const char* folder = std::getenv("TMPDIR");
  std::string path = std::string(folder == nullptr ? "/tmp" : folder) + "/mpsk-XXXXXX.metallib";
  const int file = mkstemps(path.data(), 9);
  if (file < 0) return fail(error, MTLLibraryErrorDomain, MTLLibraryErrorInternal, "cannot write " + path);
  close(file);
  const bool written =
      static_cast<bool>(std::ofstream(path, std::ios::binary).write(bytes, static_cast<ssize_t>(size)));
  id<MTLLibrary> library = written ? [self newLibraryWithPath:path error:error] : nil;
  unlink(path.c_str());
  if (!written) return fail(error, MTLLibraryErrorDomain, MTLLibraryErrorInternal, "cannot write " + path);
  return library;
}

- (id<MTLLibrary>)newLibraryWithSource:(NSString*)source options:(MTLCompileOptions*)options error:(NSError**)error {
  try {
    if (compiler == nullptr) invalid("no compiler for Metal sources is loaded in this process");
    const MTLMathMode mode = options == nil ? MTLMathModeFast : options.mathMode;
    const char* name = mode == MTLMathModeFast ? "fast" : mode == MTLMathModeRelaxed ? "relaxed" : "safe";
    const MTLLanguageVersion version = options == nil ? MTLLanguageVersion3_1 : options.languageVersion;
    const std::string std = "metal" + std::to_string(version >> 16) + '.' + std::to_string(version & 0xffff);
    return [self newLibraryWithPath:compiler(text(source), std, name) error:error];
  } catch (const std::exception& problem) {
    return fail(error, MTLLibraryErrorDomain, MTLLibraryErrorCompileFailure, problem.what());
  }
}

- (id<MTLComputePipelineState>)newComputePipelineStateWithFunction:(id<MTLFunction>)computeFunction
                                                             error:(NSError**)error {
  MTLComputePipelineDescriptor* descriptor = [[MTLComputePipelineDescriptor new] autorelease];
  descriptor.computeFunction = computeFunction;
  return [self newComputePipelineStateWithDescriptor:descriptor
                                             options:MTLPipelineOptionNone
                                          reflection:nullptr
                                               error:error];
}

- (id<MTLComputePipelineState>)newComputePipelineStateWithDescriptor:(MTLComputePipelineDescriptor*)descriptor
                                                             options:(MTLPipelineOption)options
                                                          reflection:(MTLComputePipelineReflection**)reflection
                                                               error:(NSError**)error {
  auto* function = static_cast<MPSKFunction*>(descriptor.computeFunction);
  if (function == nil) invalid("newComputePipelineState: the function is nil");
  const std::string name = [function function]->name();
  const NSUInteger limit = [function function]->max_total_threads();
  const NSUInteger wanted = descriptor.maxTotalThreadsPerThreadgroup;
  if (wanted > MPSK_MAX_THREADS_PER_THREADGROUP) {
    invalid(name + ": maxTotalThreadsPerThreadgroup must be at most " +
            std::to_string(MPSK_MAX_THREADS_PER_THREADGROUP) + ", got " + std::to_string(wanted));
  }
  bool found = (options & MTLPipelineOptionFailOnBinaryArchiveMiss) == 0;
  for (MPSKBinaryArchive* archive in descriptor.binaryArchives) found = found || [archive holds:descriptor];
  if (!found) {
    return fail(error, MTLLibraryErrorDomain, MTLLibraryErrorInternal, name + ": in none of the binary archives");
  }
  try {
    auto pipeline = std::make_shared<const device::Pipeline>([function function], [function constants]);
    return [[MPSKPipeline alloc] initWithPipeline:std::move(pipeline)
                                            label:descriptor.label == nil ? string(name) : descriptor.label
                                       maxThreads:wanted == 0 ? limit : std::min(limit, wanted)];
  } catch (const device::Error& problem) {
    return fail(error, MTLLibraryErrorDomain, MTLLibraryErrorInternal, problem.what());
  }
}

- (id<MTLBinaryArchive>)newBinaryArchiveWithDescriptor:(MTLBinaryArchiveDescriptor*)descriptor error:(NSError**)error {
  return new_binary_archive(descriptor, error);
}

@end

@implementation MPSKBuffer

- (id)initWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
  const size_t limit = max_buffer_length(chip());
  if (length == 0) invalid("newBufferWithLength: the length must not be 0");
  if (length > limit) {
    invalid("newBufferWithLength: " + std::to_string(length) + " bytes exceed maxBufferLength, " +
            std::to_string(limit) + " bytes on the simulated " + chip().name);
  }
  const size_t rounded = whole_pages(length);
  // A host that overcommits would end the process at the first write instead.
  if (length > poison_limit) {
    const size_t available = available_memory();
    if (available != 0 && rounded > available) {
      invalid("newBufferWithLength: out of memory: " + std::to_string(length) + " bytes wanted, this machine has " +
              std::to_string(available) + " left");
    }
  }
  if ((self = [super init]) == nil) return nil;
  const bool mapped = is_mapped(length);
  _contents = mapped ? map_zeros(rounded) : static_cast<std::byte*>(std::aligned_alloc(page, rounded));
  if (_contents == nullptr) invalid("newBufferWithLength: out of memory: " + std::to_string(length) + " bytes wanted");
  if (!mapped) std::memset(_contents, 0, length);
  _length = length;
  _options = options;
  _owned = YES;
  allocated += rounded;
  return self;
}

- (id)initWithBytesNoCopy:(void*)pointer
                   length:(NSUInteger)length
                  options:(MTLResourceOptions)options
              deallocator:(void (^)(void* pointer, NSUInteger length))deallocator {
  const auto host_page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  if (pointer == nullptr || length == 0 || reinterpret_cast<uintptr_t>(pointer) % host_page != 0 ||
      length % host_page != 0) {
    invalid("newBufferWithBytesNoCopy: pointer and length must be non-zero multiples of the page size, " +
            std::to_string(host_page));
  }
  if ((self = [super init]) == nil) return nil;
  _contents = static_cast<std::byte*>(pointer);
  _length = length;
  _options = options;
  _deallocator = Block_copy(deallocator);
  return self;
}

- (void)fillWithOnes {
  const int ones = is_mapped(_length) ? file_of_ones() : -1;
  for (size_t at = 0; at < _length; at += mapped_length) {
    const size_t bytes = std::min(_length - at, mapped_length);
    void* const memory = _contents + at;
    if (ones < 0 || mmap(memory, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, ones, 0) != memory) {
      std::memset(memory, 0xff, bytes);
    }
  }
}

- (void)dealloc {
  if (_owned) {
    const size_t rounded = whole_pages(_length);
    if (is_mapped(_length)) {
      munmap(_contents, rounded);
    } else {
      std::free(_contents);
    }
    allocated -= rounded;
  } else if (_deallocator != nullptr) {
    _deallocator(_contents, _length);
    Block_release(_deallocator);
  }
  [_label release];
  [super dealloc];
}

// The processor has no way to the memory that a GPU keeps to itself.
- (void*)contents {
  return [self storageMode] == MTLStorageModePrivate ? nullptr : _contents;
}
- (std::byte*)memory {
  return _contents;
}
- (NSUInteger)length {
  return _length;
}
- (uint64_t)gpuAddress {
  return reinterpret_cast<uint64_t>(_contents);
}
- (id<MTLDevice>)device {
  return [MPSKDevice shared];
}
- (MTLStorageMode)storageMode {
  return static_cast<MTLStorageMode>(_options >> 4 & 15);
}
- (MTLResourceOptions)resourceOptions {
  return _options;
}
- (NSUInteger)allocatedSize {
  return _length;
}
- (NSString*)label {
  return _label;
}
- (void)setLabel:(NSString*)label {
  [_label autorelease];
  _label = [label copy];
}

@end
