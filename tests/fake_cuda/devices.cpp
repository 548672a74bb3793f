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
}
