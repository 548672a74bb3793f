// What torch's compiled side asks of CUDA when an autograd graph runs backwards: how many devices
// there are, and whether this process has a context on them. Preloaded, the first function takes
// the place of libc10_cuda's, and the library that of NVIDIA's driver, libcuda.so.1.
#include <cstdint>

namespace {
std::int8_t num_devices = 0;
}

namespace c10::cuda {
std::int8_t device_count() noexcept { return num_devices; }
}  // namespace c10::cuda

extern "C" {

void pretend_devices(std::int8_t number) { num_devices = number; }

int cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) {
  *flags = 0;
  *active = 0;
  return 0;
}

// libcaffe2_nvrtc.so is not loaded without these; nothing calls them.
#define UNUSED(name) \
  int name() { return 1; }
UNUSED(cuCtxGetCurrent)
UNUSED(cuCtxSetCurrent)
UNUSED(cuDeviceGet)
UNUSED(cuDeviceGetAttribute)
UNUSED(cuDevicePrimaryCtxRetain)
UNUSED(cuFuncGetAttribute)
UNUSED(cuFuncSetAttribute)
UNUSED(cuFuncSetCacheConfig)
UNUSED(cuGetErrorString)
UNUSED(cuLaunchCooperativeKernel)
UNUSED(cuLaunchKernel)
UNUSED(cuLinkAddData_v2)
UNUSED(cuLinkComplete)
UNUSED(cuLinkCreate_v2)
UNUSED(cuModuleGetFunction)
UNUSED(cuModuleLoad)
UNUSED(cuModuleLoadData)
UNUSED(cuModuleLoadDataEx)
UNUSED(cuModuleUnload)
UNUSED(cuOccupancyMaxActiveBlocksPerMultiprocessor)
UNUSED(cuPointerGetAttribute)
UNUSED(cuTensorMapEncodeTiled)
}
