#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <mutex>
#include <utility>

#include "runtime/metal.h"
#include "runtime/pipeline.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

struct State {
  std::mutex mutex;
  std::string path;
  Retained<id<MTLLibrary>> library;
  std::map<std::string, std::shared_ptr<const Pipeline>> pipelines;
};

State& state() {
  static State* const instance = new State;  // never destroyed: Metal may be gone when the process ends
  return *instance;
}

std::string message(NSError* error) {
  return error == nil ? "no reason given" : [[error localizedDescription] UTF8String];
}

// The caller holds the mutex and an autorelease pool.
id<MTLLibrary> library(State& s) {
  if (!s.library) {
    TORCH_CHECK(!s.path.empty(), "mpsk: no metallib has been set; import mpskernels sets it");
    NSError* error = nil;
    NSURL* url = [NSURL fileURLWithPath:[NSString stringWithUTF8String:s.path.c_str()]];
    Retained<id<MTLLibrary>> opened([metal_device() newLibraryWithURL:url error:&error]);
    TORCH_CHECK(opened, "mpsk: cannot open the metallib ", s.path, ": ", message(error));
    s.library = std::move(opened);
  }
  return s.library.get();
}

std::shared_ptr<const Pipeline> create(State& s, const std::string& name, const std::string& label,
                                       std::initializer_list<Constant> constants) {
  Retained<MTLFunctionConstantValues*> values([[MTLFunctionConstantValues alloc] init]);
  for (const Constant& constant : constants) {
    [values.get() setConstantValue:&constant.value type:MTLDataTypeBool atIndex:constant.index];
  }
  NSError* error = nil;
  Retained<id<MTLFunction>> function([library(s) newFunctionWithName:[NSString stringWithUTF8String:name.c_str()]
                                                      constantValues:values.get()
                                                               error:&error]);
  TORCH_CHECK(function, "mpsk: no kernel ", label, " in ", s.path, ": ", message(error));
  Retained<MTLComputePipelineDescriptor*> descriptor([[MTLComputePipelineDescriptor alloc] init]);
  [descriptor.get() setLabel:[NSString stringWithUTF8String:label.c_str()]];
  [descriptor.get() setComputeFunction:function.get()];
  Retained<id<MTLComputePipelineState>> pso([metal_device() newComputePipelineStateWithDescriptor:descriptor.get()
                                                                                          options:MTLPipelineOptionNone
                                                                                       reflection:nullptr
                                                                                            error:&error]);
  TORCH_CHECK(pso, "mpsk: cannot create the pipeline ", label, ": ", message(error));
  return std::make_shared<const Pipeline>(label, std::move(pso));
}

}  // namespace

void set_metallib(const std::string& path) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  s.path = path;
  s.library = {};
  s.pipelines.clear();
}

std::string metallib_path() {
  State& s = state();
  std::lock_guard lock(s.mutex);
  return s.path;
}

std::vector<std::string> function_names() {
  State& s = state();
  std::lock_guard lock(s.mutex);
  @autoreleasepool {
    std::vector<std::string> names;
    for (NSString* name in [library(s) functionNames]) names.emplace_back([name UTF8String]);
    return names;
  }
}

std::shared_ptr<const Pipeline> pipeline(const std::string& name, std::initializer_list<Constant> constants) {
  std::string label = name;
  char separator = '?';
  for (const Constant& constant : constants) {
    label += separator;
    label += constant.name;
    label += constant.value ? "=1" : "=0";
    separator = ',';
  }
  State& s = state();
  std::lock_guard lock(s.mutex);  // held while Metal compiles, so that no pipeline is made twice
  auto found = s.pipelines.find(label);
  if (found == s.pipelines.end()) {
    @autoreleasepool {
      found = s.pipelines.emplace(label, create(s, name, label, constants)).first;
    }
  }
  return found->second;
}

std::vector<std::string> pipeline_labels() {
  State& s = state();
  std::lock_guard lock(s.mutex);
  std::vector<std::string> labels;
  for (const auto& [label, pipeline] : s.pipelines) labels.push_back(label);
  return labels;
}

}  // namespace mpsk
