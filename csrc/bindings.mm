// mpskernels._C: what Python needs besides torch.ops.mpsk. The ops are defined in their families' files, as
// fragments of the library mpsk.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/runtime.h"

namespace mpsk {

// The checks of all ops, for their fakes; each is defined beside its op.
void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool is_causal,
                     std::optional<double> scale);
using LossOptions = std::tuple<int64_t, double, double, std::optional<double>, std::string>;
void check_cross_entropy(const std::string& op, const at::Tensor& logits, const at::Tensor& targets,
                         const LossOptions& options);
void check_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& targets,
                                  const at::Tensor& lse, const at::Tensor& scale, const LossOptions& options);
void check_linear_cross_entropy(const std::string& op, const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets, const LossOptions& options, std::optional<int64_t> chunk);
void check_linear_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& hidden, const at::Tensor& weight,
                                         const at::Tensor& targets, const at::Tensor& lse, const at::Tensor& scale,
                                         const LossOptions& options, std::optional<int64_t> chunk);
void check_gated(const std::string& op, const at::Tensor& gate, const std::optional<at::Tensor>& up,
                 const std::string& approximate);
void check_gated_backward(const std::string& op, const at::Tensor& grad, const at::Tensor& gate,
                          const std::optional<at::Tensor>& up, const std::string& approximate);
std::vector<c10::SymInt> check_matmul(const at::Tensor& a, const at::Tensor& b);
void check_rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps);
void check_rope(const at::Tensor& q, const std::optional<at::Tensor>& k, const std::optional<at::Tensor>& cos,
                const std::optional<at::Tensor>& sin, const std::optional<at::Tensor>& positions,
                const c10::SymInt& offset, double base, std::optional<int64_t> dims, bool interleaved,
                const std::vector<int64_t>& sections);
void check_softmax(const std::string& op, const at::Tensor& x, const std::optional<at::Tensor>& mask, double scale,
                   bool is_causal, std::optional<double> soft_cap);
void check_softmax_backward(const std::string& op, const at::Tensor& grad, const at::Tensor& out,
                            const std::optional<at::Tensor>& x, double scale, std::optional<double> soft_cap);

}  // namespace mpsk

namespace {

// What the dispatcher does, pybind does not: None passes for a tensor, an undefined one, which a check refuses.
template <class T>
struct from_python {
  using type = T;
  static const T& get(const T& value) { return value; }
};
template <>
struct from_python<const at::Tensor&> {
  using type = std::optional<at::Tensor>;
  static at::Tensor get(const type& value) { return value.value_or(at::Tensor()); }
};
template <class Result, class... Args>
auto takes_none(Result (*check)(Args...)) {
  return [check](const typename from_python<Args>::type&... args) { return check(from_python<Args>::get(args)...); };
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  // Exceptions arrive as the Python ones that torch makes of its own.
  auto def = [&m](const char* name, auto function) { m.def(name, torch::wrap_pybind_function(function)); };
  auto def_no_gil = [&m](const char* name, auto function) {
    m.def(name, torch::wrap_pybind_function_no_gil(function));
  };

  def("check_attention", takes_none(mpsk::check_attention));
  def("check_cross_entropy", takes_none(mpsk::check_cross_entropy));
  def("check_cross_entropy_backward", takes_none(mpsk::check_cross_entropy_backward));
  def("check_linear_cross_entropy", takes_none(mpsk::check_linear_cross_entropy));
  def("check_linear_cross_entropy_backward", takes_none(mpsk::check_linear_cross_entropy_backward));
  def("check_gated", takes_none(mpsk::check_gated));
  def("check_gated_backward", takes_none(mpsk::check_gated_backward));
  def("check_matmul", takes_none(mpsk::check_matmul));
  def("check_rms_norm", takes_none(mpsk::check_rms_norm));
  def("check_rope", takes_none(mpsk::check_rope));
  def("check_softmax", takes_none(mpsk::check_softmax));
  def("check_softmax_backward", takes_none(mpsk::check_softmax_backward));

  // Whoever waits for the library's lock lets go of Python's: its holder may be compiling for long, or need Python.
  def_no_gil("set_metallib", mpsk::set_metallib);
  def_no_gil("metallib_path", mpsk::metallib_path);
  def_no_gil("function_names", mpsk::function_names);
  def_no_gil("pipelines", mpsk::pipeline_labels);
  def("launches", mpsk::launches);
  def("reset_launches", mpsk::reset_launches);
  def_no_gil("device_name", [] { return mpsk::device().name; });
  def_no_gil("gpu_family", [] { return mpsk::device().family; });
}
