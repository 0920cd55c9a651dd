// How a launch fills a device: plain arithmetic on sizes, without a device.
#pragma once

#include <cstdint>
#include <string>

#include "../core/run.h"

namespace polyfuse {

enum class Kernel : int32_t {
  Stream,
  Step,
  Classes,
  Moments,
  Epochs,
  Evaluate,
  Project,
  Count,
  Update,
  Store
};

Kernel kernel_named(const std::string& name);

struct Device {
  int32_t processors;  // streaming multiprocessors
  int64_t shared;      // bytes of shared memory that one block may have
};

// Kernels are compiled for so many coefficients, and for at most so many threads.
constexpr int kBuckets[] = {2, 3, 4, 5, 8, 16, kMaxTerms};
constexpr int bucket_of(int n_terms) {
  for (const int bucket : kBuckets)
    if (n_terms <= bucket) return bucket;
  return kMaxTerms;
}
constexpr int kPassThreads = 256;
constexpr int stream_threads(int bucket) { return bucket <= 4 ? 512 : 256; }

// Bytes of shared memory that the stream kernels declare themselves, at most.
constexpr int64_t kStreamDeclared = 20 * 1024;

Geometry geometry(Kernel, int64_t n, Dtype, int n_terms, int n_params, const Device&,
                  bool weighted = false);

// Of every launch on the device.
int64_t workspace_bytes(const Device&);

// Epochs that take about so many seconds, by a rough estimate on the safe side; elementary: the
// criterion has exp or log.
int64_t epochs_within(double seconds, Engine, int64_t n, Dtype, int n_terms, bool elementary,
                      const Device&);

}  // namespace polyfuse
