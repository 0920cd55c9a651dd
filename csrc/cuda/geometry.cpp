#include "geometry.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "../core/closed_form.h"

namespace polyfuse {
namespace {

constexpr int kWarpThreads = 32;
constexpr int64_t kAloneSamples = 8192;  // up to here one block is faster than a barrier of many
constexpr int64_t kThreadSamples = 8;    // of one pass, at least
constexpr int64_t kMinChunk = 1024;
constexpr int kBlocksPerProcessor = 2;  // at most

constexpr int kElementaryTerms = 60;        // what exp and log of a sample cost, in terms
constexpr int64_t kOnChipWork = 40 * 1024;  // bytes of the closed form kept in shared memory

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t size_of(Dtype dtype) { return dtype == Dtype::Float32 ? 4 : 8; }

int64_t work_bytes(int n_params) {
  return closed_form_work(n_params) * static_cast<int64_t>(sizeof(double));
}

int threads_for(int64_t n, int most) {
  const int64_t warps = ceil_div(n, kWarpThreads * kThreadSamples);
  int64_t threads = kWarpThreads;
  while (threads < most && threads < warps * kWarpThreads) threads *= 2;
  return static_cast<int>(threads);
}

Geometry pass_over(int64_t n, int per_processor, const Device& device) {
  Geometry grid;
  grid.threads = threads_for(n, kPassThreads);
  if (n > kAloneSamples)
    grid.blocks = static_cast<int32_t>(std::min<int64_t>(
        per_processor * device.processors, ceil_div(n, kPassThreads * kThreadSamples)));
  return grid;
}

// Blocks that a processor has registers for.
int at_once(Kernel kernel, int n_terms) {
  return kernel == Kernel::Moments || bucket_of(n_terms) > 8 ? 1 : kBlocksPerProcessor;
}

// Threads that take the classes of a sample.
int lanes_of(int n_classes) {
  int lanes = 1;
  while (lanes < n_classes) lanes *= 2;
  return lanes;
}

// Every block keeps its chunk on chip, as far as it fits.
Geometry stream_over(int64_t n, Dtype dtype, int n_terms, const Device& device, bool weighted) {
  const int64_t width = 16 / size_of(dtype);
  Geometry grid;
  if (n > kAloneSamples)
    grid.blocks =
        static_cast<int32_t>(std::min<int64_t>(device.processors, ceil_div(n, kMinChunk)));
  grid.chunk = ceil_div(ceil_div(n, grid.blocks), width) * width;
  grid.blocks = static_cast<int32_t>(ceil_div(n, grid.chunk));
  grid.threads = threads_for(grid.chunk, stream_threads(bucket_of(n_terms)));
  grid.cooperative = grid.blocks > 1;
  const int64_t sample = (weighted ? 3 : 2) * size_of(dtype);
  const int64_t fits = (device.shared - kStreamDeclared) / sample / width * width;
  grid.resident = std::min(grid.chunk, fits);
  grid.shared = grid.resident * sample;
  return grid;
}

}  // namespace

Kernel kernel_named(const std::string& name) {
  constexpr std::pair<const char*, Kernel> kNames[] = {
      {"stream", Kernel::Stream},   {"step", Kernel::Step},
      {"classes", Kernel::Classes}, {"moments", Kernel::Moments},
      {"epochs", Kernel::Epochs},   {"evaluate", Kernel::Evaluate},
      {"project", Kernel::Project}, {"count_nonfinite", Kernel::Count},
      {"update", Kernel::Update},   {"store", Kernel::Store}};
  for (const auto& [known, kernel] : kNames)
    if (name == known) return kernel;
  throw std::invalid_argument("kernel: there is none called " + name);
}

Geometry geometry(Kernel kernel, int64_t n, Dtype dtype, int n_terms, int n_params,
                  const Device& device, bool weighted) {
  Geometry grid;
  switch (kernel) {
    case Kernel::Stream: return stream_over(n, dtype, n_terms, device, weighted);
    case Kernel::Classes:
      grid = pass_over(n * lanes_of(n_params / n_terms), 1, device);
      grid.cooperative = grid.blocks > 1;
      break;
    case Kernel::Step:
    case Kernel::Evaluate:
    case Kernel::Project:
    case Kernel::Count: return pass_over(n, at_once(kernel, n_terms), device);
    case Kernel::Update:
    case Kernel::Store: grid.threads = threads_for(n_params * kThreadSamples, kMaxParams); break;
    case Kernel::Moments: grid = pass_over(n, at_once(kernel, n_terms), device); [[fallthrough]];
    case Kernel::Epochs:
      grid.threads = std::max(grid.threads, threads_for(n_params * n_params, kPassThreads));
      if (work_bytes(n_params) <= kOnChipWork) grid.shared = work_bytes(n_params);
      break;
  }
  return grid;
}

int64_t workspace_bytes(const Device& device) {
  const int64_t sums = int64_t{3} * kMaxTerms * kBlocksPerProcessor * device.processors;
  return kHeader + sums * static_cast<int64_t>(sizeof(double)) + work_bytes(kMaxParams);
}

int64_t epochs_within(double seconds, Engine engine, int64_t n, Dtype dtype, int n_terms,
                      bool elementary, const Device& device) {
  const double terms = n_terms, work = terms + (elementary ? kElementaryTerms : 0);
  double epoch = 0.0;  // seconds
  switch (engine) {
    case Engine::Stream:
      epoch = 5e-6 + 2e-12 * static_cast<double>(n * size_of(dtype)) +
              2e-9 * static_cast<double>(n) * work / (64 * device.processors);
      break;
    case Engine::Moments: epoch = 1e-6 + 5e-9 * terms * terms; break;
    case Engine::ClosedForm: return int64_t{1} << 62;
  }
  return std::max<int64_t>(1, static_cast<int64_t>(seconds / epoch));
}

}  // namespace polyfuse
