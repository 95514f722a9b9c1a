#include "fuse.h"

#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <c10/core/TensorImpl.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "binders.h"
#include "device.h"
#include "functions.h"
#include "kernels.h"
#include "overlap.h"
#include "recorder.h"

namespace py = pybind11;

namespace inplace_ext {
namespace {

constexpr int kMaxParameters = 8; // of a public operation

at::ScalarType scalar_type_named(const std::string& name) {
  static const std::pair<const char*, at::ScalarType> types[] = {
      {"float32", at::kFloat}, {"float64", at::kDouble}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16},
      {"uint8", at::kByte},    {"int8", at::kChar},      {"int16", at::kShort},  {"int32", at::kInt},
      {"int64", at::kLong},    {"bool", at::kBool}};
  for (const auto& [known, type] : types) {
    if (name == known) return type;
  }
  throw py::value_error("fuse: no kernels for " + name);
}

// What a trace expects of an argument.
struct Parameter {
  enum Kind { tensor, number, same } kind;
  at::ScalarType dtype{};
  bool zero_dim = false;
  std::vector<int64_t> sizes; // where the trace has looked at the shape
  bool sized = false;
  py::object object; // the type of a number, or what the argument must be equal to
};

// A number: an argument, a constant, or what Python makes of two others.
struct Node {
  enum Kind { argument, constant, operation } kind;
  int a = 0, b = 0;
  PyObject* (*apply)(PyObject*, PyObject*) = nullptr;
  py::object value;
};
PyObject* negative(PyObject* a, PyObject*) {
  return PyNumber_Negative(a);
}
PyObject* power(PyObject* a, PyObject* b) {
  return PyNumber_Power(a, b, Py_None);
}
template <int Op>
PyObject* compare(PyObject* a, PyObject* b) {
  return PyObject_RichCompare(a, b, Op);
}
constexpr struct {
  const char* name;
  PyObject* (*apply)(PyObject*, PyObject*);
} kNodeOperations[] = {
    {"add", PyNumber_Add},
    {"sub", PyNumber_Subtract},
    {"mul", PyNumber_Multiply},
    {"truediv", PyNumber_TrueDivide},
    {"floordiv", PyNumber_FloorDivide},
    {"mod", PyNumber_Remainder},
    {"pow", power},
    {"neg", negative},
    {"lt", compare<Py_LT>},
    {"le", compare<Py_LE>},
    {"eq", compare<Py_EQ>},
    {"ne", compare<Py_NE>},
    {"gt", compare<Py_GT>},
    {"ge", compare<Py_GE>},
};

// A slot of a recorded call: nothing, a value, a number, or any other object.
struct SlotRef {
  enum Kind { none, value, number, object } kind = none;
  int index = 0;
  py::object constant;
};
struct Call {
  enum Kind { operation, create, retype } kind = operation;
  Binder binder = nullptr;
  Op op = Op::count;
  std::string name;
  SlotRef slot[kMaxParameters];
  int temporary = 0; // that is created, of the shape that the values `from` broadcast to
  at::ScalarType dtype{};
  std::vector<int> from;
};

// A tensor of which only dtype, device and shape count, for the binders to look at.
struct StandIn {
  at::Tensor tensor;
  py::object object;
  StandIn() = default;
  StandIn(at::ScalarType dtype, c10::Device device) : tensor(shape_only(dtype, device)) {
    object = py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
  }
};
// A value that never reaches memory: as it is created, and as what it is taken for after a comparison. On the
// device of the call at hand, of which there is one for each that there has been.
struct Temporary {
  at::ScalarType created_dtype = at::ScalarType::Undefined, retyped_dtype = at::ScalarType::Undefined;
  struct OnDevice {
    StandIn created, retyped;
  };
  std::vector<std::pair<c10::Device, std::unique_ptr<OnDevice>>> devices;
  OnDevice* here = nullptr;
  StandIn* current = nullptr;

  void move_to(c10::Device device) {
    for (const auto& [known, stand_ins] : devices) {
      if (known == device) {
        here = stand_ins.get();
        return;
      }
    }
    devices.emplace_back(device, std::make_unique<OnDevice>());
    here = devices.back().second.get();
    here->created = StandIn(created_dtype, device);
    if (retyped_dtype != at::ScalarType::Undefined) here->retyped = StandIn(retyped_dtype, device);
  }
};

// What one trace recorded.
struct Trace {
  std::vector<Parameter> parameters;
  std::vector<py::object> captured; // tensors that the function finds elsewhere: values after the arguments
  std::vector<Node> nodes;
  std::vector<std::pair<int, bool>> guards; // the truth of a number that the function has asked for
  std::vector<Call> calls;
  std::vector<Temporary> temporaries;
  std::vector<int> result; // arguments that are returned
  enum Returns { nothing, one, many } returns = nothing;
  bool round_each = false;
  Lowered lowered;
};

using Counts = c10::SmallVector<int, 8>;

// Numbers of a call; owned.
struct Numbers {
  c10::SmallVector<PyObject*, 8> value;
  ~Numbers() {
    clear();
  }
  void clear() {
    for (PyObject* v : value) Py_XDECREF(v);
    value.clear();
  }
};

class Core {
 public:
  std::string name = "fused";
  std::vector<std::unique_ptr<Trace>> traces;
  PyObject* fallback = nullptr; // called as fallback(why, args)

  PyObject* call(PyObject* const* args, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (is_list_of_tensors(args[i])) return call_lists(args, count);
    }
    const char* why = "trace";
    if (active_kernels == nullptr || !functions_enabled() || !no_modes()) {
      why = "eager";
    } else {
      Numbers numbers;
      Trace* const trace = select(args, count, numbers);
      if (trace == nullptr && PyErr_Occurred() != nullptr) return nullptr;
      if (trace != nullptr) {
        const char* reason = nullptr;
        switch (run(*trace, args, numbers, reason)) {
          case Outcome::done:
          case Outcome::unchanged:
            return result(*trace, args);
          case Outcome::error:
            return nullptr;
          case Outcome::delegate:
            why = "eager";
        }
      }
    }
    return ask(why, args, count);
  }

  // The passes of a call, for people to read; empty and a reason where it does not fuse.
  py::object describe(const py::tuple& arguments);

 private:
  // What Python is to do with the arguments.
  PyObject* ask(const char* why, PyObject* const* args, Py_ssize_t count) {
    last_path = {Taken::torch, Path::loop};
    PyObject* tuple = PyTuple_New(count);
    if (tuple == nullptr) return nullptr;
    for (Py_ssize_t i = 0; i < count; ++i) PyTuple_SET_ITEM(tuple, i, Py_NewRef(args[i]));
    PyObject* answer = PyObject_CallFunction(fallback, "sO", why, tuple);
    Py_DECREF(tuple);
    return answer;
  }
  static bool is_list(PyObject* object) {
    return PyList_CheckExact(object) || PyTuple_CheckExact(object);
  }
  static bool is_list_of_tensors(PyObject* object) {
    return is_list(object) && PySequence_Fast_GET_SIZE(object) > 0 &&
           THPVariable_Check(PySequence_Fast_GET_ITEM(object, 0));
  }
  PyObject* call_lists(PyObject* const* args, Py_ssize_t count);
  // The trace of such arguments, and its numbers; null where there is none, or with a Python error set.
  Trace* select(PyObject* const* args, Py_ssize_t count, Numbers& numbers) {
    for (size_t i = 0; i < traces.size(); ++i) { // of which a comparison may let others add some
      Trace* const trace = traces[i].get();
      if (!matches(*trace, args, count)) continue;
      numbers.clear();
      bool guarded = true;
      if (!evaluate(*trace, args, numbers, guarded)) return nullptr;
      if (guarded) return trace;
    }
    return nullptr;
  }
  static bool matches(const Trace& trace, PyObject* const* args, Py_ssize_t count) {
    if (static_cast<Py_ssize_t>(trace.parameters.size()) != count) return false;
    for (Py_ssize_t i = 0; i < count; ++i) {
      const Parameter& p = trace.parameters[i];
      switch (p.kind) {
        case Parameter::tensor: {
          if (!THPVariable_CheckExact(args[i])) return false;
          const at::Tensor& t = THPVariable_Unpack(args[i]);
          if (t.scalar_type() != p.dtype || (t.dim() == 0) != p.zero_dim) return false;
          if (p.sized && t.sizes() != at::IntArrayRef(p.sizes)) return false;
          break;
        }
        case Parameter::number:
          if (reinterpret_cast<PyObject*>(Py_TYPE(args[i])) != p.object.ptr()) return false;
          break;
        case Parameter::same: {
          if (args[i] == p.object.ptr()) break;
          if (Py_TYPE(args[i]) != Py_TYPE(p.object.ptr())) return false;
          const int equal = PyObject_RichCompareBool(args[i], p.object.ptr(), Py_EQ);
          if (equal < 0) PyErr_Clear();
          if (equal <= 0) return false;
          break;
        }
      }
    }
    return true;
  }
  // False with a Python error set where Python's arithmetic fails; `guarded` false where the function would
  // have gone another way.
  static bool evaluate(const Trace& trace, PyObject* const* args, Numbers& numbers, bool& guarded) {
    numbers.value.reserve(trace.nodes.size());
    for (const Node& node : trace.nodes) {
      PyObject* v = nullptr;
      switch (node.kind) {
        case Node::argument:
          v = Py_NewRef(args[node.a]);
          break;
        case Node::constant:
          v = Py_NewRef(node.value.ptr());
          break;
        case Node::operation:
          v = node.apply(numbers.value[node.a], numbers.value[node.b]);
          break;
      }
      if (v == nullptr) return false;
      numbers.value.push_back(v);
    }
    for (const auto& [node, truth] : trace.guards) {
      const int is = PyObject_IsTrue(numbers.value[node]);
      if (is < 0) return false;
      guarded = guarded && (is != 0) == truth;
    }
    return true;
  }
  static PyObject* result(const Trace& trace, PyObject* const* args) {
    if (trace.returns == Trace::nothing) Py_RETURN_NONE;
    if (trace.returns == Trace::one) return Py_NewRef(args[trace.result[0]]);
    PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(trace.result.size()));
    if (tuple == nullptr) return nullptr;
    for (size_t i = 0; i < trace.result.size(); ++i)
      PyTuple_SET_ITEM(tuple, static_cast<Py_ssize_t>(i), Py_NewRef(args[trace.result[i]]));
    return tuple;
  }

  // Binds the calls to the arguments: `bumps` says how often each value is changed.
  static Outcome bind(Trace& trace, PyObject* const* args, const Numbers& numbers, Recorder& recorded,
                      Counts& bumps);
  Outcome run(Trace& trace, PyObject* const* args, const Numbers& numbers, const char*& reason);
};

struct InForce {
  explicit InForce(Recorder* r) {
    recorder = r;
  }
  ~InForce() {
    recorder = nullptr;
  }
};

Outcome Core::bind(Trace& trace, PyObject* const* args, const Numbers& numbers, Recorder& recorded,
                   Counts& bumps) {
  const int given = static_cast<int>(trace.parameters.size());
  const int count = given + static_cast<int>(trace.captured.size());
  const auto object = [&](int i) { return i < given ? args[i] : trace.captured[i - given].ptr(); };
  c10::SmallVector<const at::Tensor*, 8> tensor(count, nullptr);
  c10::SmallVector<int, 16> value(count + trace.temporaries.size(), -1);
  for (int i = 0; i < count; ++i) {
    if (i < given && trace.parameters[i].kind != Parameter::tensor) continue;
    tensor[i] = plain_tensor(object(i));
    if (tensor[i] == nullptr) return Outcome::delegate;
    value[i] = recorded.add(*tensor[i], false);
    // Two tensors over the same elements would have to be one value.
    for (int k = 0; k < i; ++k) {
      if (value[k] < 0 || value[k] == value[i]) continue;
      if (tensor[k]->numel() > 0 && tensor[k]->const_data_ptr() == tensor[i]->const_data_ptr())
        return Outcome::delegate;
    }
  }
  const auto tensor_of = [&](int v) -> const at::Tensor& {
    return v < count ? *tensor[v] : trace.temporaries[v - count].current->tensor;
  };
  // That of the first tensor which is no number on the CPU.
  c10::Device device = at::kCPU;
  for (int i = count - 1; i >= 0; --i) {
    if (tensor[i] != nullptr && (device.is_cpu() || tensor[i]->dim() > 0)) device = tensor[i]->device();
  }
  const InForce scope(&recorded);
  for (const Call& call : trace.calls) {
    if (call.kind == Call::retype) {
      Temporary& t = trace.temporaries[call.temporary];
      StandIn& retyped = t.here->retyped;
      retyped.tensor.unsafeGetTensorImpl()->set_sizes_contiguous(t.here->created.tensor.sizes());
      t.current = &retyped;
      recorded.values[value[count + call.temporary]].tensor = &retyped.tensor;
      continue;
    }
    if (call.kind == Call::create) {
      Temporary& t = trace.temporaries[call.temporary];
      c10::DimVector sizes(tensor_of(call.from[0]).sizes());
      for (size_t k = 1; k < call.from.size(); ++k) {
        const at::Tensor& other = tensor_of(call.from[k]);
        if (!at::are_expandable(sizes, other.sizes())) return Outcome::delegate;
        sizes = at::infer_size_dimvector(sizes, other.sizes());
      }
      t.move_to(device);
      t.current = &t.here->created;
      t.current->tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
      value[count + call.temporary] = recorded.add(t.current->tensor, true);
      continue;
    }
    PyObject* slot[kMaxParameters] = {};
    for (int i = 0; i < kMaxParameters; ++i) {
      const SlotRef& ref = call.slot[i];
      switch (ref.kind) {
        case SlotRef::none:
          break;
        case SlotRef::value:
          slot[i] = ref.index < count ? object(ref.index)
                                      : trace.temporaries[ref.index - count].current->object.ptr();
          break;
        case SlotRef::number:
          slot[i] = numbers.value[ref.index];
          break;
        case SlotRef::object:
          slot[i] = ref.constant.ptr();
          break;
      }
    }
    const Outcome outcome = call.binder(call.op, slot);
    if (outcome == Outcome::delegate || outcome == Outcome::error) return outcome;
    if (outcome == Outcome::unchanged) continue;
    const int changed = value[call.slot[0].index];
    if (static_cast<int>(bumps.size()) <= changed) bumps.resize(changed + 1);
    ++bumps[changed];
  }
  return Outcome::done;
}

// Whether the passes can run one after the other: each writes tensors of one shape, which share no memory
// with others at other places. tensor_of(v) is the tensor of value v.
template <class TensorOf>
bool fits_together(const Passes& passes, TensorOf tensor_of) {
  for (const Pass& pass : passes) {
    const at::Tensor* x = nullptr;
    for (int t = 0; t < pass.tensors; ++t) {
      const at::Tensor& tensor = tensor_of(pass.value[t]);
      if (tensor.dim() > kMaxDims) return false;
      if (!pass.mutated[t]) continue;
      if (x != nullptr && x->sizes() != tensor.sizes()) return false;
      x = &tensor;
    }
    if (x == nullptr) return false;
    for (int t = 0; t < pass.tensors; ++t) {
      const at::Tensor& tensor = tensor_of(pass.value[t]);
      if (!pass.mutated[t] && !broadcasts_to(tensor, *x)) return false;
      if (pass.program.drawn(t) != nullptr) continue;
      for (int u = 0; u < t; ++u) {
        if ((pass.mutated[t] || pass.mutated[u]) && pass.program.drawn(u) == nullptr &&
            share_memory(tensor_of(pass.value[u]), tensor))
          return false;
      }
    }
  }
  return true;
}
bool fits_together(const Recorder& recorded, const Passes& passes) {
  return fits_together(passes, [&](int v) -> const at::Tensor& { return *recorded.values[v].tensor; });
}

// Gives the draws of a pass that is about to run the seeds that they lack.
void draw_seeds(Pass& pass) {
  for (Pass::Unseeded& u : pass.unseeded) {
    Draws& from = pass.program.draw[u.draw].from;
    if (u.device.is_cpu()) {
      from.seed = draw_seed(u.generator);
    } else {
      u.state = draw_state(u.device, u.generator);
      from.state = u.state.const_data_ptr<int64_t>();
    }
  }
}

Outcome Core::run(Trace& trace, PyObject* const* args, const Numbers& numbers, const char*& reason) {
  Recorder recorded;
  Counts bumps;
  const Outcome outcome = bind(trace, args, numbers, recorded, bumps);
  if (outcome != Outcome::done) return outcome;
  bumps.resize(recorded.values.size());
  Passes passes = trace.lowered.of(recorded, trace.round_each, reason);
  if (passes.empty() && !recorded.steps.empty() && reason != nullptr) return Outcome::delegate;
  if (!fits_together(recorded, passes)) return Outcome::delegate;
  RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>{});
  // The tensors are held, since others may run while the GIL is released.
  c10::SmallVector<at::Tensor, 8> held;
  for (const Value& v : recorded.values) held.push_back(v.temporary ? at::Tensor() : *v.tensor);
  for (Pass& pass : passes) draw_seeds(pass);
  for (const Pass& pass : passes) {
    const at::Tensor* tensors[kMaxTensors];
    for (int t = 0; t < pass.tensors; ++t) tensors[t] = &held[pass.value[t]];
    if (execute_pass(pass.program, tensors, pass.mutated, pass.tensors) != Outcome::done) {
      PyErr_SetString(PyExc_RuntimeError, "fuse: the tensors have more dims than a program takes");
      return Outcome::error;
    }
  }
  for (size_t v = 0; v < held.size(); ++v) {
    if (!held[v].defined()) continue;
    for (int k = 0; k < bumps[v]; ++k) bump_version(held[v]);
  }
  if (passes.empty()) last_path = {Taken::native, Path::loop};
  return Outcome::done;
}

// Whether what one program writes no other reads or writes.
bool are_apart(const std::vector<Work>& work) {
  struct Extent {
    intptr_t begin, end;
    size_t owner;
    bool mutated;
  };
  std::vector<Extent> extents;
  for (size_t w = 0; w < work.size(); ++w) {
    for (int t = 0; t < work[w].count; ++t) {
      const at::Tensor& tensor = *work[w].tensors[t];
      if (tensor.numel() == 0 || work[w].program->drawn(t) != nullptr) continue;
      const auto begin = reinterpret_cast<intptr_t>(tensor.const_data_ptr());
      const int64_t bytes = extent(tensor, static_cast<int>(tensor.element_size()));
      extents.push_back({begin, begin + bytes, w, work[w].mutated[t]});
    }
  }
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  // The farthest ends so far, of what is written and of all, and whose they are.
  const Extent* written = nullptr;
  const Extent* any = nullptr;
  for (const Extent& e : extents) {
    if (written != nullptr && written->end > e.begin && written->owner != e.owner) return false;
    if (e.mutated && any != nullptr && any->end > e.begin && any->owner != e.owner) return false;
    if (e.mutated && (written == nullptr || e.end > written->end)) written = &e;
    if (any == nullptr || e.end > any->end) any = &e;
  }
  return true;
}

// The function on each of the elements of lists: everything is bound before anything runs.
PyObject* Core::call_lists(PyObject* const* args, Py_ssize_t count) {
  Py_ssize_t n = -1;
  c10::SmallVector<bool, 8> listed(count, false);
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!is_list_of_tensors(args[i])) continue;
    listed[i] = true;
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(args[i]);
    if (n >= 0 && size != n) {
      PyErr_Format(PyExc_ValueError, "%s: the lists have %zd and %zd tensors", name.c_str(), n, size);
      return nullptr;
    }
    n = size;
  }
  if (active_kernels == nullptr || !functions_enabled() || !no_modes()) return ask("lists", args, count);

  // What the elements that are alike share.
  struct Shared {
    Passes passes;
    Counts bumps;                      // by value
    c10::SmallVector<int, 8> argument; // of each value; -1 for others
    c10::SmallVector<int, 8> changed;  // arguments
    bool alike = false;                // every tensor is an argument of one shape, given once
  };
  struct Item {
    int shared;
    size_t tensors; // where its tensors begin, one for each value
  };
  std::vector<std::unique_ptr<Shared>> shared;
  std::vector<Item> items;
  std::vector<at::Tensor> tensors; // held: others may run while the GIL is released
  items.reserve(n);
  c10::SmallVector<PyObject*, 8> element(args, args + count);
  Trace* trace = nullptr;
  Numbers numbers;
  bool several = false;
  for (Py_ssize_t e = 0; e < n; ++e) {
    for (Py_ssize_t i = 0; i < count; ++i) {
      // A list may have been changed by what a comparison called.
      if (listed[i] && e >= PySequence_Fast_GET_SIZE(args[i])) return ask("lists", args, count);
      if (listed[i]) element[i] = PySequence_Fast_GET_ITEM(args[i], e);
    }
    const bool same_trace = trace != nullptr && matches(*trace, element.data(), count);
    if (!same_trace) {
      trace = select(element.data(), count, numbers);
      if (trace == nullptr && PyErr_Occurred() == nullptr) {
        PyObject* const added = ask("prepare", element.data(), count);
        if (added == nullptr) return nullptr;
        const bool more = added == Py_True;
        Py_DECREF(added);
        if (more) trace = select(element.data(), count, numbers);
        if (trace == nullptr && PyErr_Occurred() == nullptr) return ask("lists", args, count);
      }
      if (trace == nullptr) return nullptr;
    }
    const auto is_tensor = [&](Py_ssize_t i) { return trace->parameters[i].kind == Parameter::tensor; };
    // Like the element before: what was found out about that holds of this one.
    bool alike = same_trace && !shared.empty() && shared.back()->alike;
    const at::Tensor* first = nullptr;
    const at::Tensor* given[16];
    for (Py_ssize_t i = 0; i < count && alike; ++i) {
      if (!is_tensor(i)) continue;
      given[i] = plain_tensor(element[i]);
      alike = given[i] != nullptr && (first == nullptr || given[i]->sizes() == first->sizes());
      for (Py_ssize_t k = 0; k < i && alike; ++k)
        alike = !is_tensor(k) ||
                (given[k]->unsafeGetTensorImpl() != given[i]->unsafeGetTensorImpl() &&
                 !(given[k]->numel() > 0 && given[k]->const_data_ptr() == given[i]->const_data_ptr()));
      if (first == nullptr) first = given[i];
    }
    if (alike) {
      for (const int i : shared.back()->changed) alike = alike && writable_tensor(element[i]) != nullptr;
    }
    Recorder recorded;
    if (!alike) {
      auto fresh = std::make_unique<Shared>();
      const Outcome outcome = bind(*trace, element.data(), numbers, recorded, fresh->bumps);
      if (outcome == Outcome::error) return nullptr;
      if (outcome != Outcome::done) return ask("lists", args, count);
      fresh->bumps.resize(recorded.values.size());
      const char* reason = nullptr;
      fresh->passes = trace->lowered.of(recorded, trace->round_each, reason);
      if (fresh->passes.empty() && !recorded.steps.empty() && reason != nullptr)
        return ask("lists", args, count);
      several = several || fresh->passes.size() > 1;
      fresh->alike = count <= 16 && trace->captured.empty();
      const at::Tensor* shape = nullptr;
      int arguments = 0;
      for (Py_ssize_t i = 0; i < count; ++i) arguments += is_tensor(i);
      for (size_t v = 0; v < recorded.values.size(); ++v) {
        const Value& value = recorded.values[v];
        int at = -1;
        for (Py_ssize_t i = 0; i < count && at < 0 && !value.temporary; ++i) {
          if (is_tensor(i) && &THPVariable_Unpack(element[i]) == value.tensor) at = static_cast<int>(i);
        }
        fresh->argument.push_back(at);
        if (value.temporary) continue;
        --arguments;
        fresh->alike = fresh->alike && at >= 0 && value.tensor->dim() > 0 &&
                       (shape == nullptr || shape->sizes() == value.tensor->sizes());
        shape = value.tensor;
        if (at >= 0 && fresh->bumps[v] > 0) fresh->changed.push_back(at);
      }
      fresh->alike = fresh->alike && arguments == 0;
      shared.push_back(std::move(fresh));
    }
    const Shared& s = *shared.back();
    items.push_back({static_cast<int>(shared.size()) - 1, tensors.size()});
    const size_t begin = tensors.size();
    for (size_t v = 0; v < s.argument.size(); ++v) {
      if (s.argument[v] >= 0) {
        tensors.push_back(THPVariable_Unpack(element[s.argument[v]]));
      } else {
        const bool captured = v < recorded.values.size() && !recorded.values[v].temporary;
        tensors.push_back(captured ? *recorded.values[v].tensor : at::Tensor());
      }
    }
    // Within the element; the others come before or after it.
    const auto tensor_of = [&](int v) -> const at::Tensor& { return tensors[begin + v]; };
    if (!fits_together(s.passes, tensor_of)) return ask("lists", args, count);
  }

  RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>{});
  std::vector<Work> work;
  std::vector<const at::Tensor*> pointers;
  work.reserve(n);
  pointers.reserve(tensors.size() + n);
  for (const Item& item : items) {
    for (const Pass& pass : shared[item.shared]->passes) {
      for (int t = 0; t < pass.tensors; ++t) pointers.push_back(&tensors[item.tensors + pass.value[t]]);
    }
  }
  size_t at = 0;
  for (const Item& item : items) {
    for (Pass& pass : shared[item.shared]->passes) {
      draw_seeds(pass);
      work.push_back({&pass.program, pointers.data() + at, pass.mutated, pass.tensors});
      at += pass.tensors;
    }
  }
  last_path = {Taken::native, Path::loop};
  const bool device = std::any_of(tensors.begin(), tensors.end(),
                                  [](const at::Tensor& t) { return t.defined() && on_device(t); });
  const bool concurrently = (at::get_num_threads() > 1 || device) && !several && are_apart(work);
  execute_all(work.data(), static_cast<int64_t>(work.size()), concurrently);
  for (const Item& item : items) {
    const Shared& s = *shared[item.shared];
    for (size_t v = 0; v < s.argument.size(); ++v) {
      for (int k = 0; k < s.bumps[v]; ++k) {
        if (tensors[item.tensors + v].defined()) bump_version(tensors[item.tensors + v]);
      }
    }
  }
  return result(*trace, args);
}

py::object Core::describe(const py::tuple& arguments) {
  PyObject* const* args = reinterpret_cast<PyTupleObject*>(arguments.ptr())->ob_item;
  Numbers numbers;
  Trace* const trace = select(args, PyTuple_GET_SIZE(arguments.ptr()), numbers);
  if (trace == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
  if (trace == nullptr) return py::none();
  Recorder recorded;
  Counts bumps;
  const Outcome outcome = bind(*trace, args, numbers, recorded, bumps);
  if (outcome == Outcome::error) throw py::error_already_set();
  const char* reason = "an operation, dtype or layout that the kernels do not take";
  if (outcome == Outcome::delegate) return py::str(reason);
  reason = nullptr;
  const Passes passes = trace->lowered.of(recorded, trace->round_each, reason);
  if (passes.empty() && reason != nullptr) return py::str(reason);
  if (!fits_together(recorded, passes))
    return py::str("tensors of several shapes, or that share memory, are changed");
  py::list all;
  for (const Pass& pass : passes) {
    py::list stages, tensors;
    for (int i = 0; i < pass.program.stages; ++i) {
      const Stage& s = pass.program.stage[i];
      const auto operand = [&](Operand kind, int index) -> py::object {
        if (kind == Operand::scalar) {
          const Scalar v = pass.program.scalar[index];
          return is_floating(pass.program.compute) ? py::object(py::float_(v.d)) : py::object(py::int_(v.i));
        }
        if (kind == Operand::tensor && pass.program.drawn(index) != nullptr)
          return py::make_tuple("d", pass.value[index]);
        if (kind == Operand::tensor) return py::make_tuple("t", pass.value[index]);
        if (kind == Operand::temporary) return py::make_tuple("r", index);
        return py::none();
      };
      const char* name = s.code == kLoad    ? "load"
                         : s.code == kStore ? "store"
                         : s.code == kRound ? "round"
                                            : op_info(s.code).name;
      stages.append(py::make_tuple(name, operand(s.b_kind, s.b), operand(s.c_kind, s.c)));
    }
    for (int t = 0; t < pass.tensors; ++t) tensors.append(py::make_tuple(pass.value[t], pass.mutated[t]));
    all.append(py::make_tuple(stages, tensors));
  }
  // Values of the passes are counted over distinct tensors.
  py::list values;
  for (size_t i = 0; i < trace->parameters.size(); ++i) {
    if (trace->parameters[i].kind == Parameter::tensor)
      values.append(py::make_tuple(i, recorded.add(THPVariable_Unpack(args[i]), false)));
  }
  return py::make_tuple(all, values);
}

// ---- from Python ------------------------------------------------------------------------------------------

Parameter read_parameter(const py::tuple& item) {
  Parameter p;
  const auto kind = item[0].cast<std::string>();
  if (kind == "tensor") {
    p.kind = Parameter::tensor;
    p.dtype = scalar_type_named(item[1].cast<std::string>());
    p.zero_dim = item[2].cast<bool>();
    if (!item[3].is_none()) {
      p.sized = true;
      p.sizes = item[3].cast<std::vector<int64_t>>();
    }
  } else {
    p.kind = kind == "number" ? Parameter::number : Parameter::same;
    p.object = item[1];
  }
  return p;
}

Node read_node(const py::tuple& item) {
  Node node;
  const auto kind = item[0].cast<std::string>();
  if (kind == "argument") {
    node.kind = Node::argument;
    node.a = item[1].cast<int>();
  } else if (kind == "constant") {
    node.kind = Node::constant;
    node.value = item[1];
  } else {
    node.kind = Node::operation;
    for (const auto& known : kNodeOperations) {
      if (kind == known.name) node.apply = known.apply;
    }
    if (node.apply == nullptr) throw py::value_error("fuse: unknown operation of numbers " + kind);
    node.a = item[1].cast<int>();
    node.b = item[2].cast<int>();
  }
  return node;
}

Call read_call(const py::tuple& item) {
  Call call;
  const auto kind = item[0].cast<std::string>();
  if (kind == "create" || kind == "retype") {
    call.kind = kind == "create" ? Call::create : Call::retype;
    call.temporary = item[1].cast<int>();
    call.dtype = scalar_type_named(item[2].cast<std::string>());
    if (kind == "create") call.from = item[3].cast<std::vector<int>>();
    return call;
  }
  call.name = item[1].cast<std::string>();
  call.binder = find_binder(call.name, call.op);
  if (call.binder == nullptr) throw py::value_error("fuse: no kernel named " + call.name);
  const py::list slots = item[2].cast<py::list>();
  if (slots.size() > kMaxParameters) throw py::value_error("fuse: too many arguments of " + call.name);
  for (size_t i = 0; i < slots.size(); ++i) {
    if (slots[i].is_none()) continue;
    const auto pair = slots[i].cast<py::tuple>();
    const auto what = pair[0].cast<std::string>();
    SlotRef& ref = call.slot[i];
    ref.kind = what == "value" ? SlotRef::value : what == "number" ? SlotRef::number : SlotRef::object;
    if (ref.kind == SlotRef::object) {
      ref.constant = pair[1];
    } else {
      ref.index = pair[1].cast<int>();
    }
  }
  return call;
}

void add_trace(Core& core, const py::dict& given) {
  auto trace = std::make_unique<Trace>();
  for (const auto& item : given["parameters"].cast<py::list>())
    trace->parameters.push_back(read_parameter(item.cast<py::tuple>()));
  for (const auto& item : given["captured"].cast<py::list>())
    trace->captured.push_back(py::reinterpret_borrow<py::object>(item));
  for (const auto& item : given["nodes"].cast<py::list>())
    trace->nodes.push_back(read_node(item.cast<py::tuple>()));
  for (const auto& item : given["guards"].cast<py::list>())
    trace->guards.push_back(item.cast<std::pair<int, bool>>());
  trace->temporaries.resize(given["temporaries"].cast<size_t>());
  for (const auto& item : given["calls"].cast<py::list>()) {
    trace->calls.push_back(read_call(item.cast<py::tuple>()));
    const Call& call = trace->calls.back();
    if (call.kind == Call::create) trace->temporaries.at(call.temporary).created_dtype = call.dtype;
    if (call.kind == Call::retype) trace->temporaries.at(call.temporary).retyped_dtype = call.dtype;
  }
  trace->round_each = given["round_each"].cast<bool>();
  const py::object result = given["result"];
  if (py::isinstance<py::int_>(result)) {
    trace->returns = Trace::one;
    trace->result = {result.cast<int>()};
  } else if (!result.is_none()) {
    trace->returns = Trace::many;
    trace->result = result.cast<std::vector<int>>();
  }
  core.traces.push_back(std::move(trace));
}

const char kCapsule[] = "inplace_ext.fused";

PyObject* call_fused(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  return static_cast<Core*>(PyCapsule_GetPointer(self, kCapsule))->call(args, count);
  END_HANDLE_TH_ERRORS
}
PyMethodDef call_definition = {
    "fused", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_fused)), METH_FASTCALL, nullptr};

} // namespace

void define_fuse(py::module_& m) {
  py::class_<Core>(m, "FusedCore")
      .def(py::init([](const std::string& name, const py::object& fallback) {
        auto core = std::make_unique<Core>();
        core->name = name;
        core->fallback = Py_NewRef(fallback.ptr());
        return core;
      }))
      .def("add_trace", add_trace)
      .def("traces", [](const Core& core) { return core.traces.size(); })
      .def("describe", &Core::describe)
      .def("function", [](const py::object& self) {
        // The capsule holds the core, which the function holds.
        PyObject* capsule = PyCapsule_New(self.cast<Core*>(), kCapsule, [](PyObject* c) {
          Py_XDECREF(static_cast<PyObject*>(PyCapsule_GetContext(c)));
        });
        if (capsule == nullptr) throw py::error_already_set();
        PyCapsule_SetContext(capsule, Py_NewRef(self.ptr()));
        PyObject* function = PyCFunction_NewEx(&call_definition, capsule, nullptr);
        Py_DECREF(capsule);
        return py::reinterpret_steal<py::object>(function);
      });
}

} // namespace inplace_ext
