// torch's mps device on Linux: memory, streams' hooks, random numbers, and every operator through the CPU's kernels.
//
// As on a Mac the data pointer of a tensor's storage is its MTLBuffer. The device's memory is the host's, so CPU
// kernels work on it in place; each of them waits first for what is encoded.
#include "torch_device.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/mps/MPSDevice.h>
#include <ATen/native/Resize.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>

#include "../device/watch.h"

namespace mpsk {
namespace {

using at::Tensor;

const c10::Device mps_device(c10::DeviceType::MPS, 0);

void check_dtype(at::ScalarType dtype) {
  TORCH_CHECK_TYPE(dtype != at::kDouble, "mps tensors cannot be float64: Metal has no such type; use float32");
  TORCH_CHECK_TYPE(dtype != at::kComplexDouble,
                   "mps tensors cannot be complex128: Metal has no float64; use complex64");
}

// Memory ------------------------------------------------------------------------------------------

class Allocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, mps_device};
    TORCH_CHECK(bytes <= max_buffer_length(), "mps: invalid buffer size: ", gib(bytes), "; the largest is ",
                gib(max_buffer_length()));
    const double limit = fraction_ * static_cast<double>(recommended_working_set());
    TORCH_CHECK_WITH(OutOfMemoryError, fraction_ == 0 || static_cast<double>(allocated_bytes() + bytes) <= limit,
                     "mps: out of memory: ", gib(bytes), " wanted, ", gib(allocated_bytes()), " of ",
                     gib(static_cast<size_t>(limit)), " in use");
    void* buffer = nullptr;
    try {
      buffer = new_buffer(bytes);
    } catch (const std::runtime_error& error) {
      TORCH_CHECK_WITH(OutOfMemoryError, false, "mps: ", error.what());
    }
    device::memory_allocated(static_cast<const std::byte*>(buffer_contents(buffer)), bytes);
    const size_t now = tensors_ += length(bytes);
    size_t peak = peak_;
    while (peak < now && !peak_.compare_exchange_weak(peak, now)) {
    }
    return {buffer, new Block{buffer, bytes}, &free_block, mps_device};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    synchronize();
    std::memcpy(buffer_contents(to), buffer_contents(const_cast<void*>(from)), bytes);
    device::memory_written(static_cast<const std::byte*>(buffer_contents(to)), bytes);
  }

  void set_fraction(double fraction) { fraction_ = fraction; }
  size_t tensors() const { return tensors_; }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override { peak_ = tensors_.load(); }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* entry : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes}) {
      (*entry)[0].current = static_cast<int64_t>(tensors_.load());
      (*entry)[0].peak = static_cast<int64_t>(peak_.load());
    }
    return stats;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    const size_t total = recommended_working_set();
    return {total - std::min(total, allocated_bytes()), total};
  }

 private:
  struct Block {
    void* buffer;
    size_t bytes;
  };

  static void release(void*) {}
  static void free_block(void* context);
  static size_t length(size_t bytes) { return (bytes + 255) / 256 * 256; }
  static std::string gib(size_t bytes) { return c10::str(static_cast<double>(bytes) / (1ull << 30), " GiB"); }

  std::atomic<size_t> tensors_{0}, peak_{0};
  std::atomic<double> fraction_{1.7};  // of the recommended working set; 0: no limit
};

Allocator& allocator() {
  static Allocator* const instance = new Allocator;
  return *instance;
}

void Allocator::free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  allocator().tensors_ -= length(block->bytes);
  device::memory_freed(static_cast<const std::byte*>(buffer_contents(block->buffer)));
  release_buffer(block->buffer);
  delete block;
}

// Random numbers ----------------------------------------------------------------------------------

// A generator of device mps that has the CPU's numbers: the kernels that draw from it are the CPU's.
class GeneratorImpl final : public c10::GeneratorImpl {
 public:
  explicit GeneratorImpl(at::Generator cpu)
      : c10::GeneratorImpl(mps_device, c10::DispatchKeySet(c10::DispatchKey::MPS)), cpu_(std::move(cpu)) {}
  const at::Generator& cpu() const { return cpu_; }
  void set_current_seed(uint64_t seed) override { cpu_.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { cpu_.set_offset(offset); }
  uint64_t get_offset() const override { return cpu_.get_offset(); }
  uint64_t current_seed() const override { return cpu_.current_seed(); }
  uint64_t seed() override { return cpu_.seed(); }
  void set_state(const c10::TensorImpl& state) override { cpu_.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu_.unsafeGetGeneratorImpl()->get_state(); }

 private:
  GeneratorImpl* clone_impl() const override { return new GeneratorImpl(cpu_.clone()); }
  at::Generator cpu_;
};

at::Generator new_generator(uint64_t seed) {
  return at::make_generator<GeneratorImpl>(at::detail::createCPUGenerator(seed));
}

std::atomic<bool> default_generator_used{false};

const at::Generator& default_generator() {
  static const at::Generator* const instance =
      new at::Generator(new_generator(c10::detail::getNonDeterministicRandom()));
  default_generator_used = true;
  return *instance;
}

// What a CPU kernel draws from. Until somebody seeds or asks for the device's own generator, that is the CPU's, so that
// torch.manual_seed reaches it even where torch does not know that it has an mps device.
std::optional<at::Generator> cpu_generator(const std::optional<at::Generator>& asked) {
  if (asked && asked->defined()) {
    TORCH_CHECK(asked->device().is_mps(), "expected a generator of device mps, got ", asked->device());
    return static_cast<GeneratorImpl*>(asked->unsafeGetGeneratorImpl())->cpu();
  }
  if (!default_generator_used) return std::nullopt;
  return static_cast<GeneratorImpl*>(default_generator().unsafeGetGeneratorImpl())->cpu();
}

// Operators ---------------------------------------------------------------------------------------

Tensor new_tensor(c10::Storage storage, c10::DispatchKey key, caffe2::TypeMeta dtype, at::IntArrayRef sizes,
                  at::IntArrayRef strides, int64_t offset) {
  Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), dtype);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
  return tensor;
}

// CPU storage over the same memory. It may be resized: then it has memory of its own.
c10::Storage host_storage(const c10::Storage& storage) {
  void* buffer = storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get();
  c10::DataPtr data(
      buffer == nullptr ? nullptr : buffer_contents(buffer), new c10::Storage(storage),
      [](void* context) { delete static_cast<c10::Storage*>(context); }, c10::Device(c10::kCPU));
  return {c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(),
          /*resizable=*/true};
}

Tensor host_alias(const Tensor& tensor, c10::Storage storage) {
  Tensor host = new_tensor(std::move(storage), c10::DispatchKey::CPU, tensor.dtype(), tensor.sizes(), tensor.strides(),
                           tensor.storage_offset());
  host._set_conj(tensor.is_conj());
  host._set_neg(tensor.is_neg());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) host.unsafeGetTensorImpl()->set_wrapped_number(true);
  return host;
}

Tensor host_alias(const Tensor& tensor) { return host_alias(tensor, host_storage(tensor.storage())); }

// What the checker is to know: a CPU kernel fills a tensor, or looks at it.
void host_touches(const Tensor& tensor, void (*how)(const device::Elements&)) {
  if (!tensor.defined() || !tensor.is_mps() || tensor.numel() == 0) return;
  const auto* memory = static_cast<const std::byte*>(buffer_contents(tensor.storage().mutable_data()));
  const auto offset = static_cast<size_t>(tensor.storage_offset()) * tensor.element_size();
  const auto element_size = static_cast<size_t>(tensor.element_size());
  how({memory, memory + offset, tensor.sizes(), tensor.strides(), element_size});
}
void host_writes(const Tensor& tensor) { host_touches(tensor, &device::memory_written); }
void host_reads(const Tensor& tensor) { host_touches(tensor, &device::memory_read); }

// Whether an operator looks at its arguments for more than their shapes.
bool reads_arguments(const std::string& name) {
  return !name.ends_with("_like") && !name.starts_with("aten::new_") && !name.starts_with("aten::resize");
}

Tensor on_host(const Tensor& tensor) { return tensor.defined() && tensor.is_mps() ? host_alias(tensor) : tensor; }

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
             std::optional<at::Device> device, std::optional<bool> pin_memory,
             std::optional<at::MemoryFormat> memory_format) {
  const auto type = c10::dtype_or_default(dtype);
  check_dtype(type);
  TORCH_CHECK(c10::layout_or_default(layout) == at::kStrided, "mps: only the strided layout is supported");
  TORCH_CHECK(!c10::pinned_memory_or_default(pin_memory), "mps: only CPU memory can be pinned");
  TORCH_CHECK(c10::device_or_default(device).index() <= 0, "mps: there is one device, mps:0, got ", *device);
  return at::detail::empty_generic(size, &allocator(), c10::DispatchKeySet(c10::DispatchKey::MPS), type, memory_format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout> layout, std::optional<at::Device> device,
                     std::optional<bool> pin_memory) {
  Tensor tensor = empty({0}, dtype, layout, device, pin_memory, std::nullopt);
  return at::detail::empty_strided_generic(size, stride, &allocator(), c10::DispatchKeySet(c10::DispatchKey::MPS),
                                           tensor.scalar_type());
}

// Makes room for `bytes`, keeping what is there.
void grow(const c10::Storage& storage, size_t bytes) {
  if (storage.nbytes() >= bytes) return;
  TORCH_CHECK(storage.resizable(), "mps: this storage cannot be resized");
  c10::DataPtr data = allocator().allocate(bytes);
  if (storage.nbytes() != 0) {
    synchronize();
    std::memcpy(buffer_contents(data.get()), buffer_contents(storage.mutable_data()), storage.nbytes());
    device::memory_written(static_cast<const std::byte*>(buffer_contents(data.get())), storage.nbytes());
  }
  storage.set_data_ptr_noswap(std::move(data));
  storage.set_nbytes(bytes);
}

void set_geometry(const Tensor& tensor, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset) {
  const size_t bytes = at::detail::computeStorageNbytes(sizes, strides, tensor.element_size(), offset);
  grow(tensor.storage(), bytes);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, offset);
}

const Tensor& resize_(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> memory_format) {
  if (self.sizes() != size) {
    const auto strides = c10::TensorType::contiguousStridesOf(size);
    set_geometry(self, size, strides, self.storage_offset());
  }
  if (memory_format) self.unsafeGetTensorImpl()->empty_tensor_restride(*memory_format);
  return self;
}

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  at::native::checkSetStorage(self, source, offset, size, stride);
  const auto strides = stride.data() == nullptr ? c10::TensorType::contiguousStridesOf(size) : stride.vec();
  set_geometry(self, size, strides, offset);
  return self;
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) {
  const auto size = static_cast<int64_t>(source.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(source), 0, size, {});
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor& set_nothing(Tensor& self) {
  c10::Storage storage(c10::Storage::use_byte_size_t(), 0, allocator().allocate(0), &allocator(), true);
  return set_storage(self, std::move(storage), 0, {0}, {});
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  TORCH_CHECK(self.defined() && source.defined(), "copy_: undefined tensor");
  if (self.is_same(source)) return self;
  synchronize();
  host_reads(source);
  on_host(self).copy_(on_host(source), non_blocking);
  host_writes(self);
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& destination, bool non_blocking) {
  Tensor to = destination;
  return copy_(to, self, non_blocking);
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& destination) {
  if (destination.sizes() != self.sizes()) destination.resize_(self.sizes());
  return copy_from(self, destination, false);
}

at::Scalar local_scalar(const Tensor& self) {
  synchronize();
  host_reads(self);
  return at::_local_scalar_dense(host_alias(self));
}

// The result of a CPU kernel, moved to the device.
Tensor to_device(const Tensor& host) {
  check_dtype(host.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(host.layout() == at::kStrided && !host.is_quantized(),
                              "mps: only strided tensors are supported, got ", host.layout());
  const bool dense = host.is_non_overlapping_and_dense();
  Tensor result =
      dense ? at::detail::empty_strided_generic(host.sizes(), host.strides(), &allocator(),
                                                c10::DispatchKeySet(c10::DispatchKey::MPS), host.scalar_type())
            : at::detail::empty_generic(host.sizes(), &allocator(), c10::DispatchKeySet(c10::DispatchKey::MPS),
                                        host.scalar_type(), std::nullopt);
  host_alias(result).copy_(host);
  host_writes(result);
  return result;
}

// The tensors of one call: each mps tensor and the CPU tensor that stands for it.
class HostCall {
 public:
  Tensor in(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!tensor.is_mps()) {
      if (tensor.is_cpu() && tensor.dim() > 0) foreign_ = true;
      return tensor;
    }
    for (const Pair& pair : pairs_) {
      if (pair.device.is_same(tensor)) return pair.host;
    }
    const Tensor host = host_alias(tensor, storage_of(tensor));
    pairs_.push_back({tensor, host, host.storage().data()});
    return host;
  }

  bool mixes_devices() const { return foreign_ && !pairs_.empty(); }

  // What the kernel resized gets its new size on the device.
  void write_back() {
    for (const Pair& pair : pairs_) {
      const bool moved = pair.host.storage().data() != pair.data;
      if (!moved && pair.host.sizes() == pair.device.sizes() && pair.host.strides() == pair.device.strides()) continue;
      set_geometry(pair.device, pair.host.sizes(), pair.host.strides(), moved ? 0 : pair.device.storage_offset());
      if (moved) host_alias(pair.device).copy_(pair.host);
    }
  }

  Tensor out(const Tensor& tensor) const {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    for (const Pair& pair : pairs_) {
      if (pair.host.is_same(tensor)) return pair.device;
    }
    for (const Pair& pair : pairs_) {
      if (!pair.host.storage().is_alias_of(tensor.storage()) || pair.host.storage().data() != pair.data) continue;
      return new_tensor(pair.device.storage(), c10::DispatchKey::MPS, tensor.dtype(), tensor.sizes(), tensor.strides(),
                        tensor.storage_offset());
    }
    return to_device(tensor);
  }

 private:
  struct Pair {
    Tensor device, host;
    const void* data;
  };

  // Views of one storage stay views of one storage.
  c10::Storage storage_of(const Tensor& tensor) const {
    for (const Pair& pair : pairs_) {
      if (pair.device.storage().is_alias_of(tensor.storage())) return pair.host.storage();
    }
    return host_storage(tensor.storage());
  }

  std::vector<Pair> pairs_;
  bool foreign_ = false;
};

// torch takes index tensors from either device.
bool takes_cpu_indices(const std::string& name) { return name.find("index") != std::string::npos; }

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string& name = schema.name();
  TORCH_CHECK_NOT_IMPLEMENTED(name.starts_with("aten::") || name.starts_with("prims::"), name,
                              " has no kernel for device mps");
  synchronize();
  HostCall call;
  const auto& parameters = schema.arguments();
  const size_t first = stack->size() - parameters.size();
  for (size_t i = 0; i < parameters.size(); ++i) {
    c10::IValue& value = (*stack)[first + i];
    const auto* alias = parameters[i].alias_info();
    const auto watch = [&](const Tensor& tensor) {
      if (alias && alias->isWrite()) {
        host_writes(tensor);
      } else if (!alias && reads_arguments(name)) {
        host_reads(tensor);
      }
    };
    if (value.isTensor()) {
      watch(value.toTensor());
      value = call.in(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) {
        watch(tensor);
        list.push_back(call.in(tensor));
      }
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
        list.push_back(tensor ? std::optional<Tensor>(call.in(*tensor)) : std::nullopt);
      }
      value = std::move(list);
    } else if (value.isDevice() && value.toDevice().is_mps()) {
      value = c10::Device(c10::kCPU);
    } else if (parameters[i].name() == "generator") {
      value = cpu_generator(value.toOptional<at::Generator>());
    }
  }
  TORCH_CHECK(!call.mixes_devices() || takes_cpu_indices(name),
              "Expected all tensors to be on the same device, got mps:0 and cpu as arguments of ", name);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.write_back();
  const size_t results = schema.returns().size();
  for (size_t i = stack->size() - results; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) {
      value = call.out(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(call.out(tensor));
      value = std::move(list);
    }
  }
}

// Operators that torch has for this device alone go to the CPU's operator for the same.
template <class... Tensors>
auto on_device(std::tuple<Tensors...> results) {
  return std::apply([](const auto&... host) { return std::make_tuple((host.defined() ? to_device(host) : host)...); },
                    results);
}

std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const std::optional<Tensor>& mask, double dropout, bool is_causal,
                                     const std::optional<Tensor>& dropout_mask, std::optional<double> scale,
                                     bool enable_gqa) {
  synchronize();
  const auto host = [](const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(on_host(*tensor)) : std::nullopt;
  };
  return on_device(at::_scaled_dot_product_attention_math(on_host(query), on_host(key), on_host(value), host(mask),
                                                          dropout, is_causal, host(dropout_mask), scale, enable_gqa));
}

// In torch this operator asks a table that, in this build, has no row for mps. The choice is the one that a Mac makes.
Tensor scaled_dot_product_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                    const std::optional<Tensor>& mask, double dropout, bool is_causal,
                                    std::optional<double> scale, bool enable_gqa) {
  const bool needs_grad = at::GradMode::is_enabled() && (query.requires_grad() || key.requires_grad() ||
                                                         value.requires_grad() || (mask && mask->requires_grad()));
  std::optional<Tensor> bias = mask;
  if (mask && mask->scalar_type() == at::kBool) {
    bias = at::zeros_like(*mask, query.options()).masked_fill_(mask->logical_not(), -INFINITY);
  }
  if (needs_grad || dropout > 0) {
    return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, bias, dropout, is_causal, std::nullopt,
                                                              scale, enable_gqa));
  }
  return std::get<0>(at::_scaled_dot_product_attention_math_for_mps(query, key, value, bias, dropout, is_causal,
                                                                    std::nullopt, scale, enable_gqa));
}

Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, at::IntArrayRef stride,
                   at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                   int64_t groups) {
  synchronize();
  const auto host_bias = bias ? std::optional<Tensor>(on_host(*bias)) : std::nullopt;
  return to_device(at::convolution(on_host(input), on_host(weight), host_bias, stride, padding, dilation, transposed,
                                   output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& gradient, const Tensor& input,
                                                        const Tensor& weight, at::IntArrayRef stride,
                                                        at::IntArrayRef padding, at::IntArrayRef dilation,
                                                        bool transposed, at::IntArrayRef output_padding, int64_t groups,
                                                        std::array<bool, 3> mask) {
  synchronize();
  const std::vector<int64_t> bias_sizes = {gradient.size(1)};
  return on_device(at::convolution_backward(on_host(gradient), on_host(input), on_host(weight), bias_sizes, stride,
                                            padding, dilation, transposed, output_padding, groups, mask));
}

// Through bernoulli_, which takes the device's generator; the CPU's kernel knows only its own.
std::tuple<Tensor, Tensor> native_dropout(const Tensor& input, double p, std::optional<bool> train) {
  if (input.numel() == 0 || !train.value_or(true)) {
    return {input.clone(), at::ones_like(input, input.options().dtype(at::kBool))};
  }
  const Tensor mask = at::empty_like(input, input.options().dtype(at::kBool)).bernoulli_(1 - p);
  return {input * mask * (p == 1 ? 0.0 : 1 / (1 - p)), mask};
}

TORCH_LIBRARY_IMPL(_, MPS, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

// torch's general kernels for structured operators allocate the result, then call the variant that fills it. The CPU's
// own kernel does both at once, and does not warn of a result that has the wrong shape on the way.
TORCH_LIBRARY_IMPL(aten, MPS, m) {
  constexpr auto general = c10::DispatchKey::CompositeExplicitAutogradNonFunctional;
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op || !name.name.starts_with("aten::") || !op->hasKernelForDispatchKey(general)) continue;
    if (!op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) continue;
    m.impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  }
}

TORCH_LIBRARY_IMPL(aten, MPS, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("resize_", &resize_);
  m.impl("set_", &set_nothing);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  // Views touch no memory, so they need not wait as run_on_host does.
  m.impl("view", &at::native::view);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("scaled_dot_product_attention", &scaled_dot_product_attention);
  m.impl("_scaled_dot_product_attention_math_for_mps", &attention);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("native_dropout", &native_dropout);
}

TORCH_LIBRARY_IMPL(aten, AutogradMPS, m) {
  m.impl("scaled_dot_product_attention", &scaled_dot_product_attention);  // made of operators that autograd knows
}

// Guard and hooks ---------------------------------------------------------------------------------

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::DeviceType::MPS;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  static c10::Stream stream() { return c10::Stream(c10::Stream::UNSAFE, mps_device, 0); }

  c10::DeviceType type() const override { return static_type; }
  c10::Device exchangeDevice(c10::Device) const override { return mps_device; }
  c10::Device getDevice() const override { return mps_device; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.is_mps() && device.index() <= 0, "Expected device mps:0, got ", device);
  }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override {
    Event event;
    event.record();
    return event.complete();
  }
  void synchronizeStream(const c10::Stream&) const override { synchronize(); }
  void synchronizeDevice(c10::DeviceIndex) const override { synchronize(); }

  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    if (*event == nullptr) *event = new Event;
    static_cast<Event*>(*event)->record();
  }
  void block(void*, const c10::Stream&) const override {}  // there is one stream, which is in order
  bool queryEvent(void* event) const override { return event == nullptr || static_cast<Event*>(event)->complete(); }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) static_cast<Event*>(event)->wait();
  }
  double elapsedTime(void* start, void* end, c10::DeviceIndex) const override {
    const auto recorded = [](void* event) { return event != nullptr && static_cast<Event*>(event)->recorded(); };
    TORCH_CHECK(recorded(start) && recorded(end), "elapsedTime: both events must be recorded");
    synchronizeEvent(start);
    synchronizeEvent(end);
    return 1e3 * (static_cast<Event*>(end)->seconds() - static_cast<Event*>(start)->seconds());
  }
};

C10_REGISTER_GUARD_IMPL(MPS, Guard)

// The events of torch.mps.Event, by number.
struct Events {
  std::mutex mutex;
  std::map<uint32_t, std::shared_ptr<Event>> by_id;
  uint32_t last = 0;

  std::shared_ptr<Event> get(uint32_t id) {
    const std::scoped_lock lock(mutex);
    const auto found = by_id.find(id);
    TORCH_CHECK(found != by_id.end(), "mps: there is no event ", id);
    return found->second;
  }
};

Events& events() {
  static Events* const instance = new Events;
  return *instance;
}

// Has no data of its own: see below.
struct Hooks final : at::MPSHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasMPS() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  // The software device stands for macOS 15.0.
  bool isOnMacOSorNewer(unsigned major, unsigned minor) const override {
    return major < 15 || (major == 15 && minor == 0);
  }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex device) const override {
    TORCH_CHECK(device <= 0, "Expected device mps:0, got index ", static_cast<int>(device));
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Device getDeviceFromPtr(void*) const override { return mps_device; }

  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(c10::default_rng_seed_val); }

  at::Allocator* getMPSDeviceAllocator() const override { return &allocator(); }
  void emptyCache() const override {}
  size_t getCurrentAllocatedMemory() const override { return allocator().tensors(); }
  size_t getDriverAllocatedMemory() const override { return allocated_bytes(); }
  size_t getRecommendedMaxMemory() const override { return recommended_working_set(); }
  size_t getMaxBufferLength() const override { return max_buffer_length(); }
  void setMemoryFraction(double ratio) const override { allocator().set_fraction(ratio); }

  void deviceSynchronize() const override { synchronize(); }
  void commitStream() const override { commit(); }
  void* getCommandBuffer() const override { return command_buffer(); }
  void* getDispatchQueue() const override { return command_queue(); }

  uint32_t acquireEvent(bool) const override {
    const std::scoped_lock lock(events().mutex);
    events().by_id[++events().last] = std::make_shared<Event>();
    return events().last;
  }
  void releaseEvent(uint32_t id) const override {
    const std::scoped_lock lock(events().mutex);
    events().by_id.erase(id);
  }
  void recordEvent(uint32_t id) const override { events().get(id)->record(); }
  void waitForEvent(uint32_t) const override {}
  void synchronizeEvent(uint32_t id) const override { events().get(id)->wait(); }
  bool queryEvent(uint32_t id) const override { return events().get(id)->complete(); }
  double elapsedTimeOfEvents(uint32_t start, uint32_t end) const override {
    return Guard().elapsedTime(events().get(start).get(), events().get(end).get(), 0);
  }
};

// torch makes its hooks object at the first question about mps, which may have come before this library: then what it
// made is replaced in place, which is sound because neither class has data.
const bool hooks_installed = [] {
  static_assert(sizeof(Hooks) == sizeof(at::MPSHooksInterface));
  c10::SetAllocator(c10::DeviceType::MPS, &allocator());
  const at::MPSHooksInterface& hooks = at::detail::getMPSHooks();
  new (const_cast<at::MPSHooksInterface*>(&hooks)) Hooks;
  return true;
}();

}  // namespace
}  // namespace mpsk

namespace at::mps {

at::Allocator* GetMPSAllocator() { return &mpsk::allocator(); }

}  // namespace at::mps
