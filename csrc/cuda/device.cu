// What the CUDA runtime says of the devices, and the list of the kernels.
#include "fits.h"
#include "launch.cuh"
#include "launch.h"
#include "surface.h"

namespace polyfuse {

std::string missing() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // the next launch is not to find it
    return cudaGetErrorString(status);
  }
  return count ? "" : "no CUDA-capable device is detected";
}

Device device(int index) {
  int processors = 0, shared = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  return {processors, shared};
}

std::vector<std::pair<std::string, int>> kernels() {
  std::vector<std::pair<std::string, int>> found;
  for (const char* dtype : {"float", "double"}) {
    const std::string of = dtype;
    found.emplace_back("evaluate<" + of + ">", kPassThreads);
    found.emplace_back("count_nonfinite<" + of + ">", kPassThreads);
    found.emplace_back("update<" + of + ">", kMaxParams);
    for (const int bucket : kBuckets) {
      const std::string arguments = "<" + of + ", " + std::to_string(bucket);
      for (const char* name : {"moments", "project", "classes_step", "classes_stream"})
        found.emplace_back(name + arguments + ">", kPassThreads);
      for (const char* criterion : {", SquaredError>", ", AnyOther>"}) {
        found.emplace_back("stream" + arguments + criterion, stream_threads(bucket));
        found.emplace_back("step" + arguments + criterion, kPassThreads);
      }
    }
    for (const int terms : {1, 2, 3, 4, 5, kFewTerms, kMaxFitTerms})
      for (const char* name :
           {"solve_each", "solve_alike", "descend_moments", "descend_stream", "leap_fits"})
        found.emplace_back(name + ("<" + of + ", " + std::to_string(terms) + ">"), kFitThreads);
  }
  found.emplace_back("epochs", kPassThreads);
  for (const char* name : {"surface_step", "surface_stream", "surface_moments", "surface_epochs"})
    found.emplace_back(name, kSurfaceThreads);
  found.emplace_back("store", kMaxParams);
  return found;
}

}  // namespace polyfuse
