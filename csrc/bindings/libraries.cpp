#include "libraries.h"

#include "device.h"

#include <dlfcn.h>

#include <array>
#include <map>
#include <stdexcept>

#include "device.h"

namespace inplace_ext {
namespace {

std::map<std::string, const CpuKernels*> loaded;
// What is to be set in the kernels of an instruction set, by code.
std::map<std::string, std::map<int, const OpKernels*>> loaded_operations;
std::array<AddedOp, kMaxAdded> added;
int added_count = 0;
bool streams = true;

template <class Table>
const Table& open_library(const std::string& path, const char* symbol, uint32_t abi = kAbiVersion,
                          void** handle = nullptr, const std::string& what = "load_kernels: ") {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(what + dlerror());
  if (handle != nullptr) *handle = library;
  const auto entry = reinterpret_cast<const Table* (*)()>(dlsym(library, symbol));
  if (entry == nullptr) throw std::runtime_error(what + path + " is no kernel library");
  const Table* const table = entry();
  if (table->abi != abi || table->table != table_fingerprint()) {
    throw std::runtime_error(what + path + " is of another build; install the package again");
  }
  return *table;
}

} // namespace

std::string load_kernels(const std::string& path) {
  void* library = nullptr;
  const auto& kernels = open_library<CpuKernels>(path, "inplace_ext_cpu_kernels", kAbiVersion, &library);
  if (void* const entry = dlsym(library, "inplace_ext_cuda_kernels"); entry != nullptr)
    emulated_kernels = reinterpret_cast<const CudaKernels* (*)()>(entry)();
  for (const auto& [code, operation] : loaded_operations[kernels.capability]) {
    if (code >= kFirstAdded) kernels.set_operation(code, *operation);
  }
  const CpuKernels*& known = loaded[kernels.capability];
  if (active_kernels == known) active_kernels = &kernels;
  if (streaming_kernels == known) streaming_kernels = &kernels;
  known = &kernels;
  return kernels.capability;
}

std::pair<int, std::string> load_cuda_kernels(const std::string& path) {
  const auto& kernels = open_library<CudaKernels>(path, "inplace_ext_cuda_kernels", kCudaAbiVersion, nullptr,
                                                  "load_cuda_kernels: ");
  cuda_kernels = &kernels;
  return {kernels.toolkit, kernels.architectures};
}

void use_capability(const std::string& name) {
  const auto found = loaded.find(name);
  if (found == loaded.end()) throw std::runtime_error("use_capability: no kernels loaded for " + name);
  active_kernels = streaming_kernels = found->second;
  // Two or three streams of 64-byte accesses from memory are 5 to 8% slower than of 32-byte ones (measured on
  // Zen 4). The values are the same: these operations are exact on both.
  const auto narrower = loaded.find("avx2");
  if (streams && name == "avx512" && narrower != loaded.end()) streaming_kernels = narrower->second;
}

void let_stream(bool value) {
  streams = value;
  if (active_kernels != nullptr) use_capability(active_kernels->capability);
}

std::vector<std::string> loaded_capabilities() {
  std::vector<std::string> names;
  for (const auto& [name, kernels] : loaded) names.push_back(name);
  return names;
}

int add_operation(const std::string& name, int tensors, const std::vector<PyObject*>& otherwise) {
  if (added_count == kMaxAdded)
    throw std::runtime_error(name + ": a process holds no more than " + std::to_string(kMaxAdded) +
                             " operations of its own");
  if (otherwise.size() > AddedOp::kMaxOperands || tensors > static_cast<int>(otherwise.size()))
    throw std::invalid_argument(name + ": too many operands");
  AddedOp& op = added[added_count];
  op.name = name;
  op.tensors = tensors;
  for (PyObject* value : otherwise)
    op.otherwise[op.operands++] = value == Py_None ? nullptr : Py_NewRef(value);
  return kFirstAdded + added_count++;
}

std::string load_operation(int code, const std::string& path) {
  const bool in_table = code >= 0 && code < kOps;
  if (!in_table && (code < kFirstAdded || code >= kFirstAdded + added_count))
    throw std::out_of_range("load_operation: there is no operation of code " + std::to_string(code));
  const auto& operation = open_library<OpKernels>(path, "inplace_ext_operation");
  const auto kernels = loaded.find(operation.capability);
  if (kernels == loaded.end())
    throw std::runtime_error(std::string("load_operation: no kernels loaded for ") + operation.capability);
  if (in_table) {
    if (operation.info.form != op_info(code).form || operation.info.types != op_info(code).types)
      throw std::runtime_error("load_operation: " + path + " holds another operation");
  } else {
    operations[code] = operation.info;
    operations[code].name = added[code - kFirstAdded].name.c_str();
  }
  loaded_operations[operation.capability][code] = &operation;
  kernels->second->set_operation(code, operation);
  return operation.capability;
}

void load_cuda_operation(int code, const std::string& path) {
  if (code < kFirstAdded || code >= kFirstAdded + added_count)
    throw std::out_of_range("load_cuda_operation: no operation was added under " + std::to_string(code));
  const auto& operation = open_library<CudaOperation>(path, "inplace_ext_cuda_operation", kCudaAbiVersion);
  const OpInfo& info = op_info(code);
  if (operation.info.form != info.form || operation.info.types != info.types)
    throw std::runtime_error("load_cuda_operation: " + path + " holds another operation");
  cuda_operations[code - kFirstAdded] = &operation;
}

int code_named(const std::string& name) {
  int code = 0;
  while (code < kOps && name != kOpInfo[code].name) ++code;
  return code == kOps ? -1 : code;
}

const AddedOp& added_op(Op op) {
  return added[static_cast<int>(op) - kFirstAdded];
}

bool find_added(const std::string& kernel, Op& op) {
  if (kernel.empty() || kernel[0] != '@') return false;
  const int code = std::stoi(kernel.substr(1));
  if (code < kFirstAdded || code >= kFirstAdded + added_count) return false;
  op = static_cast<Op>(code);
  return true;
}

} // namespace inplace_ext
