#include "functions.h"

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <algorithm>
#include <array>
#include <utility>

#include "binders.h"
#include "tensors.h"

namespace inplace_ext {
namespace {

constexpr int kMaxParameters = 6;
// Public functions are C functions without a self, so that they pickle by name and look as torch's own
// built-ins do; each needs a C entry point of its own to know which it is.
constexpr int kMaxFunctions = 384;

struct Function {
  PyMethodDef definition{};
  std::string name, kernel, doc;
  PyObject* parameter[kMaxParameters] = {}; // interned names
  int parameters = 0, positional = 0;
  int required = 0;  // those without a default, which come first
  int rest = -1;     // the one of *shape, a tuple of what stands there
  Op op = Op::count; // for the binder
  Binder binder = nullptr;
  Maker maker = nullptr;        // instead, of a function that returns a new tensor
  PyObject* delegate = nullptr; // torch's method
  PyObject* guarded = nullptr;  // the same behind the checks of _delegate.py
  bool divides = false, always = false;
};
std::array<Function, kMaxFunctions> functions;
int function_count = 0;
PyObject* error_hook = nullptr;
PyObject *traced_type = nullptr, *traced_hook = nullptr;
bool enabled = true;

// ---- calls ------------------------------------------------------------------------------------------------

// Puts the arguments where the parameters are; false if they do not fit, which torch then says better. The
// tuple of a rest is the caller's to let go.
bool parse(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames, PyObject** slot,
           THPObjectPtr& rest) {
  if (nargs > f.positional && f.rest < 0) return false;
  for (Py_ssize_t i = 0; i < std::min<Py_ssize_t>(nargs, f.positional); ++i) slot[i] = args[i];
  if (f.rest >= 0) {
    const Py_ssize_t count = std::max<Py_ssize_t>(nargs - f.positional, 0);
    rest = PyTuple_New(count);
    if (!rest) throw python_error();
    for (Py_ssize_t i = 0; i < count; ++i) PyTuple_SET_ITEM(rest.get(), i, Py_NewRef(args[f.positional + i]));
    slot[f.rest] = rest;
  }
  const Py_ssize_t keywords = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
  for (Py_ssize_t k = 0; k < keywords; ++k) {
    PyObject* const name = PyTuple_GET_ITEM(kwnames, k);
    int at = 0;
    while (at < f.parameters && f.parameter[at] != name) ++at;
    if (at == f.parameters) {
      for (at = 0; at < f.parameters && PyUnicode_Compare(f.parameter[at], name) != 0; ++at) {
      }
    }
    if (at == f.parameters || slot[at] != nullptr) return false;
    slot[at] = args[nargs + k];
  }
  for (int i = 0; i < f.required; ++i) {
    if (slot[i] == nullptr) return false;
  }
  return true;
}

// The native path, or Outcome::delegate.
Outcome run_native(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames,
                   PyObject*& result) {
  if (active_kernels == nullptr || !enabled || !no_modes()) return Outcome::delegate;
  if (f.binder == nullptr && f.maker == nullptr) return Outcome::delegate;
  PyObject* slot[kMaxParameters] = {};
  THPObjectPtr rest;
  if (!parse(f, args, nargs, kwnames, slot, rest)) return Outcome::delegate;
  RECORD_FUNCTION(f.name, c10::ArrayRef<const c10::IValue>{});
  at::Tensor made;
  const Outcome outcome = f.maker != nullptr ? f.maker(slot, made) : f.binder(f.op, slot);
  if (outcome == Outcome::done && f.maker != nullptr) {
    result = THPVariable_Wrap(std::move(made));
    return result == nullptr ? Outcome::error : outcome;
  }
  if (outcome == Outcome::done) bump_version(THPVariable_Unpack(slot[0]));
  if (outcome == Outcome::done || outcome == Outcome::unchanged) result = Py_NewRef(slot[0]);
  return outcome;
}

// The arguments as a tuple and a dict; false with a Python error set.
bool pack(PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames, PyObject*& positional,
          PyObject*& keywords) {
  positional = PyTuple_New(nargs);
  keywords = PyDict_New();
  if (positional == nullptr || keywords == nullptr) return false;
  for (Py_ssize_t i = 0; i < nargs; ++i) PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
  const Py_ssize_t count = kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames);
  for (Py_ssize_t k = 0; k < count; ++k) {
    if (PyDict_SetItem(keywords, PyTuple_GET_ITEM(kwnames, k), args[nargs + k]) < 0) return false;
  }
  return true;
}

// Gives the error of a delegate to the hook, which may say more.
void explain(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  if (error_hook == nullptr) return;
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  if (trace != nullptr && value != nullptr) PyException_SetTraceback(value, trace);
  PyObject *positional = nullptr, *keywords = nullptr, *replaced = nullptr;
  if (pack(args, nargs, kwnames, positional, keywords))
    replaced = PyObject_CallFunction(error_hook, "OsOO", value, f.name.c_str(), positional, keywords);
  Py_XDECREF(positional);
  Py_XDECREF(keywords);
  if (replaced == nullptr) PyErr_Clear(); // the hook's own failure must not hide the error
  if (replaced != nullptr && PyExceptionInstance_Check(replaced)) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(replaced)), replaced);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
  } else {
    PyErr_Restore(type, value, trace);
  }
  Py_XDECREF(replaced);
}

// A tensor that the guard can look at: with memory of its own, and nothing wrapped around it.
const at::Tensor* guardable(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const at::Tensor& t = THPVariable_Unpack(object);
  const c10::DispatchKeySet keys = t.key_set();
  const bool dense = keys.has(c10::DispatchKey::CPU) || keys.has(c10::DispatchKey::CUDA);
  const c10::DispatchKeySet wrappers =
      c10::python_ks | c10::functorch_transforms_ks | c10::DispatchKeySet(c10::DispatchKey::Functionalize);
  return dense && !keys.has_any(wrappers) && t.unsafeGetTensorImpl()->has_storage() ? &t : nullptr;
}
// Whether torch, left alone with these arguments, might write before it raises or read what it has written.
// The guard looks closer; this only spares the other calls its cost.
bool needs_guard(const Function& f, PyObject* const* args, Py_ssize_t count) {
  if (!no_modes()) return false;
  const at::Tensor* const x = guardable(args[0]);
  if (x == nullptr) return false;
  if (x->is_inference() && !c10::InferenceMode::is_enabled()) return true;
  if (f.always) return true;
  if (f.divides && !x->is_floating_point() && !x->is_complex()) return true;
  for (Py_ssize_t i = 1; i < count; ++i) {
    const at::Tensor* const operand = guardable(args[i]);
    if (operand != nullptr && operand->device() == x->device() && share_memory(*x, *operand)) {
      return true;
    }
  }
  return false;
}

// hook(name, args, kwargs); an added operation goes by its kernel, since there may be others of its name.
PyObject* call_hook(PyObject* hook, const Function& f, PyObject* const* args, Py_ssize_t nargs,
                    PyObject* kwnames) {
  const std::string& name = f.kernel[0] == '@' ? f.kernel : f.name;
  PyObject *positional = nullptr, *keywords = nullptr, *result = nullptr;
  if (pack(args, nargs, kwnames, positional, keywords))
    result = PyObject_CallFunction(hook, "sOO", name.c_str(), positional, keywords);
  Py_XDECREF(positional);
  Py_XDECREF(keywords);
  return result;
}

PyObject* call_delegate(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  if (traced_type != nullptr && nargs > 0 && reinterpret_cast<PyObject*>(Py_TYPE(args[0])) == traced_type)
    return call_hook(traced_hook, f, args, nargs, kwnames);
  last_path = {Taken::torch, Path::loop};
  PyObject* result;
  // Torch's methods take the tensor as self, by position only.
  Py_ssize_t at = -1;
  const Py_ssize_t keywords = kwnames == nullptr || nargs > 0 ? 0 : PyTuple_GET_SIZE(kwnames);
  for (Py_ssize_t k = 0; k < keywords; ++k) {
    if (PyUnicode_Compare(PyTuple_GET_ITEM(kwnames, k), f.parameter[0]) == 0) at = k;
  }
  if (at >= 0) {
    std::vector<PyObject*> values{args[at]};
    PyObject* names = PyTuple_New(keywords - 1);
    if (names == nullptr) return nullptr;
    for (Py_ssize_t k = 0, out = 0; k < keywords; ++k) {
      if (k == at) continue;
      values.push_back(args[k]);
      PyTuple_SET_ITEM(names, out++, Py_NewRef(PyTuple_GET_ITEM(kwnames, k)));
    }
    result = PyObject_Vectorcall(f.guarded, values.data(), 1, names);
    Py_DECREF(names);
  } else {
    const Py_ssize_t count = nargs + (kwnames == nullptr ? 0 : PyTuple_GET_SIZE(kwnames));
    PyObject* const callee = nargs > 0 && needs_guard(f, args, count) ? f.guarded : f.delegate;
    result = PyObject_Vectorcall(callee, args, nargs, kwnames);
  }
  if (result == nullptr) explain(f, args, nargs, kwnames);
  return result;
}

PyObject* call(const Function& f, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  HANDLE_TH_ERRORS
  PyObject* result = nullptr;
  switch (run_native(f, args, nargs, kwnames, result)) {
    case Outcome::done:
    case Outcome::unchanged:
      return result;
    case Outcome::error:
      return nullptr;
    case Outcome::delegate:
      break;
  }
  return call_delegate(f, args, nargs, kwnames);
  END_HANDLE_TH_ERRORS
}

template <int I>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t nargs, PyObject* kwnames) {
  return call(functions[I], args, nargs, kwnames);
}
using Entry = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
template <int... I>
constexpr std::array<Entry, sizeof...(I)> make_entries(std::integer_sequence<int, I...>) {
  return {entry<I>...};
}
constexpr auto entries = make_entries(std::make_integer_sequence<int, kMaxFunctions>{});

// Reads "(input, other, *, alpha=1)".
bool parse_signature(const std::string& signature, Function& f) {
  bool keyword_only = false;
  std::string name;
  bool in_default = false;
  int depth = 0;
  for (size_t i = 1; i < signature.size(); ++i) {
    const char ch = signature[i];
    const bool last = ch == ')' && depth == 0;
    if (last || (ch == ',' && depth == 0)) {
      if (name == "*") {
        keyword_only = true;
      } else if (name[0] == '*') { // takes the rest of them, and what follows is for keywords only
        if (f.parameters == kMaxParameters) return false;
        keyword_only = true;
        f.rest = f.parameters;
        f.parameter[f.parameters++] = PyUnicode_InternFromString(name.c_str() + 1);
      } else if (!name.empty() && name != "/") {
        if (f.parameters == kMaxParameters) return false;
        f.parameter[f.parameters++] = PyUnicode_InternFromString(name.c_str());
        if (!in_default && !keyword_only) f.required = f.parameters;
        if (!keyword_only) f.positional = f.parameters;
      }
      name.clear();
      in_default = false;
      if (last) return f.parameters > 0;
      continue;
    }
    if (ch == '(' || ch == '[') ++depth;
    if (ch == ')' || ch == ']') --depth;
    if (ch == '=' || ch == ':') in_default = true;
    if (!in_default && ch != ' ') name += ch;
  }
  return false;
}

} // namespace

PyObject* make_function(const std::string& name, const std::string& kernel, const std::string& signature,
                        const std::string& doc, PyObject* delegate, PyObject* guarded, bool divides,
                        bool always) {
  if (function_count == kMaxFunctions) {
    PyErr_SetString(PyExc_RuntimeError, "make_function: no more entry points; raise kMaxFunctions");
    return nullptr;
  }
  Function f;
  f.name = name;
  f.kernel = kernel;
  // The form from which inspect.signature() reads the signature of a built-in.
  f.doc = name + signature + "\n--\n\n" + doc;
  if (!parse_signature(signature, f)) {
    PyErr_Format(PyExc_ValueError, "make_function: cannot read the signature %s of %s", signature.c_str(),
                 name.c_str());
    return nullptr;
  }
  if (!kernel.empty()) {
    f.maker = find_maker(kernel);
    f.binder = f.maker != nullptr ? nullptr : find_binder(kernel, f.op);
    if (f.binder == nullptr && f.maker == nullptr) {
      PyErr_Format(PyExc_ValueError, "make_function: no kernel named %s", kernel.c_str());
      return nullptr;
    }
  }
  f.delegate = Py_NewRef(delegate);
  f.guarded = Py_NewRef(guarded);
  f.divides = divides;
  f.always = always;
  Function& stored = functions[function_count];
  stored = std::move(f);
  stored.definition.ml_name = stored.name.c_str();
  stored.definition.ml_meth =
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entries[function_count]));
  stored.definition.ml_flags = METH_FASTCALL | METH_KEYWORDS;
  stored.definition.ml_doc = stored.doc.c_str();
  ++function_count;
  PyObject* module = PyUnicode_InternFromString("inplace_ext");
  PyObject* function = PyCFunction_NewEx(&stored.definition, nullptr, module);
  Py_XDECREF(module);
  return function;
}

void set_error_hook(PyObject* hook) {
  Py_XSETREF(error_hook, hook == Py_None ? nullptr : Py_NewRef(hook));
}
void set_traced(PyObject* type, PyObject* hook) {
  Py_XSETREF(traced_type, Py_NewRef(type));
  Py_XSETREF(traced_hook, Py_NewRef(hook));
}
void set_enabled(bool value) {
  enabled = value;
}
bool functions_enabled() {
  return enabled;
}

} // namespace inplace_ext
