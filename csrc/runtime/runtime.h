// The glue's runtime: the only code that talks to Metal. A family's op is written against this header, check.h and
// register.h, and looks like this:
//
//   at::Tensor scale(const at::Tensor& x, double factor) {
//     check_scale(x, factor);                                   // check.h: one text for every way in
//     at::Tensor out = at::empty(x.sizes(), x.options());       // scratch memory too comes from at::empty
//     if (out.numel() == 0) return out;                         // an empty grid is never launched
//     ScaleParams params{.count = narrow<uint32_t>(x.numel(), "scale", "x.numel()"), ...};
//     auto kernel = pipeline(c10::str("scale_row_", dtype_suffix(x)), {{kScaleTail, "tail", x.numel() % 4 != 0}});
//     launch("scale", [&](Encoder& encoder) {                   // no torch calls in here: they may need the queue
//       encoder.use(kernel);
//       encoder.tensor(kScaleX, x);
//       encoder.tensor(kScaleOut, out);
//       encoder.params(kScaleParams, params);
//       encoder.dispatch({.x = groups}, {.x = threads});        // threadgroups, threads per threadgroup
//     });
//     return out;
//   }
//   TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) { define_op(m, "scale(Tensor x, float factor) -> Tensor", scale); }   //
//   register.h
//
// Everything throws C++ exceptions, which arrive in Python as the matching ones; nothing here outlives a failure.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/FunctionRef.h>

#include <cstddef>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

@protocol MTLComputeCommandEncoder;

namespace mpsk {

// The device that torch uses.
struct Device {
  std::string name;  // "Apple M4 Pro"
  int family;        // the newest Apple GPU family it supports: 7 is M1, 8 M2, 9 M3 and M4, 10 M5
  int cores;         // GPU cores, about: those of the largest version of that name
};
const Device& device();

// Where the kernels are: a metallib, or a folder of .metal files without includes of their own, each compiled when one
// of its kernels is first used. Nothing is opened before; setting a path drops what came from the one before.
//
// Kernels in Metal 4, of the .metal files that ask for its tensors, are in a metallib of their own beside the other,
// x-metal4.metallib beside x.metallib, which Metal opens on macOS 26.2 and newer only.
void set_metallib(const std::string& path);
std::string metallib_path();
std::vector<std::string> function_names();  // compiles every file of a folder

// Whether kernels may use the matrix units of M5: the GPU has them, and Metal takes the kernels in Metal 4. Looks once.
bool has_tensor_units();
std::string tensor_units_problem();  // why not; empty: they are used

// Pipelines of a folder of .metal files, as machine code, are kept in this folder for the processes to come; see
// pipeline_cache.h. Empty, and so at first: nothing is kept.
struct CacheReport {
  std::string folder;
  bool usable = false;  // it exists or could be made, and a file could be made in it
  size_t loaded = 0;    // pipelines that came from it, since it was set
  size_t compiled = 0;  // pipelines of sources that did not
  std::string problem;  // the last file or folder that could not be used, and why; empty: none
};
void set_cache_folder(const std::string& path);
CacheReport cache_report();

// A yes/no that specialises a kernel: [[function_constant(index)]].
struct Constant {
  unsigned index;
  const char* name;
  bool value;
};

// A compiled kernel with its constants fixed, created once and kept. The label, `name?constant=1,constant=0`, is its
// cache key, its name in Metal's tools, in counters and in error texts.
class Pipeline;
std::shared_ptr<const Pipeline> pipeline(const std::string& name, std::initializer_list<Constant> constants = {});
std::vector<std::string> pipeline_labels();  // of all pipelines created so far, sorted

struct Size {
  size_t x = 1, y = 1, z = 1;
};

// Encodes the dispatches of one op. Lives only inside launch().
class Encoder {
 public:
  Encoder(const char* op, id<MTLComputeCommandEncoder> encoder) : op_(op), encoder_(encoder) {}
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  void use(std::shared_ptr<const Pipeline> kernel);
  // Binds the tensor's first element; strides are the kernel's business. A tensor without elements binds 16 zero bytes.
  void tensor(unsigned index, const at::Tensor& tensor);
  template <class Params>
  void params(unsigned index, const Params& value) {
    static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096, "what setBytes can carry");
    bytes(index, &value, sizeof(Params));
  }
  void threadgroup_memory(unsigned index, size_t bytes);  // a [[threadgroup(index)]] argument
  void dispatch(Size threadgroups, Size threads_per_threadgroup);
  void barrier();  // what the dispatches before it wrote to buffers is visible to those after it

 private:
  void bytes(unsigned index, const void* data, size_t size);
  const char* op_;
  id<MTLComputeCommandEncoder> encoder_;
  std::shared_ptr<const Pipeline> kernel_;
};

// Calls `encode` on the current stream's queue with its encoder; rethrows what it throws. Work runs later, in order.
void launch(const char* op, c10::function_ref<void(Encoder&)> encode);

// How often each op has dispatched each pipeline: op -> label -> count.
using Launches = std::map<std::string, std::map<std::string, size_t>>;
Launches launches();
void reset_launches();

}  // namespace mpsk
