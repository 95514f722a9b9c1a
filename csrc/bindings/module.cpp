// The compiled module inplace_ext._C.
#include <ATen/core/grad_mode.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>
#include <utility>

#include "binders.h"
#include "device.h"
#include "functions.h"
#include "fuse.h"
#include "kernels.h"
#include "layout.h"
#include "libraries.h"
#include "tensors.h"
#include "transpose.h"

namespace py = pybind11;

namespace inplace_ext {
namespace {

// Whether the device's kernels have an operation of the table in each compute type that it has.
bool cuda_serves(const std::string& name) {
  const int op = code_named(name);
  if (cuda_kernels == nullptr || op < 0) return false;
  for (int t = 0; t < kDTypes; ++t) {
    const auto dtype = static_cast<DType>(t);
    Program program;
    program.compute = compute_dtype(dtype);
    if (!has_form(kOpInfo[op].types, program.compute)) continue;
    program.stages = 3;
    program.stage[0] = {kLoad, Operand::tensor, Operand::none, 0, 0, 0};
    program.stage[1] = {static_cast<uint16_t>(op), Operand::scalar, Operand::scalar, 0, 1, 2};
    program.stage[2] = {kStore, Operand::tensor, Operand::none, 0, 0, 0};
    program.scalar[0] = program.scalar[1] = program.scalar[2] = {};
    if (!cuda_kernels->serves(program, &dtype, 1)) return false;
  }
  return true;
}

std::string path_name() {
  static const char* const names[] = {
      "loop",        "staged",      "blocked",        "program",      "move",          "streaming",
      "rows",        "long_rows",   "columns",        "long_columns", "gathered_rows", "long_gathered_rows",
      "draws",       "tiled_draws", "gathered_draws", "buffered",     "tiles",         "cycles",
      "strips",      "panels",      "large_panels",   "gathered",     "index_rows",    "index_elements",
      "mask_blocks", "mask_rows",   "mask_elements",  "flat",         "strided",       "across",
      "wide",        "listed",      "metadata"};
  switch (last_path.taken) {
    case Taken::none:
      return "";
    case Taken::torch:
      return "torch";
    case Taken::native:
    case Taken::device:
      break;
  }
  return std::string(last_path.taken == Taken::device ? "cuda" : active_kernels->capability) + ":" +
         names[static_cast<int>(last_path.path)];
}

DType dtype_named(const std::string& name) {
#define INPLACE_EXT_CASE(NAME, STORAGE, COMPUTE) \
  if (name == #NAME) return DType::NAME;
  INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_CASE)
#undef INPLACE_EXT_CASE
  throw py::value_error("program: unknown dtype " + name);
}

// One operand of a stage from Python: None, ("s", i), ("t", i) or ("r", i) for scalar, tensor, temporary.
void read_operand(const py::object& object, Operand& kind, uint8_t& index, int scalars, int tensors) {
  kind = Operand::none;
  index = 0;
  if (object.is_none()) return;
  const auto pair = object.cast<std::pair<std::string, int>>();
  int limit = 0;
  if (pair.first == "s") {
    kind = Operand::scalar, limit = scalars;
  } else if (pair.first == "t") {
    kind = Operand::tensor, limit = tensors;
  } else if (pair.first == "r") {
    kind = Operand::temporary, limit = kMaxTemporaries;
  } else {
    throw py::value_error("program: an operand is (\"s\" | \"t\" | \"r\", index), got " + pair.first);
  }
  if (pair.second < 0 || pair.second >= limit) throw py::index_error("program: operand index out of range");
  index = static_cast<uint8_t>(pair.second);
}

// run_program(compute, stages, tensors, scalars): stages are (name, b, c) with the names of the op table and
// load, store, round (whose b is the name of a dtype).
void run_program(const std::string& compute, const py::list& stages, const py::list& tensors,
                 const py::list& scalars) {
  if (active_kernels == nullptr) throw std::runtime_error("program: no kernels are loaded");
  Program program;
  program.compute = dtype_named(compute);
  if (compute_dtype(program.compute) != program.compute)
    throw py::value_error("program: " + compute + " is no compute type");
  const int n_stages = static_cast<int>(stages.size()), n_tensors = static_cast<int>(tensors.size());
  const int n_scalars = static_cast<int>(scalars.size());
  if (n_stages == 0 || n_stages > kMaxStages || n_tensors > kMaxTensors || n_scalars > kMaxScalars) {
    throw py::value_error("program: at most " + std::to_string(kMaxStages) + " stages, " +
                          std::to_string(kMaxTensors) + " tensors and " + std::to_string(kMaxScalars) +
                          " scalars, and at least one stage");
  }
  for (int i = 0; i < n_scalars; ++i) {
    Number v;
    if (!to_number(scalars[i].ptr(), v)) throw py::type_error("program: scalars are Python numbers");
    if (is_floating(program.compute)) {
      program.scalar[i].d = v.as_double();
    } else {
      program.scalar[i].i = v.category == Number::floating ? static_cast<int64_t>(v.d) : v.i;
    }
  }
  bool mutated[kMaxTensors] = {};
  bool defined[kMaxTemporaries] = {};
  program.stages = n_stages;
  for (int i = 0; i < n_stages; ++i) {
    const py::tuple stage = stages[i].cast<py::tuple>();
    if (stage.size() != 3 && stage.size() != 4)
      throw py::value_error("program: a stage is (name, b, c) or (name, b, c, d)");
    const auto name = stage[0].cast<std::string>();
    Stage& out = program.stage[i];
    out = {};
    if (name == "round") {
      out.code = kRound;
      out.b = static_cast<uint8_t>(dtype_named(stage[1].cast<std::string>()));
      if (!is_floating(program.compute) || !is_floating(static_cast<DType>(out.b))) {
        throw py::value_error("program: round is between floating dtypes");
      }
      continue;
    }
    read_operand(stage[1], out.b_kind, out.b, n_scalars, n_tensors);
    read_operand(stage[2], out.c_kind, out.c, n_scalars, n_tensors);
    if (name == "load" || name == "store") {
      out.code = name == "load" ? kLoad : kStore;
      if (out.b_kind == Operand::none || out.c_kind != Operand::none ||
          (out.code == kStore && out.b_kind == Operand::scalar)) {
        throw py::value_error("program: bad operands of " + name);
      }
      if (out.code == kStore) {
        if (out.b_kind == Operand::tensor) mutated[out.b] = true;
        if (out.b_kind == Operand::temporary) defined[out.b] = true;
      }
    } else {
      const int op = code_named(name);
      if (op < 0 || kOpInfo[op].form == Form::kDrawn)
        throw py::value_error("program: unknown operation " + name);
      const Form form = kOpInfo[op].form;
      const int operands = (out.b_kind != Operand::none) + (out.c_kind != Operand::none);
      if (!has_form(kOpInfo[op].types, program.compute))
        throw py::value_error("program: " + name + " has no form for " + compute);
      if (operands != operands_of(form) || (operands == 1 && out.b_kind == Operand::none) ||
          takes_third(form) != (stage.size() == 4)) {
        throw py::value_error("program: " + name + " takes " +
                              std::to_string(operands_of(form) + takes_third(form)) + " operands");
      }
      const auto is_number = [](Operand kind) { return kind == Operand::none || kind == Operand::scalar; };
      if (only_numbers(form) && !(is_number(out.b_kind) && is_number(out.c_kind)))
        throw py::value_error("program: the operands of " + name + " are numbers");
      if (takes_third(form)) {
        Operand kind;
        read_operand(stage[3], kind, out.d, n_scalars, n_tensors);
        if (kind != Operand::scalar)
          throw py::value_error("program: the last operand of " + name + " is a number");
      }
      out.code = static_cast<uint16_t>(op);
    }
    const auto check = [&](Operand kind, uint8_t index) {
      if (kind == Operand::temporary && !defined[index])
        throw py::value_error("program: temporary read before it is stored");
    };
    check(out.b_kind, out.b);
    check(out.c_kind, out.c);
  }
  const at::Tensor* pointer[kMaxTensors];
  for (int t = 0; t < n_tensors; ++t) {
    py::object object = tensors[t];
    pointer[t] = mutated[t] ? writable_tensor(object.ptr()) : plain_tensor(object.ptr());
    if (pointer[t] == nullptr)
      throw py::type_error("program: tensor " + std::to_string(t) + " is not a plain tensor");
    if (t > 0 && !same_device(*pointer[t], *pointer[0]))
      throw py::type_error("program: the tensors are on several devices");
  }
  switch (execute_program(program, pointer, mutated, n_tensors)) {
    case Outcome::done:
    case Outcome::unchanged:
      return;
    case Outcome::error:
      throw py::error_already_set();
    case Outcome::delegate:
      throw py::value_error("program: the tensors have too many dims");
  }
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["cxx_standard"] = __cplusplus;
  py::dict limits;
  limits["stages"] = kMaxStages;
  limits["tensors"] = kMaxTensors;
  limits["temporaries"] = kMaxTemporaries;
  limits["scalars"] = kMaxScalars;
  info["program_limits"] = limits;
  // What a stage of each operation takes: operands, whether they are numbers, and the compute types.
  py::dict operations;
  for (const OpInfo& op : kOpInfo) {
    if (op.form == Form::kDrawn) continue; // of tensors that only fuse has
    py::list computes;
#define INPLACE_EXT_COMPUTE(NAME, STORAGE, COMPUTE) \
  if (compute_dtype(DType::NAME) == DType::NAME && has_form(op.types, DType::NAME)) computes.append(#NAME);
    INPLACE_EXT_FOR_DTYPES(INPLACE_EXT_COMPUTE)
#undef INPLACE_EXT_COMPUTE
    operations[op.name] =
        py::make_tuple(operands_of(op.form) + takes_third(op.form), only_numbers(op.form), computes);
  }
  info["operations"] = operations;
  return info;
}

} // namespace
} // namespace inplace_ext

PYBIND11_MODULE(_C, m) {
  using namespace inplace_ext;
  m.doc() = "Compiled part of inplace_ext: argument parsing, checks, choice of path.";
  register_operators();
  m.def("native_names", native_names, "Names of the operations with kernels of their own.");
  m.def(
      "make_function",
      [](const std::string& name, const py::object& kernel, const std::string& signature,
         const std::string& doc, const py::object& delegate, const py::object& guarded, bool divides,
         bool always) {
        PyObject* f = make_function(name, kernel.is_none() ? "" : kernel.cast<std::string>(), signature, doc,
                                    delegate.ptr(), guarded.ptr(), divides, always);
        if (f == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(f);
      },
      py::arg("name"), py::arg("kernel_name"), py::arg("signature"), py::arg("doc"), py::arg("delegate"),
      py::arg("guarded"), py::arg("divides"), py::arg("always"));
  m.def("set_error_hook", [](const py::object& hook) { set_error_hook(hook.ptr()); });
  m.def("set_traced",
        [](const py::object& type, const py::object& hook) { set_traced(type.ptr(), hook.ptr()); });
  m.def("set_enabled", set_enabled);
  m.def("load_kernels", load_kernels, py::arg("path"), "Loads a CPU kernel library; returns its capability.");
  m.def("load_cuda_kernels", load_cuda_kernels, py::arg("path"),
        "Loads the library of the device's kernels; returns the toolkit's version and the architectures.");
  m.def("cuda_serves", cuda_serves, py::arg("name"),
        "Whether the CUDA kernels have the operation of the op table in all of its types.");
  m.def("use_capability", use_capability, py::arg("name"));
  m.def("let_stream", let_stream, py::arg("streams"),
        "Whether what is bound by memory may be left to narrower kernels.");
  m.def("capability",
        [] { return std::string(active_kernels == nullptr ? "" : active_kernels->capability); });
  m.def("loaded_capabilities", loaded_capabilities);
  m.def(
      "add_operation",
      [](const std::string& name, int tensors, const py::list& otherwise) {
        std::vector<PyObject*> values;
        for (const auto& value : otherwise) values.push_back(value.ptr());
        return add_operation(name, tensors, values);
      },
      py::arg("name"), py::arg("tensors"), py::arg("otherwise"),
      "Gives an operation of one's own a code; `otherwise` has the default of each operand, or None.");
  m.def("load_operation", load_operation, py::arg("code"), py::arg("path"),
        "Loads the kernels of one operation; returns their capability.");
  m.def("load_cuda_operation", load_cuda_operation, py::arg("code"), py::arg("path"),
        "Loads the device's kernels of an operation that was added.");
  m.def("code_named", code_named, py::arg("name"), "The code of an operation of the table, or -1.");
  m.def("set_streaming_move_bytes", [](int64_t bytes) { return std::exchange(streaming_move_bytes, bytes); });
  m.def(
      "rearrange",
      [](const py::object& object, bool channels_last) {
        // Where the elements lie is nothing that autograd records.
        const c10::AutoGradMode no_grad(false);
        if (!functions_enabled() || !no_modes()) return false;
        const at::Tensor* const x = plain_tensor(object.ptr());
        return x != nullptr && rearrange(*x, channels_last);
      },
      "Gives a plain tensor the strides of a memory format, where its data lies; False where it does not.");
  m.def("scratch_bytes", scratch_bytes, py::arg("batch"), py::arg("rows"), py::arg("columns"),
        py::arg("bytes"),
        "The memory that matrices of blocks of so many bytes need beside them to be transposed.");
  m.def(
      "set_panel_bytes",
      [](int64_t bytes) {
        if (bytes < kMinPanelBytes)
          throw py::value_error("set_panel_bytes: at least " + std::to_string(kMinPanelBytes));
        return std::exchange(panel_bytes, bytes);
      },
      "Sets the size of the memory through which data is turned; returns what it was.");
  m.def("last_path", path_name, "The path that the last call on this thread took.");
  m.def("run_program", run_program, py::arg("compute"), py::arg("stages"), py::arg("tensors"),
        py::arg("scalars"));
  m.def("build_info", build_info);
  define_fuse(m);
  m.def("gradients", [](const py::object& parameters) {
    PyObject* const found = gradients(parameters.ptr());
    if (found == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::list>(found);
  });
  m.def(
      "clip_on_device",
      [](const py::list& list, double order, double most, bool look) -> py::object {
        if (!functions_enabled() || !no_modes()) return py::none();
        std::vector<at::Tensor> tensors;
        for (const auto& item : list) {
          const at::Tensor* const tensor = plain_tensor(item.ptr());
          if (tensor == nullptr) return py::none();
          tensors.push_back(*tensor);
        }
        if (!takes_clipping(tensors, order)) return py::none();
        const at::Tensor total = clip_on_device(tensors, order, most, look);
        if (!total.defined()) return py::bool_(false);
        for (const at::Tensor& t : tensors) bump_version(t);
        return py::reinterpret_steal<py::object>(THPVariable_Wrap(total));
      },
      "Clips plain tensors of one dtype on one CUDA device to a norm and returns what it was; False, and "
      "nothing done, where it is to look and finds a norm that is not finite; None where the kernels do not "
      "take the tensors.");
  m.def(
      "total_norm",
      [](const py::list& list, double order) -> std::optional<double> {
        std::vector<at::Tensor> tensors;
        tensors.reserve(list.size());
        if (!functions_enabled() || !no_modes()) return std::nullopt;
        for (const auto& item : list) {
          const at::Tensor* const tensor = plain_tensor(item.ptr());
          if (tensor == nullptr) return std::nullopt;
          tensors.push_back(*tensor);
        }
        return total_norm(tensors, order);
      },
      "The norm of plain tensors of one dtype together, or None where the kernels do not take them.");
}
