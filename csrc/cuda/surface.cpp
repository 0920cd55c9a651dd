#include "surface.h"

#include <algorithm>

#include "../core/closed_form.h"
#include "../core/gram.h"

namespace polyfuse {
namespace {

constexpr int64_t kOnChipWork = 40 * 1024;  // of the closed form, in shared memory
constexpr int64_t kNumber = sizeof(double);
constexpr int64_t kBlocksPerProcessor = 2;  // as many as there are registers for

int64_t matrix_numbers(int width) { return int64_t{width} * width; }

// Numbers in shared memory.
int64_t on_chip(Kernel kernel, int columns, int width, int n_params, bool closed) {
  if (kernel == Kernel::Step || kernel == Kernel::Stream) return tile_numbers(width);
  const int64_t work = closed ? closed_form_work(n_params) : 0;
  const int64_t run = work * kNumber <= kOnChipWork ? work : 0;
  return std::max(tile_numbers(width),
                  matrix_numbers(width) + std::max<int64_t>(gram_work(columns), run));
}

}  // namespace

// Blocks that are all on the device at once, as the barrier of stream needs them.
Geometry surface_geometry(Kernel kernel, int64_t n, int columns, int outputs, int n_params,
                          bool closed, const Device& device) {
  const int width = surface_width(columns, outputs);
  Geometry grid;
  grid.threads = kSurfaceThreads;
  grid.shared = on_chip(kernel, columns, width, n_params, closed) * kNumber;
  if (kernel == Kernel::Epochs) return grid;
  const int64_t rows = tile_rows(width), tiles = (n + rows - 1) / rows;
  const int64_t fit =
      std::clamp<int64_t>(device.shared / (grid.shared + kSurfaceDeclared), 1, kBlocksPerProcessor);
  grid.blocks = static_cast<int32_t>(std::clamp<int64_t>(tiles, 1, fit * device.processors));
  grid.cooperative = kernel == Kernel::Stream && grid.blocks > 1;
  return grid;
}

int64_t surface_workspace_bytes(const Geometry& grid, int columns, int outputs, int n_params) {
  const int64_t sums = std::max(matrix_numbers(surface_width(columns, outputs)),
                                int64_t{2} * (columns * outputs + kSurfaceRest));
  return kHeader + (grid.blocks * sums + closed_form_work(n_params)) * kNumber;
}

}  // namespace polyfuse
