#include "fits.h"

#include <algorithm>

namespace polyfuse {
namespace {

constexpr int kFewThreads = 64;           // of a block whose fits are long
constexpr int kMostBlocks = 8;            // of a processor
constexpr int64_t kReserved = 1024;       // bytes of shared memory that a block takes besides
constexpr int64_t kDeclaredByFits = 512;  // and what kernels declare themselves, at most

// Bytes of the samples of one block: [n, threads + 1], or [n] where all fits share them.
int64_t sample_bytes(const Fits& fits, int threads) {
  int64_t columns = 0;
  for (const Series* series : {&fits.x, &fits.y, &fits.w})
    if (series->at) columns += series->fit == 0 ? 1 : threads + 1;
  return columns * fits.n * (fits.dtype == Dtype::Float32 ? 4 : 8);
}

}  // namespace

void lay_out(Fits& fits, bool solve, const Device& device) {
  const int64_t room = device.shared - kDeclaredByFits;
  const int64_t design = fits.n * fits.n_terms * static_cast<int64_t>(sizeof(double));
  fits.alike = solve && !fits.omit && fits.x.fit == 0 && (!fits.w.at || fits.w.fit == 0) &&
               design <= room / 4;
  const int64_t before = fits.alike ? design : 0;
  Geometry& grid = fits.grid;
  grid = Geometry{};
  grid.threads = kFitThreads;
  if (2 * (before + sample_bytes(fits, kFitThreads) + kReserved) > room) grid.threads = kFewThreads;
  const int64_t samples = sample_bytes(fits, grid.threads);
  fits.on_chip = before + samples <= room;
  if (!fits.on_chip) grid.threads = kFitThreads;
  grid.shared = before + (fits.on_chip ? samples : 0);
  int64_t blocks = kMostBlocks;
  if (fits.alike)  // those that are there at once: each computes the design
    blocks = std::clamp<int64_t>(room / (grid.shared + kReserved), 1, fit_blocks(fits.n_terms));
  const int64_t tiles = (fits.fits + grid.threads - 1) / grid.threads;
  grid.blocks = static_cast<int32_t>(std::min(tiles, blocks * device.processors));
}

}  // namespace polyfuse
