// Enough of CUDA to run cuda/bi_wkv.cu on the host, one block at a time: every thread of a block is a fiber, and a
// barrier hands over to the next fiber. Included before the kernels by tests/emulated_cuda.py.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__ __restrict

using std::exp;
using std::fabs;
using std::min;

struct Dim {
  unsigned x, y, z;
};
static Dim threadIdx, blockIdx, blockDim;

static ucontext_t scheduler;
static std::vector<ucontext_t> fibers;
static std::vector<char> stacks, finished;
static int current, votes, outcome;
static void (*body)();

static void __syncthreads() { swapcontext(&fibers[current], &scheduler); }
static int __syncthreads_or(int vote) {
  votes |= vote;
  __syncthreads();
  return outcome;
}

static float fmax(float a, float b) { return std::fmax(a, b); }
static float __fdividef(float a, float b) { return a / b; }
static float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
static unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
static float half_bits_to_float(unsigned short bits) {
  _Float16 x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
static unsigned short float_to_half_bits(float x) {
  const _Float16 half = x;
  unsigned short bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}

static void fiber() {
  body();
  finished[current] = 1;
  swapcontext(&fibers[current], &scheduler);
}

// Every argument of a kernel is a pointer or a 64-bit integer; a function ignores those beyond its own.
static void (*kernel)(long long, long long, long long, long long, long long, long long, long long, long long,
                      long long, long long, long long, long long, long long, long long, long long, long long);
static const long long* given;

static void call() {
  const long long* a = given;
  kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]);
}

// Runs the blocks of a grid, their threads in rising or falling order between barriers: a missing barrier shows as a
// difference between the two. Returns 1 when threads of a block meet different numbers of barriers.
extern "C" int run(void* function, const unsigned* grid, const unsigned* block, int falling, const long long* arguments) {
  constexpr int STACK = 1 << 16;
  kernel = reinterpret_cast<decltype(kernel)>(function);
  given = arguments;
  body = call;
  const int threads = block[0] * block[1];
  blockDim = {block[0], block[1], 1};
  fibers.resize(threads);
  finished.resize(threads);
  stacks.resize(size_t(threads) * STACK);
  for (unsigned index = 0; index < grid[0] * grid[1]; ++index) {
    blockIdx = {index % grid[0], index / grid[0], 0};
    votes = 0;
    for (int t = 0; t < threads; ++t) {
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = &stacks[size_t(t) * STACK];
      fibers[t].uc_stack.ss_size = STACK;
      fibers[t].uc_link = nullptr;
      makecontext(&fibers[t], fiber, 0);
      finished[t] = 0;
    }
    int done = 0;
    while (done == 0) {
      for (int i = 0; i < threads; ++i) {
        current = falling ? threads - 1 - i : i;
        threadIdx = {current % block[0], current / block[0], 0};
        swapcontext(&scheduler, &fibers[current]);
        done += finished[current];
      }
      outcome = votes;
      votes = 0;
      if (done != 0 && done != threads) return 1;
    }
  }
  return 0;
}
