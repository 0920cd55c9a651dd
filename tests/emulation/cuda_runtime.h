// Stands in for the CUDA runtime, so that g++ compiles csrc/cuda and the tests run its kernels on a
// CPU: a fiber for every thread of a block, a system thread for every block of a cooperative grid.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local

using std::fmin;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kWarpSize = 32;
constexpr size_t kStack = 256 * 1024;

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

// The threads of one block, which take turns at the barriers.
class Block {
 public:
  Block(unsigned threads, size_t shared, bool backwards, std::function<void()> body)
      : body_(std::move(body)),
        backwards_(backwards),
        fibers_(threads),
        warps_((threads + kWarpSize - 1) / kWarpSize),
        shared_((shared + 15) / 8, std::numeric_limits<double>::quiet_NaN()) {}

  void run() {
    current = this;
    for (unsigned i = 0; i < fibers_.size(); ++i) start(i);
    // A warp runs as far as it can before the next does, from the first thread to the last in one
    // launch and from the last to the first in the next: missing barriers do not go unnoticed.
    const unsigned warp = kWarpSize, count = static_cast<unsigned>(fibers_.size());
    for (bool some = true; some;) {
      some = false;
      for (unsigned first = 0; first < count; first += warp)
        for (bool moved = true; moved;) {
          moved = false;
          for (unsigned k = first; k < first + warp && k < count; ++k)
            if (ready(fibers_[backwards_ ? count - 1 - k : k])) {
              resume(backwards_ ? count - 1 - k : k);
              some = moved = true;
            }
        }
    }
  }
  // Threads that wait where the others never come.
  bool stuck() const {
    for (const Fiber& fiber : fibers_)
      if (!fiber.done) return true;
    return false;
  }
  void meet() { meet(block_, static_cast<unsigned>(fibers_.size())); }
  void meet_warp() {
    const unsigned first = threadIdx.x / kWarpSize * kWarpSize;
    const unsigned rest = static_cast<unsigned>(fibers_.size()) - first;
    meet(warps_[threadIdx.x / kWarpSize], rest < kWarpSize ? rest : kWarpSize);
  }
  template <class T>
  T shuffle_down(T value, unsigned offset) {
    const unsigned lane = threadIdx.x % kWarpSize;
    return shuffle(value, lane + offset < kWarpSize ? lane + offset : lane);
  }
  template <class T>
  T shuffle(T value, unsigned from_lane) {
    static_assert(sizeof(T) == sizeof(double), "");
    const unsigned me = threadIdx.x;
    const unsigned turn = fibers_[me].turn++ % 2;
    std::memcpy(&fibers_[me].offered[turn], &value, sizeof value);
    meet_warp();
    const unsigned from = me / kWarpSize * kWarpSize + from_lane;
    std::memcpy(&value, &fibers_[from].offered[turn], sizeof value);
    return value;
  }
  char* shared() { return reinterpret_cast<char*>(shared_.data()); }

  static inline thread_local Block* current = nullptr;

 private:
  struct Fiber {
    std::unique_ptr<char[]> stack;
    ucontext_t context;
    jmp_buf place;
    bool done = false;
    const Barrier* barrier = nullptr;  // where it waits, or waited last
    unsigned generation = 0;
    unsigned turn = 0;
    double offered[2];
  };

  void meet(Barrier& barrier, unsigned count) {
    Fiber& fiber = fibers_[threadIdx.x];
    fiber.barrier = &barrier;
    fiber.generation = barrier.generation;
    if (++barrier.arrived < count) return yield();
    barrier.arrived = 0;
    ++barrier.generation;
  }
  static bool ready(const Fiber& fiber) {
    return !fiber.done && (!fiber.barrier || fiber.barrier->generation != fiber.generation);
  }
  // Fibers begin with ucontext and go on with longjmp, which asks nothing of the system.
  void start(unsigned i) {
    Fiber& fiber = fibers_[i];
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, &Block::enter, 0);
    threadIdx = dim3(i);
    ucontext_t here;
    if (!_setjmp(scheduler_)) swapcontext(&here, &fiber.context);
  }
  static void enter() {
    Block& block = *current;
    const unsigned i = threadIdx.x;
    if (!_setjmp(block.fibers_[i].place)) _longjmp(block.scheduler_, 1);
    block.body_();
    block.fibers_[i].done = true;
    _longjmp(block.scheduler_, 1);
  }
  void resume(unsigned i) {
    threadIdx = dim3(i);
    if (!_setjmp(scheduler_)) _longjmp(fibers_[i].place, 1);
  }
  void yield() {
    const unsigned i = threadIdx.x;
    if (!_setjmp(fibers_[i].place)) _longjmp(scheduler_, 1);
  }

  std::function<void()> body_;
  bool backwards_;
  std::vector<Fiber> fibers_;
  std::vector<Barrier> warps_;
  Barrier block_;
  std::vector<double> shared_;
  jmp_buf scheduler_;
};

inline char* dynamic_shared() { return Block::current->shared(); }
inline void wait_a_little() { std::this_thread::yield(); }

// Bytes of shared memory that a launch may take besides the 32 KiB that a kernel may declare: up to
// 48 KiB in all, and what a kernel has been made to consent to.
constexpr size_t kSharedByDefault = 16 * 1024;
inline std::map<const void*, size_t> consents;

}  // namespace emulation

inline void __syncthreads() { emulation::Block::current->meet(); }
inline void __syncwarp() { emulation::Block::current->meet_warp(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned offset) {
  return emulation::Block::current->shuffle_down(value, offset);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned offset) {
  return emulation::Block::current->shuffle(value, threadIdx.x % emulation::kWarpSize ^ offset);
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  unsigned old = __atomic_load_n(p, __ATOMIC_SEQ_CST);
  while (!__atomic_compare_exchange_n(p, &old, old >= limit ? 0 : old + 1, false, __ATOMIC_SEQ_CST,
                                      __ATOMIC_SEQ_CST)) {
  }
  return old;
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNoDevice = 100 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
using cudaStream_t = void*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline const char* cudaGetErrorString(cudaError_t) { return "emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  emulation::consents[kernel] = bytes;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 3 : 24 * 1024;
  return cudaSuccess;
}

template <class Argument>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Argument),
                               const Argument& argument) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const size_t shared = config->dynamicSmemBytes;
  if (shared > emulation::kSharedByDefault &&
      shared > emulation::consents[reinterpret_cast<const void*>(kernel)])
    return cudaErrorInvalidValue;
  static bool backwards = false;
  backwards = !backwards;
  const auto run_block = [=](unsigned index) {
    gridDim = grid, blockDim = block, blockIdx = dim3(index);
    emulation::Block threads(block.x, shared, backwards, [=] { kernel(argument); });
    threads.run();
    if (threads.stuck()) std::abort();
  };
  if (!config->numAttrs) {
    for (unsigned b = grid.x; b-- > 0;) run_block(b);
    return cudaSuccess;
  }
  std::vector<std::thread> blocks;
  for (unsigned b = 0; b < grid.x; ++b) blocks.emplace_back(run_block, b);
  for (std::thread& t : blocks) t.join();
  return cudaSuccess;
}
