// Models of several variables on a device: what a launch is told, and how it is laid out.
#pragma once

#include "../core/run.h"
#include "geometry.h"

namespace polyfuse {

constexpr int kMaxSurfaceColumns = kMaxParams + 1;  // terms, and the constant where none is
constexpr int kSurfaceRest = 3;  // sums besides those of slope phi: loss, what counts, samples kept
constexpr int kSurfaceThreads = 256;
constexpr int64_t kSurfaceDeclared = 24 * 1024;  // bytes of shared memory that kernels declare
constexpr int kBlockColumns = 8;                 // of a product on tensor cores

// Columns phi_c = prod_d ((x[v[d, c]] - shift[d, c]) * scale[d, c] - root[d, c]) of a sample; v is
// -1 past the last factor.
struct Factors {
  const int32_t* variable = nullptr;  // [D, C]
  const double* frame = nullptr;      // shift, scale and root [3, D, C]
  int32_t depth = 0, columns = 0;     // D, C: the model's K terms, and 1 where it is none of them
  int32_t one = 0;                    // the column that is 1
};

// Moments [W, W]: sums of products of columns, the residuals after them and 0 beyond; then the
// reference [P].
struct SurfaceRun : Run {
  Factors factors;
  int32_t n_variables = 0;
};

// W: the columns, and the residuals of the outputs.
PF_HD constexpr int surface_width(int columns, int outputs) {
  return (columns + outputs + kBlockColumns - 1) / kBlockColumns * kBlockColumns;
}

// Samples whose columns lie on chip at a time.
PF_HD constexpr int tile_rows(int width) { return width <= 16 ? 256 : width <= 32 ? 128 : 64; }
PF_HD constexpr int tile_pitch(int width) { return tile_rows(width) + 4; }  // from column to column
PF_HD constexpr int64_t tile_numbers(int width) {
  return int64_t{width} * tile_pitch(width) + tile_rows(width);
}

// Kernel: Step, Stream, Moments or Epochs; closed: by the closed form.
Geometry surface_geometry(Kernel, int64_t n, int columns, int outputs, int n_params, bool closed,
                          const Device&);

int64_t surface_workspace_bytes(const Geometry&, int columns, int outputs, int n_params);

void launch_surface_step(const SurfaceRun&, void* stream);
void launch_surface_stream(const SurfaceRun&, void* stream);
void launch_surface_moments(const SurfaceRun&, void* stream);

}  // namespace polyfuse
