// What the kernels of bi_wkv.cu share: storage types, pairs of sums, a thread's place, scans within a block.

namespace {

constexpr int TOKENS = 8;
constexpr int ROWS = 16;
constexpr int LANES = 16;
constexpr int CHUNK = TOKENS * ROWS;
constexpr int CARRY_ROWS = 64;
constexpr int CARRY_LANES = 8;
constexpr float LEAST_KEY = -1e30f;   // not -inf: a chunk of absent tokens must sum to 0, not to NaN
constexpr float ABSENT_KEY = -3e38f;
constexpr float FLOAT_EXPONENT = 56;  // with shifted keys float has room for decays and bonuses up to e^56

struct Float16 { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

#ifdef __CUDACC__  // the tests compile this file for the host too, and bring their own
__device__ inline float half_bits_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ inline unsigned short float_to_half_bits(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

__device__ inline double widen(double x) { return x; }
__device__ inline float widen(float x) { return x; }
__device__ inline float widen(BFloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ inline float widen(Float16 x) { return half_bits_to_float(x.bits); }

__device__ inline void narrow(double x, double& to) { to = x; }
__device__ inline void narrow(float x, float& to) { to = x; }
__device__ inline void narrow(float x, Float16& to) { to.bits = float_to_half_bits(x); }
__device__ inline void narrow(float x, BFloat16& to) {
  const unsigned bits = __float_as_uint(x);
  const unsigned rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  to.bits = x != x ? 0x7fffu : rounded >> 16;
}

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float quotient(float a, float b) { return __fdividef(a, b); }
__device__ inline double quotient(double a, double b) { return a / b; }

using Storage = STORAGE;
using Real = decltype(widen(Storage{}));

template <typename Sum>
struct alignas(2 * sizeof(Sum)) Pair {
  Sum a, b;
};

template <typename Sum>
__device__ Pair<Sum> operator+(Pair<Sum> x, Pair<Sum> y) { return {x.a + y.a, x.b + y.b}; }

// state * factor + row: one step of a recurrence.
template <typename Sum>
__device__ Pair<Sum> step(Pair<Sum> state, Sum factor, Pair<Sum> row) {
  return {state.a * factor + row.a, state.b * factor + row.b};
}

template <typename Sum>
struct Sides {
  Pair<Sum> left, right;
};

struct Inputs {
  const Real *w, *u;  // (B, C)
  const Storage *k, *v;  // (B, L, C)
  long long length, channels;
};

// Which tokens of which channel are this thread's.
struct Place {
  long long chunk;    // over all batch items
  long long channel;  // clamped to the last: its own threads beyond that have count 0
  long long first;    // element of the first token in (B, L, C)
  long long state;    // element of the channel in (B, C)
  int count;
  bool active;

  __device__ explicit Place(const Inputs& in) {
    const unsigned chunks = unsigned((in.length + CHUNK - 1) / CHUNK);
    const unsigned item = blockIdx.x / chunks;
    const long long token = (long long)(blockIdx.x % chunks) * CHUNK + threadIdx.y * TOKENS;
    const long long own = (long long)blockIdx.y * blockDim.x + threadIdx.x;
    active = own < in.channels;
    chunk = blockIdx.x;
    channel = active ? own : in.channels - 1;
    first = (item * in.length + token) * in.channels + channel;
    state = item * in.channels + channel;
    const long long left = in.length - token;
    count = !active || left <= 0 ? 0 : left < TOKENS ? int(left) : TOKENS;
  }

  // Element of (B, N, 2, 2, C): left or right scan, first or second of a pair.
  __device__ long long summary(const Inputs& in, int side, int part) const {
    return ((chunk * 2 + side) * 2 + part) * in.channels + channel;
  }
};

template <typename Sum>
struct Weights {
  Sum decay, leap, bonus;  // of one token, of all tokens of a thread, of the current token

  __device__ Weights(const Inputs& in, const Place& at) {
    const Sum w = in.w[at.state];
    const long long tokens = in.length < TOKENS ? in.length : TOKENS;
    decay = exponential(-w / Sum(in.length));
    leap = exponential(-w * Sum(tokens) / Sum(in.length));
    bonus = exponential(Sum(in.u[at.state]));
  }
};

__device__ inline bool exceeds_float(Real w, Real u) {
  return fabs(w) + fmax(u, Real(0)) > FLOAT_EXPONENT || u < -FLOAT_EXPONENT;
}

// The same answer for a whole block, because barriers follow.
__device__ inline bool needs_double(const Inputs& in) {
  if (sizeof(Real) == sizeof(double)) return true;
  const Place at(in);
  return __syncthreads_or(exceeds_float(in.w[at.state], in.u[at.state]));
}

template <typename Sum>
__device__ void load(const Inputs& in, const Place& at, Pair<Sum> (&rows)[TOKENS]) {
#pragma unroll
  for (int i = 0; i < TOKENS; ++i) {
    const long long element = at.first + i * in.channels;
    rows[i] = {0, ABSENT_KEY};
    if (i < at.count) rows[i] = {Sum(widen(in.v[element])), Sum(widen(in.k[element]))};
  }
}

// (value, key) -> (E (v - anchor), E), E = e^{k - key of the heaviest token}
template <typename Sum>
__device__ void weigh(Pair<Sum> (&rows)[TOKENS], Pair<Sum> top) {
#pragma unroll
  for (int i = 0; i < TOKENS; ++i) {
    const Sum weight = exponential(rows[i].b - top.b);
    rows[i] = {weight * (rows[i].a - top.a), weight};
  }
}

// The states after a scan of this thread's rows begun at 0, from the left and from the right.
template <typename Sum>
__device__ Sides<Sum> reduce(const Pair<Sum> (&rows)[TOKENS], Sum decay) {
  Sides<Sum> states = {};
#pragma unroll
  for (int i = 0; i < TOKENS; ++i) {
    states.left = step(states.left, decay, rows[i]);
    states.right = step(states.right, decay, rows[TOKENS - 1 - i]);
  }
  return states;
}

// Shows every thread of a block what all of them hold; a column has one element per row of threads.
template <typename Sum>
__device__ const Pair<Sum>* share(Pair<Sum> own, void* shared) {
  Pair<Sum>* all = static_cast<Pair<Sum>*>(shared);
  all[threadIdx.y * blockDim.x + threadIdx.x] = own;
  return all + threadIdx.x;
}

// From the summary of each thread to the states that enter it, given those that enter the block. Both halves of
// `shared` hold a Pair<Sum> per thread.
template <typename Sum>
__device__ Sides<Sum> enter(Sides<Sum> own, Sides<Sum> block, Sum leap, double* shared) {
  const int rows = blockDim.y, row = threadIdx.y, width = blockDim.x;
  __syncthreads();  // whoever used `shared` before has read it
  const Pair<Sum>* lefts = share(own.left, shared);
  const Pair<Sum>* rights = share(own.right, shared + 2 * rows * width);
  __syncthreads();
  for (int other = 0; other < row; ++other) block.left = step(block.left, leap, lefts[other * width]);
  for (int other = rows - 1; other > row; --other) block.right = step(block.right, leap, rights[other * width]);
  return block;
}

// Writes what the whole block adds to the scans of its neighbours.
template <typename Sum>
__device__ void leave(const Inputs& in, const Place& at, Sides<Sum> own, Sum leap, double* shared, double* sums) {
  __syncthreads();
  const Pair<Sum>* lefts = share(own.left, shared);
  const Pair<Sum>* rights = share(own.right, shared + 2 * ROWS * LANES);
  __syncthreads();
  const int side = threadIdx.y;
  if (side > 1 || !at.active) return;
  Pair<Sum> sum = {};
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    sum = side == 0 ? step(sum, leap, lefts[i * blockDim.x]) : step(sum, leap, rights[(ROWS - 1 - i) * blockDim.x]);
  }
  sums[at.summary(in, side, 0)] = sum.a;
  sums[at.summary(in, side, 1)] = sum.b;
}

template <typename Sum>
__device__ Sides<Sum> entering(const Inputs& in, const Place& at, const double* carries) {
  return {{Sum(carries[at.summary(in, 0, 0)]), Sum(carries[at.summary(in, 0, 1)])},
          {Sum(carries[at.summary(in, 1, 0)]), Sum(carries[at.summary(in, 1, 1)])}};
}

// The (anchor, largest key) of a batch item, from (B, 2, C): key first.
template <typename Sum>
__device__ Pair<Sum> base_of(const Inputs& in, const Place& at, const Real* top) {
  const Real* written = top + at.state + at.state / in.channels * in.channels;
  return {Sum(written[in.channels]), Sum(written[0])};
}

// Strictly greater: of equal keys every thread takes the same one.
template <typename Sum>
__device__ Pair<Sum> heavier(Pair<Sum> first, Pair<Sum> second) { return second.b > first.b ? second : first; }

}  // namespace
