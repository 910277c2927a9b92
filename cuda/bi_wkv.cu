// The bi-WKV operator (eq. 7), forward and backward, as a scan that is parallel over batch items, channels and
// chunks of tokens. docs/operator.md has the formulae, model/bi_wkv_cuda.py launches these kernels.
//
//   summarise        what a chunk of tokens adds to the scans of its neighbours        reads k, v
//   carry            scans over chunks, in float64: the states that enter each chunk
//   scan             the scans inside a chunk, begun from those states                 reads k, v, writes y
//   summarise_grad   as summarise, for p and q                                         reads k, v, grad
//   scan_grad        as scan: dk, dv and one partial sum of dw and du per chunk        reads k, v, grad
//
// Tensors are (B, L, C) with C contiguous; a block of (LANES channels, ROWS) threads takes one chunk, each thread
// TOKENS tokens of one channel, in registers. Nothing is added in an order that could vary between runs.
//
// Numerator and denominator, as p and q, ride in one Pair: they obey the same recurrence. Keys are measured from the
// largest one, values from an anchor: that of the chunk's heaviest token in `summarise`, their mean with weights e^k
// over the whole sequence from then on. Tokens past the end are absent: key -huge, p and q
// zero. What the left scan makes of them may overflow, and is read by nobody.
//
// Compiled once per storage type, STORAGE: float, double, Float16 or BFloat16. Sums are float where w and u allow
// it, else double; the choice is made here, per block, so that the host never waits for the values of w and u.

#include "bi_wkv.cuh"

namespace {

template <typename Sum>
__device__ void summarise_chunk(const Inputs& in, Real* tops, double* sums, double* shared) {
  const Place at(in);
  const Weights<Sum> by(in, at);
  Pair<Sum> rows[TOKENS];
  load(in, at, rows);
  Pair<Sum> top = {0, LEAST_KEY};
#pragma unroll
  for (int i = 0; i < TOKENS; ++i) top = heavier(top, rows[i]);
  const Pair<Sum>* all = share(top, shared);
  __syncthreads();
  top = all[0];
#pragma unroll
  for (int row = 1; row < ROWS; ++row) top = heavier(top, all[row * blockDim.x]);
  weigh(rows, top);
  Pair<Sum> plain = {};
#pragma unroll
  for (int i = 0; i < TOKENS; ++i) plain = plain + rows[i];
  leave(in, at, reduce(rows, by.decay), by.leap, shared, sums);
  __syncthreads();
  all = share(plain, shared);
  __syncthreads();
  if (threadIdx.y > 0 || !at.active) return;
  for (int row = 1; row < ROWS; ++row) plain = plain + all[row * blockDim.x];
  Real* written = tops + at.chunk * 4 * in.channels + at.channel;
  const Sum values[] = {top.b, top.a, plain.a, plain.b};
#pragma unroll
  for (int i = 0; i < 4; ++i) written[i * in.channels] = Real(values[i]);
}

template <typename Sum>
__device__ void scan_chunk(const Inputs& in, const Real* top, const double* carries, Storage* y, double* shared) {
  const Place at(in);
  const Weights<Sum> by(in, at);
  Pair<Sum> rows[TOKENS], after[TOKENS];
  load(in, at, rows);
  const Pair<Sum> base = base_of<Sum>(in, at, top);
  weigh(rows, base);
  Sides<Sum> states = enter(reduce(rows, by.decay), entering<Sum>(in, at, carries), by.leap, shared);
#pragma unroll
  for (int i = TOKENS - 1; i >= 0; --i) {
    after[i] = states.right;
    states.right = step(states.right, by.decay, rows[i]);
  }
#pragma unroll
  for (int i = 0; i < TOKENS; ++i) {
    const Pair<Sum> sum = step(rows[i], by.bonus, states.left + after[i]);
    if (i < at.count) narrow(Real(base.a + quotient(sum.a, sum.b)), y[at.first + i * in.channels]);
    states.left = step(states.left, by.decay, rows[i]);
  }
}

// What the backward pass knows of a token once the forward scans have been done again: rows, the states on both
// sides, and (p, q) = (grad / D, -p y).
template <typename Sum>
struct Tokens {
  Pair<Sum> rows[TOKENS], before[TOKENS], after[TOKENS], pq[TOKENS];

  __device__ Tokens(const Inputs& in, const Place& at, const Weights<Sum>& by, const Real* top,
                    const double* carries, const Storage* grad, double* shared) {
    load(in, at, rows);
#pragma unroll
    for (int i = 0; i < TOKENS; ++i) pq[i].a = i < at.count ? Sum(widen(grad[at.first + i * in.channels])) : Sum(0);
    weigh(rows, base_of<Sum>(in, at, top));
    Sides<Sum> states = enter(reduce(rows, by.decay), entering<Sum>(in, at, carries), by.leap, shared);
#pragma unroll
    for (int i = 0; i < TOKENS; ++i) {
      const int j = TOKENS - 1 - i;
      before[i] = states.left;
      after[j] = states.right;
      states.left = step(states.left, by.decay, rows[i]);
      states.right = step(states.right, by.decay, rows[j]);
    }
#pragma unroll
    for (int i = 0; i < TOKENS; ++i) {
      const Pair<Sum> sum = step(rows[i], by.bonus, before[i] + after[i]);
      const Sum inverse = quotient(Sum(1), sum.b), p = pq[i].a * inverse;
      pq[i] = {0, 0};
      if (i < at.count) pq[i] = {p, -p * (sum.a * inverse)};
    }
  }
};

template <typename Sum>
__device__ void summarise_grad_chunk(const Inputs& in, const Real* top, const double* carries, const Storage* grad,
                                     double* sums, double* shared) {
  const Place at(in);
  const Weights<Sum> by(in, at);
  const Tokens<Sum> tokens(in, at, by, top, carries, grad, shared);
  leave(in, at, reduce(tokens.pq, by.decay), by.leap, shared, sums);
}

template <typename Sum>
__device__ void scan_grad_chunk(const Inputs& in, const Real* top, const double* carries, const Storage* grad,
                                const double* grad_carries, Storage* dk, Storage* dv, double* dw, double* du,
                                double* shared) {
  const Place at(in);
  const Weights<Sum> by(in, at);
  Tokens<Sum> tokens(in, at, by, top, carries, grad, shared);
  Sides<Sum> states =
      enter(reduce(tokens.pq, by.decay), entering<Sum>(in, at, grad_carries), by.leap, shared);
  Pair<Sum> part = {};  // of dw, which still lacks -λ/L, and du
#pragma unroll
  for (int i = TOKENS - 1; i >= 0; --i) {
    const Pair<Sum> coming = states.right;
    if (i < at.count) {
      const Pair<Sum> before = tokens.before[i], row = tokens.rows[i], others = before + tokens.after[i];
      part.a += coming.a * before.a + coming.b * before.b;
      // E (p v + q) is p E (v - y); written with v - y = (v (f + g) - F - G) / D, the bonus's own share is gone
      // before it could cancel.
      const Sum apart = row.a * others.b - row.b * others.a;
      part.b += by.bonus * tokens.pq[i].a * quotient(apart, others.b + by.bonus * row.b);
    }
    states.right = step(coming, by.decay, tokens.pq[i]);
    tokens.before[i] = coming;  // in the registers of what is no longer needed
  }
#pragma unroll
  for (int i = 0; i < TOKENS; ++i) {
    const Pair<Sum> gone = states.left, row = tokens.rows[i], pq = tokens.pq[i];
    const Pair<Sum> spread = step(pq, by.bonus, gone + tokens.before[i]);
    if (i < at.count) {
      const long long element = at.first + i * in.channels;
      narrow(Real(row.b * spread.a), dv[element]);
      narrow(Real(row.a * spread.a + row.b * spread.b), dk[element]);
      part.a += gone.a * tokens.after[i].a + gone.b * tokens.after[i].b;
    }
    states.left = step(gone, by.decay, pq);
  }
  __syncthreads();
  const Pair<Sum>* parts = share(part, shared);
  __syncthreads();
  if (threadIdx.y > 0 || !at.active) return;
  Pair<double> total = {};
#pragma unroll
  for (int row = 0; row < ROWS; ++row) {
    total = total + Pair<double>{double(parts[row * blockDim.x].a), double(parts[row * blockDim.x].b)};
  }
  dw[at.chunk * in.channels + at.channel] = total.a;
  du[at.chunk * in.channels + at.channel] = total.b;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(ROWS * LANES, sizeof(Real) == 8 ? 2 : 4)
summarise(const Real* w, const Real* u, const Storage* k, const Storage* v, long long length, long long channels,
          Real* tops, double* sums) {
  alignas(16) __shared__ double shared[4 * ROWS * LANES];
  const Inputs in = {w, u, k, v, length, channels};
  if (needs_double(in)) summarise_chunk<double>(in, tops, sums, shared);
  else summarise_chunk<Real>(in, tops, sums, shared);
}

// One thread takes a run of chunks of one channel. tops is null for gradients: their sums share a base already.
extern "C" __global__ void __launch_bounds__(CARRY_ROWS * CARRY_LANES)
carry(const Real* w, const Real* u, long long length, long long channels, const Real* __restrict__ tops, Real* top,
      const double* __restrict__ sums, double* __restrict__ carries) {
  alignas(16) __shared__ double shared[4 * CARRY_ROWS * CARRY_LANES];
  const int chunks = int((length + CHUNK - 1) / CHUNK);
  const long long own = (long long)blockIdx.y * blockDim.x + threadIdx.x;
  const bool active = own < channels;
  const long long channel = active ? own : channels - 1;
  const long long item = blockIdx.x;
  const int run = (chunks + CARRY_ROWS - 1) / CARRY_ROWS;
  const int first = min(int(threadIdx.y) * run, chunks);
  const int count = active ? min(run, chunks - first) : 0;

  const double decay = w[item * channels + channel];
  const bool wide = exceeds_float(w[item * channels + channel], u[item * channels + channel]);
  const auto at = [&](int m, int side, int part) {
    return (((item * chunks + m) * 2 + side) * 2 + part) * channels + channel;
  };
  // The heaviest token of a chunk, and its weights added without decay.
  const auto local = [&](int m, int part) { return tops[((item * chunks + m) * 4 + part) * channels + channel]; };
  Pair<Real> base = {0, LEAST_KEY};
  const auto scale = [&](int m) -> double {
    return wide ? exp(double(local(m, 0)) - base.b) : double(exponential(local(m, 0) - base.b));
  };
  // The sum of one chunk, relative to the base of the whole sequence.
  const auto summary = [&](int m, int side) -> Pair<double> {
    const Pair<double> sum = {sums[at(m, side, 0)], sums[at(m, side, 1)]};
    if (!tops) return sum;
    const double factor = scale(m);
    return {factor * (sum.a + (double(local(m, 1)) - base.a) * sum.b), factor * sum.b};
  };
  if (tops) {
#pragma unroll 4
    for (int i = 0; i < count; ++i) base = heavier(base, {local(first + i, 1), local(first + i, 0)});
    const Pair<Real>* bases = share(base, shared);
    __syncthreads();
    base = bases[0];
    for (int row = 1; row < CARRY_ROWS; ++row) base = heavier(base, bases[row * blockDim.x]);
    Pair<double> mean = {};
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const int m = first + i;
      const double factor = scale(m), weight = factor * local(m, 3);
      mean = mean + Pair<double>{factor * local(m, 2) + (double(local(m, 1)) - base.a) * weight, weight};
    }
    __syncthreads();
    const Pair<double>* means = share(mean, shared);
    __syncthreads();
    mean = means[0];
    for (int row = 1; row < CARRY_ROWS; ++row) mean = mean + means[row * blockDim.x];
    if (mean.b != 0) base.a = Real(base.a + mean.a / mean.b);
    if (active && threadIdx.y == 0) {
      top[item * 2 * channels + channel] = base.b;
      top[(item * 2 + 1) * channels + channel] = base.a;
    }
  }
  const auto leap = [&](long long tokens) {
    return exp(-decay * double(tokens < length ? tokens : length) / double(length));
  };

  const double chunk_leap = leap(CHUNK);
  Sides<double> states = {};
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    states.left = step(states.left, chunk_leap, summary(first + i, 0));
    states.right = step(states.right, chunk_leap, summary(first + count - 1 - i, 1));
  }
  states = enter(states, Sides<double>{}, leap((long long)run * CHUNK), shared);
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const int m = first + i, n = first + count - 1 - i;
    carries[at(m, 0, 0)] = states.left.a;
    carries[at(m, 0, 1)] = states.left.b;
    carries[at(n, 1, 0)] = states.right.a;
    carries[at(n, 1, 1)] = states.right.b;
    states.left = step(states.left, chunk_leap, summary(m, 0));
    states.right = step(states.right, chunk_leap, summary(n, 1));
  }
}

extern "C" __global__ void __launch_bounds__(ROWS * LANES, sizeof(Real) == 8 ? 2 : 4)
scan(const Real* w, const Real* u, const Storage* k, const Storage* v, long long length, long long channels,
     const Real* top, const double* carries, Storage* y) {
  alignas(16) __shared__ double shared[4 * ROWS * LANES];
  const Inputs in = {w, u, k, v, length, channels};
  if (needs_double(in)) scan_chunk<double>(in, top, carries, y, shared);
  else scan_chunk<Real>(in, top, carries, y, shared);
}

extern "C" __global__ void __launch_bounds__(ROWS * LANES, 2)
summarise_grad(const Real* w, const Real* u, const Storage* k, const Storage* v, long long length, long long channels,
               const Real* top, const double* carries, const Storage* grad, double* sums) {
  alignas(16) __shared__ double shared[4 * ROWS * LANES];
  const Inputs in = {w, u, k, v, length, channels};
  if (needs_double(in)) summarise_grad_chunk<double>(in, top, carries, grad, sums, shared);
  else summarise_grad_chunk<Real>(in, top, carries, grad, sums, shared);
}

extern "C" __global__ void __launch_bounds__(ROWS * LANES, sizeof(Real) == 8 ? 1 : 2)
scan_grad(const Real* w, const Real* u, const Storage* k, const Storage* v, long long length, long long channels,
          const Real* top, const double* carries, const Storage* grad, const double* grad_carries, Storage* dk,
          Storage* dv, double* dw, double* du) {
  alignas(16) __shared__ double shared[4 * ROWS * LANES];
  const Inputs in = {w, u, k, v, length, channels};
  if (needs_double(in)) scan_grad_chunk<double>(in, top, carries, grad, grad_carries, dk, dv, dw, du, shared);
  else scan_grad_chunk<Real>(in, top, carries, grad, grad_carries, dk, dv, dw, du, shared);
}
