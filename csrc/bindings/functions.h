// The public functions: built-in callables that parse torch's signatures and choose a path.
#pragma once
#include <Python.h>

#include <string>

namespace inplace_ext {

// A built-in function `name` with torch's signature. Calls that the fast path of `kernel` takes run there;
// all others go, with the same arguments, to torch's method `delegate`, or to `guarded`, the same method
// behind checks that cost time, where the tensors call for it; `divides` is true of divisions, whose integers
// do, and `always` of operations all of whose calls do. `kernel` is empty where the operation only
// delegates. New reference, or null with a Python error set.
PyObject* make_function(const std::string& name, const std::string& kernel, const std::string& signature,
                        const std::string& doc, PyObject* delegate, PyObject* guarded, bool divides,
                        bool always);

// Called as hook(exception, name, args, kwargs) when a delegate raises; returns the exception to raise or
// None.
void set_error_hook(PyObject* hook);
// Calls whose first argument is of the class go to hook(name, args, kwargs): the stand-ins of fuse.
void set_traced(PyObject* type, PyObject* hook);
// With false everything delegates.
void set_enabled(bool enabled);
bool functions_enabled();

} // namespace inplace_ext
