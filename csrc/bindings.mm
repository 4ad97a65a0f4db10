// mpskernels._C: what Python needs besides torch.ops.mpsk. The ops are defined in their families' files, as
// fragments of the library mpsk.
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "runtime/register.h"
#include "runtime/runtime.h"

#ifndef METAL_KERNEL
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#endif

namespace mpsk {

// The checks of all ops, for their fakes; each is defined beside its op.
void check_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool is_causal,
                     std::optional<double> scale);
void check_cross_entropy(std::string_view op, const at::Tensor& logits, const at::Tensor& targets, int64_t ignore_index,
                         double label_smoothing, double z_loss, std::optional<double> soft_cap,
                         std::string_view reduction);
void check_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& targets,
                                  const at::Tensor& lse, const at::Tensor& scale, int64_t ignore_index,
                                  double label_smoothing, double z_loss, std::optional<double> soft_cap,
                                  std::string_view reduction);
void check_linear_cross_entropy(std::string_view op, const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets, int64_t ignore_index, double label_smoothing, double z_loss,
                                std::optional<double> soft_cap, std::string_view reduction,
                                std::optional<int64_t> chunk);
void check_linear_cross_entropy_backward(const at::Tensor& grad, const at::Tensor& hidden, const at::Tensor& weight,
                                         const at::Tensor& targets, const at::Tensor& lse, const at::Tensor& scale,
                                         int64_t ignore_index, double label_smoothing, double z_loss,
                                         std::optional<double> soft_cap, std::string_view reduction,
                                         std::optional<int64_t> chunk);
void check_gated(std::string_view op, const at::Tensor& gate, const std::optional<at::Tensor>& up,
                 std::string_view approximate);
void check_gated_backward(std::string_view op, const at::Tensor& grad, const at::Tensor& gate,
                          const std::optional<at::Tensor>& up, std::string_view approximate);
std::vector<c10::SymInt> check_matmul(const at::Tensor& a, const at::Tensor& b);
void check_linear(const std::string& op, const at::Tensor& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias, std::string_view activation,
                  const std::optional<at::Tensor>& residual);
void check_linear_backward(const at::Tensor& grad, const std::optional<at::Tensor>& preactivation,
                           std::string_view activation, bool bias);
void check_gated_linear(const std::string& op, const at::Tensor& x, const at::Tensor& w_gate, const at::Tensor& w_up,
                        std::string_view activation);
void check_gated_linear_backward(const at::Tensor& grad, const at::Tensor& gate, const at::Tensor& up,
                                 std::string_view activation);
void check_grouped_matmul(const at::Tensor& x, const at::Tensor& w, const at::Tensor& offsets,
                          const std::optional<at::Tensor>& indices);
void check_grouped_matmul_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offsets,
                                   const std::optional<at::Tensor>& indices);
void check_grouped_matmul_scatter(const at::Tensor& rows, const at::Tensor& indices, const c10::SymInt& count);
std::vector<c10::SymInt> check_sum_matmuls(const at::Tensor& a, const at::Tensor& b, int64_t dims);
void check_add_matmuls(const at::Tensor& a, const at::Tensor& b, const at::Tensor& second_a,
                       const at::Tensor& second_b);
void check_rms_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight, double eps, double offset);
void check_rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& weight,
                             double eps, double offset);
void check_layer_norm(const at::Tensor& x, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, double eps);
void check_layer_norm_backward(const at::Tensor& grad, const at::Tensor& x, const std::optional<at::Tensor>& weight,
                               const std::optional<at::Tensor>& bias, double eps);
void check_add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const std::optional<at::Tensor>& weight,
                        double eps, double offset);
void check_add_rms_norm_backward(const at::Tensor& grad, const std::optional<at::Tensor>& grad_residual,
                                 const at::Tensor& residual_out, const std::optional<at::Tensor>& weight, double eps,
                                 double offset);
void check_add_layer_norm(const at::Tensor& x, const at::Tensor& residual, const std::optional<at::Tensor>& weight,
                          const std::optional<at::Tensor>& bias, double eps);
void check_add_layer_norm_backward(const at::Tensor& grad, const std::optional<at::Tensor>& grad_residual,
                                   const at::Tensor& residual_out, const std::optional<at::Tensor>& weight,
                                   const std::optional<at::Tensor>& bias, double eps);
void check_gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const std::optional<at::Tensor>& weight,
                          double eps, bool norm_before_gate);
void check_gated_rms_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& gate,
                                   const std::optional<at::Tensor>& weight, double eps, bool norm_before_gate);
void check_modulated_norm(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& shift,
                          const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
                          bool rms);
void check_modulated_norm_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                   const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                                   double eps, bool rms);
void check_group_norm(const at::Tensor& x, int64_t num_groups, const std::optional<at::Tensor>& weight,
                      const std::optional<at::Tensor>& bias, double eps);
void check_group_norm_backward(const at::Tensor& grad, const at::Tensor& x, int64_t num_groups,
                               const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                               double eps);
void check_rope(const at::Tensor& q, const std::optional<at::Tensor>& k, const std::optional<at::Tensor>& cos,
                const std::optional<at::Tensor>& sin, const std::optional<at::Tensor>& positions,
                const c10::SymInt& offset, double base, std::optional<int64_t> dims, bool interleaved,
                const std::vector<int64_t>& sections, bool interleaved_sections);
void check_qk_norm_rope(const at::Tensor& q, const std::optional<at::Tensor>& k,
                        const std::optional<at::Tensor>& q_weight, const std::optional<at::Tensor>& k_weight,
                        double eps, const std::optional<at::Tensor>& cos, const std::optional<at::Tensor>& sin,
                        const std::optional<at::Tensor>& positions, double weight_offset, const c10::SymInt& offset,
                        double base, std::optional<int64_t> dims, bool interleaved,
                        const std::vector<int64_t>& sections, bool interleaved_sections);
void check_qk_norm_rope_backward(const at::Tensor& grad_q, const std::optional<at::Tensor>& grad_k, const at::Tensor& q,
                                 const std::optional<at::Tensor>& k, const std::optional<at::Tensor>& q_weight,
                                 const std::optional<at::Tensor>& k_weight, double eps,
                                 const std::optional<at::Tensor>& cos, const std::optional<at::Tensor>& sin,
                                 const std::optional<at::Tensor>& positions, double weight_offset,
                                 const c10::SymInt& offset, double base, std::optional<int64_t> dims, bool interleaved,
                                 const std::vector<int64_t>& sections, bool interleaved_sections);
void check_softmax(std::string_view op, const at::Tensor& x, const std::optional<at::Tensor>& mask, double scale,
                   bool is_causal, std::optional<double> soft_cap);
void check_softmax_backward(std::string_view op, const at::Tensor& grad, const at::Tensor& out,
                            const std::optional<at::Tensor>& x, double scale, std::optional<double> soft_cap);

}  // namespace mpsk

namespace {

// What the dispatcher does, pybind does not: None passes for a tensor, an undefined one, which a check refuses.
template <class T>
struct from_python {
  using type = const T&;
  static const T& get(const T& value) { return value; }
};
template <>
struct from_python<const c10::SymInt&> {
  using type = c10::SymInt;  // the dispatcher knows it by value alone
  static const c10::SymInt& get(const type& value) { return value; }
};
template <>
struct from_python<c10::SymInt> : from_python<const c10::SymInt&> {};
template <>
struct from_python<const at::Tensor&> {
  using type = const std::optional<at::Tensor>&;
  static at::Tensor get(type value) { return value.value_or(at::Tensor()); }
};
template <class Result, class... Args>
auto takes_none(Result (*check)(Args...)) {
  return [check](typename from_python<Args>::type... args) { return check(from_python<Args>::get(args)...); };
}

template <class Def>
void define_checks(const Def& def) {
  def("check_attention", takes_none(mpsk::check_attention));
  def("check_cross_entropy", takes_none(mpsk::check_cross_entropy));
  def("check_cross_entropy_backward", takes_none(mpsk::check_cross_entropy_backward));
  def("check_linear_cross_entropy", takes_none(mpsk::check_linear_cross_entropy));
  def("check_linear_cross_entropy_backward", takes_none(mpsk::check_linear_cross_entropy_backward));
  def("check_gated", takes_none(mpsk::check_gated));
  def("check_gated_backward", takes_none(mpsk::check_gated_backward));
  def("check_add_matmuls", takes_none(mpsk::check_add_matmuls));
  def("check_sum_matmuls", takes_none(mpsk::check_sum_matmuls));
  def("check_gated_linear", takes_none(mpsk::check_gated_linear));
  def("check_gated_linear_backward", takes_none(mpsk::check_gated_linear_backward));
  def("check_grouped_matmul", takes_none(mpsk::check_grouped_matmul));
  def("check_grouped_matmul_backward", takes_none(mpsk::check_grouped_matmul_backward));
  def("check_grouped_matmul_scatter", takes_none(mpsk::check_grouped_matmul_scatter));
  def("check_linear", takes_none(mpsk::check_linear));
  def("check_linear_backward", takes_none(mpsk::check_linear_backward));
  def("check_matmul", takes_none(mpsk::check_matmul));
  def("check_group_norm", takes_none(mpsk::check_group_norm));
  def("check_group_norm_backward", takes_none(mpsk::check_group_norm_backward));
  def("check_rms_norm", takes_none(mpsk::check_rms_norm));
  def("check_rms_norm_backward", takes_none(mpsk::check_rms_norm_backward));
  def("check_layer_norm", takes_none(mpsk::check_layer_norm));
  def("check_layer_norm_backward", takes_none(mpsk::check_layer_norm_backward));
  def("check_add_rms_norm", takes_none(mpsk::check_add_rms_norm));
  def("check_add_rms_norm_backward", takes_none(mpsk::check_add_rms_norm_backward));
  def("check_add_layer_norm", takes_none(mpsk::check_add_layer_norm));
  def("check_add_layer_norm_backward", takes_none(mpsk::check_add_layer_norm_backward));
  def("check_gated_rms_norm", takes_none(mpsk::check_gated_rms_norm));
  def("check_gated_rms_norm_backward", takes_none(mpsk::check_gated_rms_norm_backward));
  def("check_modulated_norm", takes_none(mpsk::check_modulated_norm));
  def("check_modulated_norm_backward", takes_none(mpsk::check_modulated_norm_backward));
  def("check_rope", takes_none(mpsk::check_rope));
  def("check_qk_norm_rope", takes_none(mpsk::check_qk_norm_rope));
  def("check_qk_norm_rope_backward", takes_none(mpsk::check_qk_norm_rope_backward));
  def("check_softmax", takes_none(mpsk::check_softmax));
  def("check_softmax_backward", takes_none(mpsk::check_softmax_backward));
}

}  // namespace

#ifdef METAL_KERNEL
// Python's stable interface, which the Hub asks for, is too small for pybind11: there the checks are ops themselves.
TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_checks([&m](const char* name, auto check) { m.def(name, check); });
}
#else
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  // Exceptions arrive as the Python ones that torch makes of its own.
  auto def = [&m](const char* name, auto function) { m.def(name, torch::wrap_pybind_function(function)); };
  auto def_no_gil = [&m](const char* name, auto function) {
    m.def(name, torch::wrap_pybind_function_no_gil(function));
  };

  define_checks(def);

  // Whoever waits for the library's lock lets go of Python's: its holder may be compiling for long, or need Python.
  def_no_gil("set_metallib", mpsk::set_metallib);
  def_no_gil("metallib_path", mpsk::metallib_path);
  def_no_gil("tensor_units_problem", mpsk::tensor_units_problem);
  def_no_gil("set_cache_folder", mpsk::set_cache_folder);
  def_no_gil("cache_report", [] {
    const mpsk::CacheReport report = mpsk::cache_report();
    return std::tuple(report.folder, report.usable, report.loaded, report.compiled, report.problem);
  });
  def_no_gil("function_names", mpsk::function_names);
  def_no_gil("pipelines", mpsk::pipeline_labels);
  def("launches", mpsk::launches);
  def("reset_launches", mpsk::reset_launches);
  def_no_gil("device_name", [] { return mpsk::device().name; });
  def_no_gil("gpu_family", [] { return mpsk::device().family; });
}
#endif
