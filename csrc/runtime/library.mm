#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include "runtime/metal.h"
#include "runtime/pipeline.h"
#include "runtime/pipeline_cache.h"
#include "runtime/runtime.h"

namespace mpsk {
namespace {

// A metallib, or a .metal file, compiled when a kernel of it is first asked for.
struct Library {
  std::string path;
  bool metal4 = false;
  Retained<NSString*> source = {};  // of a .metal file
  id<MTLLibrary> (*embedded)(id<MTLDevice>, NSError**) = nullptr;
  Retained<id<MTLLibrary>> opened = {};
};

struct State {
  std::mutex mutex;
  std::string path;
  std::vector<Library> libraries;
  std::optional<std::string> tensor_units_problem;
  std::map<std::string, std::shared_ptr<const Pipeline>> pipelines;
  PipelineCache cache;
};

// Sources are compiled as the metallib is: its language, and fast math, which is not the default of every version.
constexpr MTLLanguageVersion kLanguage = MTLLanguageVersion3_1;
constexpr auto kLanguage4 = static_cast<MTLLanguageVersion>(4 << 16);  // SDKs before macOS 26 have no name for 4.0
constexpr std::string_view kNeedsMetal4 = "#include <metal_tensor>";   // in a source
constexpr const char* kProbe = "tensor_units_probe";                   // of matmul_tensor.metal
constexpr int kTensorFamily = 10;                                      // the first Apple GPU family with matrix units
constexpr BOOL kFastMath = YES;

State& state() {
  static State* const instance = new State;  // never destroyed: Metal may be gone when the process ends
  return *instance;
}

// In what follows the caller holds the mutex and an autorelease pool.

std::vector<Library>& libraries(State& s) {
  if (!s.libraries.empty()) return s.libraries;
  TORCH_CHECK(!s.path.empty(), "mpsk: no metallib has been set; import mpskernels sets it");
  std::vector<Library> found;
  if (!std::filesystem::is_directory(s.path)) {
    found.push_back({.path = s.path});
    std::string metal4 = s.path;
    metal4.insert(std::min(metal4.rfind('.'), metal4.size()), "-metal4");
    if (std::filesystem::exists(metal4)) found.push_back({.path = metal4, .metal4 = true});
  } else {
    for (const auto& entry : std::filesystem::directory_iterator(s.path)) {
      if (entry.path().extension() != ".metal") continue;
      NSError* error = nil;
      NSString* path = ns_string(entry.path());
      NSString* text = [NSString stringWithContentsOfFile:path encoding:NSUTF8StringEncoding error:&error];
      TORCH_CHECK(text != nil, "mpsk: cannot read ", entry.path().native(), ": ", message(error));
      const bool metal4 = std::string_view([text UTF8String]).find(kNeedsMetal4) != std::string_view::npos;
      found.push_back({.path = entry.path(), .metal4 = metal4, .source = Retained<NSString*>([text retain])});
    }
    TORCH_CHECK(!found.empty(), "mpsk: cannot open the metallib ", s.path, ": a folder without .metal files");
    std::ranges::sort(found, {}, &Library::path);
  }
  return s.libraries = std::move(found);
}

id<MTLLibrary> open(Library& library) {
  if (library.opened) return library.opened.get();
  NSError* error = nil;
  if (!library.source) {
    NSURL* url = [NSURL fileURLWithPath:ns_string(library.path)];
    library.opened = Retained<id<MTLLibrary>>(library.embedded != nullptr ? library.embedded(metal_device(), &error)
                                                                          : [metal_device() newLibraryWithURL:url
                                                                                                        error:&error]);
    TORCH_CHECK(library.opened, "mpsk: cannot open the metallib ", library.path, ": ", message(error));
  } else {
    Retained<MTLCompileOptions*> options([[MTLCompileOptions alloc] init]);
    [options.get() setLanguageVersion:library.metal4 ? kLanguage4 : kLanguage];
    [options.get() setFastMathEnabled:kFastMath];
    library.opened = Retained<id<MTLLibrary>>([metal_device() newLibraryWithSource:library.source.get()
                                                                           options:options.get()
                                                                             error:&error]);
    TORCH_CHECK(library.opened, "mpsk: cannot compile ", library.path, ": ", message(error));
  }
  return library.opened.get();
}

// Why Metal does not take what `use` asks of it; empty: it does.
template <typename Use>
std::string refusal(const Use& use) {
  try {
    use();
    return "";
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
}

// Whether to look for a kernel here. A source tells before it is compiled: host_name("x" ...) begins a name with x.
bool may_hold(const Library& library, std::string_view name) {
  if (!library.source) return true;
  constexpr std::string_view mark = "host_name(";
  const std::string_view source = [library.source.get() UTF8String];
  for (size_t at = source.find(mark); at != source.npos; at = source.find(mark, at)) {
    at = source.find('"', at) + 1;
    if (name.starts_with(source.substr(at, source.find('"', at) - at))) return true;
  }
  return source.find("kernel void " + std::string(name) + '(') != source.npos;  // not a template
}

std::shared_ptr<const Pipeline> create(State& s, const std::string& name, const std::string& label,
                                       std::initializer_list<Constant> constants) {
  Retained<MTLFunctionConstantValues*> values([[MTLFunctionConstantValues alloc] init]);
  for (const Constant& constant : constants) {
    [values.get() setConstantValue:&constant.value type:MTLDataTypeBool atIndex:constant.index];
  }
  NSError* error = nil;
  Retained<id<MTLFunction>> function;
  NSString* source = nil;
  for (Library& library : libraries(s)) {
    if (function || !may_hold(library, name)) continue;
    source = library.source.get();
    function = Retained<id<MTLFunction>>([open(library) newFunctionWithName:ns_string(name)
                                                             constantValues:values.get()
                                                                      error:&error]);
  }
  TORCH_CHECK(function, "mpsk: no kernel ", label, " in ", s.path, ": ", message(error));
  Retained<MTLComputePipelineDescriptor*> descriptor([[MTLComputePipelineDescriptor alloc] init]);
  [descriptor.get() setLabel:ns_string(label)];
  [descriptor.get() setComputeFunction:function.get()];
  Retained<id<MTLComputePipelineState>> pso;
  if (source == nil) {
    pso = new_pipeline_state(descriptor.get(), MTLPipelineOptionNone, &error);
  } else {
    const std::string decides = c10::str(kLanguage, ' ', int{kFastMath}, ' ', label, '\n', [source UTF8String]);
    pso = s.cache.create(descriptor.get(), name, decides, &error);
  }
  TORCH_CHECK(pso, "mpsk: cannot create the pipeline ", label, ": ", message(error));
  return std::make_shared<const Pipeline>(label, std::move(pso));
}

// Why kernels may not use matrix units; empty: they may.
std::string look_for_tensor_units(State& s, int family) {
  if (family < kTensorFamily) return c10::str("a GPU of Apple family ", family, " has none");
  @autoreleasepool {
    for (Library& library : libraries(s)) {
      // Of the Hub's builder, which puts all kernels into one.
      if (library.embedded != nullptr) return "the library inside the module is for macOS 26.0, and they need 26.2";
      if (library.metal4) return refusal([&] { create(s, kProbe, kProbe, {}); });
    }
    return "the build had no compiler for Metal 4";
  }
}

}  // namespace

void set_metallib(const std::string& path) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  s.path = path;
  s.tensor_units_problem.reset();
  s.libraries.clear();
  s.pipelines.clear();
}

void set_metallib(id<MTLLibrary> (*open)(id<MTLDevice> device, NSError** error)) {
  set_metallib("inside the module");
  State& s = state();
  std::lock_guard lock(s.mutex);
  s.libraries.push_back({.path = s.path, .embedded = open});
}

std::string metallib_path() {
  State& s = state();
  std::lock_guard lock(s.mutex);
  return s.path;
}

void set_cache_folder(const std::string& path) {
  State& s = state();
  std::lock_guard lock(s.mutex);
  s.cache.set_folder(path);
}

CacheReport cache_report() {
  State& s = state();
  std::lock_guard lock(s.mutex);
  return s.cache.report();
}

std::string tensor_units_problem() {
  const int family = device().family;
  State& s = state();
  std::lock_guard lock(s.mutex);
  if (!s.tensor_units_problem) s.tensor_units_problem = look_for_tensor_units(s, family);
  return *s.tensor_units_problem;
}

// Asked by every product: where the GPU has none, that is known without a lock or a text.
bool has_tensor_units() { return device().family >= kTensorFamily && tensor_units_problem().empty(); }

std::vector<std::string> function_names() {
  State& s = state();
  std::lock_guard lock(s.mutex);
  @autoreleasepool {
    std::vector<std::string> names;
    for (Library& library : libraries(s)) {
      if (library.metal4 && !refusal([&] { open(library); }).empty()) continue;
      for (NSString* name in [open(library) functionNames]) names.emplace_back([name UTF8String]);
    }
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
