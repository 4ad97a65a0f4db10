// The Python module mpskernels.simulator._simulator: kernels of any metallib, facts about the device.
#include <ATen/mps/MPSStream.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/python.h>

#include <variant>

#include "../device/fiber.h"
#include "../device/watch.h"
#include "objects.h"
#include "torch_device.h"

namespace py = pybind11;

namespace mpsk {
namespace {

std::string reason(NSError* error) { return error == nil ? "unknown reason" : text([error localizedDescription]); }

// What a kernel's parameter is given: a tensor, bytes, or nothing.
using Argument = std::variant<std::monostate, at::Tensor, std::string>;

class Kernel {
 public:
  Kernel(id<MTLLibrary> library, const std::string& name) {
    const AutoreleasePool pool;
    NSError* error = nil;
    id<MTLFunction> function = [[library newFunctionWithName:string(name)] autorelease];
    TORCH_CHECK(function != nil, "the library has no kernel '", name, "'");
    id state = [[library device] newComputePipelineStateWithFunction:function error:&error];
    TORCH_CHECK(state != nil, "cannot create the pipeline of kernel '", name, "': ", reason(error));
    state_ = Ref<>(state);
    [state release];
  }

  void launch(const std::vector<Argument>& arguments, std::array<size_t, 3> threads,
              std::array<size_t, 3> group) const {
    const py::gil_scoped_release release;
    at::mps::MPSStream* stream = at::mps::getCurrentMPSStream();
    at::mps::dispatch_sync_with_rethrow(stream->queue(), ^{
      id<MTLComputeCommandEncoder> encoder = stream->commandEncoder();
      [encoder setComputePipelineState:state_.get()];
      for (size_t i = 0; i < arguments.size(); ++i) bind(encoder, arguments[i], i);
      [encoder dispatchThreads:MTLSizeMake(threads[0], threads[1], threads[2])
          threadsPerThreadgroup:MTLSizeMake(group[0], group[1], group[2])];
    });
  }

  size_t max_threads() const { return [state_.get() maxTotalThreadsPerThreadgroup]; }
  size_t execution_width() const { return [state_.get() threadExecutionWidth]; }
  size_t threadgroup_memory() const { return [state_.get() staticThreadgroupMemoryLength]; }

 private:
  static void bind(id<MTLComputeCommandEncoder> encoder, const Argument& argument, size_t index) {
    if (const auto* bytes = std::get_if<std::string>(&argument)) {
      [encoder setBytes:bytes->data() length:bytes->size() atIndex:index];
    } else if (const auto* tensor = std::get_if<at::Tensor>(&argument)) {
      TORCH_CHECK(tensor->is_mps(), "argument ", index, ": expected a tensor on device mps, got ", tensor->device());
      if (tensor->numel() == 0) {  // its storage may be null, which is not a valid binding
        static constexpr std::byte zeros[16] = {};
        [encoder setBytes:zeros length:sizeof zeros atIndex:index];
        return;
      }
      [encoder setBuffer:__builtin_bit_cast(id<MTLBuffer>, tensor->storage().data())
                  offset:static_cast<NSUInteger>(tensor->storage_offset()) * tensor->element_size()
                 atIndex:index];
    }
  }

  Ref<> state_;
};

class Library {
 public:
  explicit Library(const std::string& path) {
    const AutoreleasePool pool;
    NSError* error = nil;
    id library = [[MPSKDevice shared] newLibraryWithURL:[NSURL fileURLWithPath:string(path)] error:&error];
    adopt(library, error);
  }
  explicit Library(const py::bytes& bytes) {
    const AutoreleasePool pool;
    NSError* error = nil;
    const std::string_view view = bytes;
    dispatch_data_t data = mpsk_dispatch_data_create(view.data(), view.size());
    id library = [[MPSKDevice shared] newLibraryWithData:data error:&error];
    dispatch_release(data);
    adopt(library, error);
  }

  std::vector<std::string> names() const {
    const AutoreleasePool pool;
    std::vector<std::string> names;
    for (NSString* name in [library_.get() functionNames]) names.push_back(text(name));
    return names;
  }
  Kernel kernel(const std::string& name) const { return Kernel(library_.get(), name); }

 private:
  void adopt(id library, NSError* error) {
    TORCH_CHECK(library != nil, reason(error));
    library_ = Ref<>(library);
    [library release];
  }
  Ref<> library_;
};

// A Python function that makes a metallib of Metal source; never freed, as it may outlive the interpreter.
PyObject* python_compiler = nullptr;

std::string compile(const std::string& source, const std::string& std, const std::string& math_mode) {
  const py::gil_scoped_acquire acquire;
  try {
    return py::str(py::handle(python_compiler)(source, std, math_mode));
  } catch (const py::error_already_set& error) {
    throw std::runtime_error(py::str(error.value()));
  }
}

py::dict facts() {
  const Chip& c = chip();
  py::dict result;
  result["chip"] = py::str(c.key.data(), c.key.size());
  result["name"] = c.name;
  result["architecture"] = c.architecture;
  result["gpu_family"] = "Apple" + std::to_string(c.apple_family);
  result["gpu_cores"] = c.gpu_cores;
  result["memory_gib"] = c.memory_gib;
  result["bandwidth_gb_per_s"] = c.bandwidth_gb_per_s;
  result["max_buffer_length"] = max_buffer_length();
  result["recommended_max_working_set_size"] = recommended_working_set();
  result["threads"] = device::worker_count();
  return result;
}

// A CPU tensor of bytes over the memory of a tensor on mps.
at::Tensor host_alias(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_mps(), "expected storage on device mps, got ", tensor.device());
  const c10::Storage& storage = tensor.storage();
  return at::from_blob(
      buffer_contents(storage.mutable_data()), {static_cast<int64_t>(storage.nbytes())}, [storage](void*) {},
      at::TensorOptions().dtype(at::kByte));
}

py::object access(const std::optional<device::Access>& access) {
  if (!access) return py::none();
  const auto position = [](const mpsk_size& p) { return py::make_tuple(p.x, p.y, p.z); };
  py::dict result;
  result["file"] = access->file;
  result["line"] = access->line;
  result["column"] = access->column;
  result["function"] = access->function;
  result["kind"] = access->kind;
  result["threadgroup"] = position(access->threadgroup);
  result["thread"] = position(access->thread);
  return result;
}

py::list findings() {
  py::list result;
  for (const device::Finding& finding : device::take_findings()) {
    py::dict entry;
    entry["kind"] = finding.kind;
    entry["scope"] = finding.scope;
    entry["kernel"] = finding.kernel;
    entry["text"] = finding.text;
    entry["access"] = access(finding.access);
    entry["other"] = access(finding.other);
    entry["buffer"] = finding.buffer;
    entry["count"] = finding.count;
    result.append(entry);
  }
  return result;
}

py::list dispatches() {
  py::list result;
  for (const device::Counts& counts : device::take_counts()) {
    const auto size = [](const mpsk_size& s) { return py::make_tuple(s.x, s.y, s.z); };
    py::dict entry;
    entry["kernel"] = counts.kernel;
    entry["threadgroups"] = size(counts.threadgroups);
    entry["threads_per_threadgroup"] = size(counts.threads_per_threadgroup);
    entry["matrix_flops"] = counts.matrix_operations * 2 * 8 * 8 * 8;
#define MPSK_COUNT(name) entry[#name] = counts.name;
    MPSK_COUNT(threads)
    MPSK_COUNT(threadgroup_memory)
    MPSK_COUNT(matrix_operations)
    MPSK_COUNT(tensor_flops)
    MPSK_COUNT(f32_flops)
    MPSK_COUNT(f16_flops)
    MPSK_COUNT(special)
    MPSK_COUNT(integer_operations)
    MPSK_COUNT(instructions)
    MPSK_COUNT(simd_instructions)
    MPSK_COUNT(device_read)
    MPSK_COUNT(device_written)
    MPSK_COUNT(device_read_unique)
    MPSK_COUNT(device_written_unique)
    MPSK_COUNT(device_accesses)
    MPSK_COUNT(device_lines)
    MPSK_COUNT(device_lines_ideal)
    MPSK_COUNT(device_lines_shared)
    MPSK_COUNT(constant_read)
    MPSK_COUNT(threadgroup_read)
    MPSK_COUNT(threadgroup_written)
    MPSK_COUNT(threadgroup_accesses)
    MPSK_COUNT(bank_cycles)
    MPSK_COUNT(bank_cycles_ideal)
    MPSK_COUNT(atomics)
    MPSK_COUNT(barriers)
    MPSK_COUNT(simdgroup_barriers)
    MPSK_COUNT(simd_operations)
#undef MPSK_COUNT
    py::list work;
    for (const auto& [groups, each] : counts.work) work.append(py::make_tuple(groups, each));
    entry["work"] = py::tuple(work);
    result.append(entry);
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  py::class_<Kernel>(m, "Kernel")
      .def("launch", &Kernel::launch)
      .def_property_readonly("max_threads_per_threadgroup", &Kernel::max_threads)
      .def_property_readonly("thread_execution_width", &Kernel::execution_width)
      .def_property_readonly("static_thread_group_memory_length", &Kernel::threadgroup_memory);
  py::class_<Library>(m, "Library")
      .def(py::init<const py::bytes&>())
      .def(py::init<const std::string&>())
      .def("names", &Library::names)
      .def("kernel", &Library::kernel);
  m.def("facts", &facts);
  m.def("bench_fiber_switch", &device::time_switches);
  m.def("host_alias", &host_alias);
  m.def("in_bad_fork", &in_bad_fork);
  m.def("shut_down", &shut_down, py::call_guard<py::gil_scoped_release>());
  m.def("set_instrumenter", &device::set_instrumenter);
  m.def("watching", [] {
    const device::Watch watch = device::current_watch();
    return py::make_tuple(watch.check, watch.profile, watch.seed, watch.only);
  });
  m.def(
      "watch",
      [](bool check, bool profile, std::optional<uint64_t> seed, std::optional<size_t> only) {
        device::set_watch({.check = check, .profile = profile, .seed = seed, .only = only});
      },
      py::arg("check"), py::arg("profile"), py::arg("seed"), py::arg("only") = py::none());
  m.def("synchronize", &synchronize, py::call_guard<py::gil_scoped_release>());
  m.def("take_findings", &findings);
  m.def("take_dispatches", &dispatches);
  m.def("set_compiler", [](const py::function& function) {
    python_compiler = function.inc_ref().ptr();
    set_compiler(&compile);
  });
}

}  // namespace mpsk
