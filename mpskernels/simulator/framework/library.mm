// MTLLibrary, MTLFunction, function constants, and the pipeline state.
#include <algorithm>
#include <cstring>
#include <map>

#include "objects.h"

using namespace mpsk;

namespace {

struct Value {
  MTLDataType type;
  std::vector<std::byte> bytes;
};

struct TypeFacts {
  const char* name;  // as in the metallib
  MTLDataType type;  // of the scalar; its vectors of 2, 3 and 4 follow
  size_t size;
};

constexpr TypeFacts types[] = {
    {"float", MTLDataTypeFloat, 4}, {"half", MTLDataTypeHalf, 2},   {"int", MTLDataTypeInt, 4},
    {"uint", MTLDataTypeUInt, 4},   {"short", MTLDataTypeShort, 2}, {"ushort", MTLDataTypeUShort, 2},
    {"char", MTLDataTypeChar, 1},   {"uchar", MTLDataTypeUChar, 1}, {"bool", MTLDataTypeBool, 1},
    {"long", MTLDataTypeLong, 8},   {"ulong", MTLDataTypeULong, 8}, {"bfloat", MTLDataTypeBFloat, 2},
};

struct Type {
  std::string name;
  size_t size;  // in memory: a vector of 3 takes the room of 4
};

Type describe(MTLDataType type) {
  for (const TypeFacts& facts : types) {
    if (type < facts.type || type > facts.type + 3) continue;
    const size_t width = type - facts.type + 1;
    return {width == 1 ? facts.name : facts.name + std::to_string(width), facts.size * (width == 3 ? 4 : width)};
  }
  invalid("function constant: MTLDataType " + std::to_string(type) + " is no type of a function constant");
}

MTLDataType type_of(const char* name) {
  for (const TypeFacts& facts : types) {
    const size_t length = std::strlen(facts.name);
    if (std::strncmp(name, facts.name, length) != 0) continue;
    if (name[length] == '\0') return facts.type;
    if (name[length] >= '2' && name[length] <= '4' && name[length + 1] == '\0') {
      return static_cast<MTLDataType>(facts.type + (name[length] - '1'));
    }
  }
  return MTLDataTypeNone;
}

}  // namespace

struct mpsk_constant_values {
  std::map<unsigned, Value> by_index;
  std::map<std::string, Value> by_name;
};

@interface MTLFunctionConstantValues (Simulator)
// Of the constants that the function uses. Throws device::Error for a value of another type than the constant's.
- (device::ConstantValues)valuesFor:(const device::Function&)function;
@end

@implementation MTLFunctionConstantValues

- (id)init {
  if ((self = [super init]) != nil) _impl = new mpsk_constant_values;
  return self;
}
- (void)dealloc {
  delete _impl;
  [super dealloc];
}
- (id)copyWithZone:(NSZone*)zone {
  MTLFunctionConstantValues* copy = [MTLFunctionConstantValues new];
  *copy->_impl = *_impl;
  return copy;
}

- (void)setConstantValue:(const void*)value type:(MTLDataType)type atIndex:(NSUInteger)index {
  [self setConstantValues:value type:type withRange:NSMakeRange(index, 1)];
}

- (void)setConstantValues:(const void*)values type:(MTLDataType)type withRange:(NSRange)range {
  constexpr NSUInteger count = 65536;
  if (range.length > count || range.location > count - range.length) {
    invalid("function constants: " + std::to_string(range.length) + " values from index " +
            std::to_string(range.location) + " on reach above 65535");
  }
  const size_t size = describe(type).size;
  const auto* bytes = static_cast<const std::byte*>(values);
  for (NSUInteger i = 0; i < range.length; ++i, bytes += size) {
    _impl->by_index[static_cast<unsigned>(range.location + i)] = {type, {bytes, bytes + size}};
  }
}

- (void)setConstantValue:(const void*)value type:(MTLDataType)type withName:(NSString*)name {
  const auto* bytes = static_cast<const std::byte*>(value);
  _impl->by_name[text(name)] = {type, {bytes, bytes + describe(type).size}};
}

- (void)reset {
  *_impl = {};
}

- (device::ConstantValues)valuesFor:(const device::Function&)function {
  device::ConstantValues result;
  for (const mpsk_constant* constant : function.constants()) {
    const Value* value = nullptr;
    if (const auto found = _impl->by_name.find(constant->name); found != _impl->by_name.end()) value = &found->second;
    if (const auto found = _impl->by_index.find(constant->index); found != _impl->by_index.end())
      value = &found->second;
    if (value == nullptr) continue;
    if (value->type != type_of(constant->type)) {
      throw device::Error("function '" + function.name() + "': constant '" + constant->name + "' (index " +
                          std::to_string(constant->index) + ") is of type " + constant->type +
                          ", got a value of type " + describe(value->type).name);
    }
    result[constant->index] = value->bytes;
  }
  return result;
}

@end

@implementation MTLFunctionConstant

- (id)initWithConstant:(const mpsk_constant&)constant {
  if ((self = [super init]) == nil) return nil;
  _name = [string(constant.name) retain];
  _type = type_of(constant.type);
  _index = constant.index;
  _required = constant.optional == 0;
  return self;
}
- (void)dealloc {
  [_name release];
  [super dealloc];
}
- (NSString*)name {
  return _name;
}
- (MTLDataType)type {
  return _type;
}
- (NSUInteger)index {
  return _index;
}
- (BOOL)required {
  return _required;
}

@end

@implementation MPSKLibrary

- (id)initWithLibrary:(std::shared_ptr<const device::Library>)library {
  if ((self = [super init]) != nil) _library = new std::shared_ptr<const device::Library>(std::move(library));
  return self;
}
- (void)dealloc {
  delete _library;
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

- (NSArray*)functionNames {
  NSMutableArray* names = [NSMutableArray array];
  for (const std::string& name : (*_library)->function_names()) [names addObject:string(name)];
  return names;
}

- (id<MTLFunction>)newFunctionWithName:(NSString*)functionName {
  auto function = (*_library)->function(text(functionName));
  return function == nullptr ? nil : [[MPSKFunction alloc] initWithFunction:std::move(function) constants:{}];
}

- (id<MTLFunction>)newFunctionWithName:(NSString*)name
                        constantValues:(MTLFunctionConstantValues*)constantValues
                                 error:(NSError**)error {
  auto function = (*_library)->function(text(name));
  if (function == nullptr) {
    return fail(error, MTLLibraryErrorDomain, MTLLibraryErrorFunctionNotFound,
                "function '" + text(name) + "' does not exist in the library " + (*_library)->path());
  }
  try {
    device::ConstantValues values =
        constantValues == nil ? device::ConstantValues() : [constantValues valuesFor:*function];
    device::Pipeline(function, values);  // complains of what is missing
    return [[MPSKFunction alloc] initWithFunction:std::move(function) constants:std::move(values)];
  } catch (const device::Error& problem) {
    return fail(error, MTLLibraryErrorDomain, MTLLibraryErrorInternal, problem.what());
  }
}

@end

@implementation MPSKFunction

- (id)initWithFunction:(std::shared_ptr<const device::Function>)function constants:(device::ConstantValues)constants {
  if ((self = [super init]) == nil) return nil;
  _function = new std::shared_ptr<const device::Function>(std::move(function));
  _constants = new device::ConstantValues(std::move(constants));
  return self;
}
- (void)dealloc {
  delete _function;
  delete _constants;
  [_label release];
  [super dealloc];
}
- (const std::shared_ptr<const device::Function>&)function {
  return *_function;
}
- (const device::ConstantValues&)constants {
  return *_constants;
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
- (MTLFunctionType)functionType {
  return MTLFunctionTypeKernel;
}
- (NSString*)name {
  return string((*_function)->name());
}

- (NSDictionary*)functionConstantsDictionary {
  NSMutableDictionary* result = [NSMutableDictionary dictionary];
  for (const mpsk_constant* constant : (*_function)->constants()) {
    MTLFunctionConstant* entry = [[[MTLFunctionConstant alloc] initWithConstant:*constant] autorelease];
    [result setObject:entry forKey:entry.name];
  }
  return result;
}

@end

@implementation MTLCompileOptions

- (id)init {
  if ((self = [super init]) != nil) {
    _languageVersion = MTLLanguageVersion3_1;
    _mathMode = MTLMathModeFast;
  }
  return self;
}
- (MTLLanguageVersion)languageVersion {
  return _languageVersion;
}
- (void)setLanguageVersion:(MTLLanguageVersion)languageVersion {
  _languageVersion = languageVersion;
}
- (MTLMathMode)mathMode {
  return _mathMode;
}
- (void)setMathMode:(MTLMathMode)mathMode {
  _mathMode = mathMode;
}
- (BOOL)fastMathEnabled {
  return _mathMode == MTLMathModeFast;
}
- (void)setFastMathEnabled:(BOOL)fastMathEnabled {
  _mathMode = fastMathEnabled ? MTLMathModeFast : MTLMathModeSafe;
}

@end

@implementation MTLComputePipelineDescriptor

- (void)dealloc {
  [self reset];
  [super dealloc];
}
- (id)copyWithZone:(NSZone*)zone {
  MTLComputePipelineDescriptor* copy = [MTLComputePipelineDescriptor new];
  copy.label = _label;
  copy.computeFunction = _computeFunction;
  copy.threadGroupSizeIsMultipleOfThreadExecutionWidth = _threadGroupSizeIsMultipleOfThreadExecutionWidth;
  copy.maxTotalThreadsPerThreadgroup = _maxTotalThreadsPerThreadgroup;
  copy.binaryArchives = _binaryArchives;
  return copy;
}
- (void)reset {
  self.label = nil;
  self.computeFunction = nil;
  _threadGroupSizeIsMultipleOfThreadExecutionWidth = NO;
  _maxTotalThreadsPerThreadgroup = 0;
  self.binaryArchives = nil;
}
- (NSString*)label {
  return _label;
}
- (void)setLabel:(NSString*)label {
  [_label autorelease];
  _label = [label copy];
}
- (id<MTLFunction>)computeFunction {
  return _computeFunction;
}
- (void)setComputeFunction:(id<MTLFunction>)computeFunction {
  [computeFunction retain];
  [_computeFunction release];
  _computeFunction = computeFunction;
}
- (BOOL)threadGroupSizeIsMultipleOfThreadExecutionWidth {
  return _threadGroupSizeIsMultipleOfThreadExecutionWidth;
}
- (void)setThreadGroupSizeIsMultipleOfThreadExecutionWidth:(BOOL)multiple {
  _threadGroupSizeIsMultipleOfThreadExecutionWidth = multiple;
}
- (NSUInteger)maxTotalThreadsPerThreadgroup {
  return _maxTotalThreadsPerThreadgroup;
}
- (void)setMaxTotalThreadsPerThreadgroup:(NSUInteger)maxTotalThreadsPerThreadgroup {
  _maxTotalThreadsPerThreadgroup = maxTotalThreadsPerThreadgroup;
}
- (NSArray*)binaryArchives {
  return _binaryArchives;
}
- (void)setBinaryArchives:(NSArray*)binaryArchives {
  [_binaryArchives autorelease];
  _binaryArchives = [binaryArchives copy];
}

@end

@implementation MPSKPipeline

- (id)initWithPipeline:(std::shared_ptr<const device::Pipeline>)pipeline
                 label:(NSString*)label
            maxThreads:(NSUInteger)maxThreads {
  if ((self = [super init]) == nil) return nil;
  _pipeline = new std::shared_ptr<const device::Pipeline>(std::move(pipeline));
  _label = [label copy];
  _maxThreads = maxThreads;
  return self;
}
- (void)dealloc {
  delete _pipeline;
  [_label release];
  [super dealloc];
}
- (const std::shared_ptr<const device::Pipeline>&)pipeline {
  return *_pipeline;
}
- (NSString*)label {
  return _label;
}
- (id<MTLDevice>)device {
  return [MPSKDevice shared];
}
- (NSUInteger)maxTotalThreadsPerThreadgroup {
  return _maxThreads;
}
- (NSUInteger)threadExecutionWidth {
  return MPSK_SIMD_WIDTH;
}
- (NSUInteger)staticThreadgroupMemoryLength {
  return (*_pipeline)->function().static_threadgroup_bytes();
}

@end
