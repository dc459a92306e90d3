// Every product on small random weights against plain loops in double, built with the
// sanitizers: buffers are exactly as long as they may be, so a stray read is caught.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "products.h"

namespace jaxsparse {
namespace {

std::mt19937 rng(0);
int random_below(int n) { return (int)(rng() % (unsigned)n); }
float random_float() { return (float)(int)(rng() % 2001) / 1000.f - 1.f; }

class Threads : public Pool {
 public:
  int threads() const override { return 3; }
  void schedule(std::function<void()> task) override { running_.emplace_back(std::move(task)); }
  ~Threads() override {
    for (auto& thread : running_) thread.join();
  }

 private:
  std::vector<std::thread> running_;
};

// On the heap and of the exact size: the sanitizer guards both ends.
template <class T>
struct Exact {
  explicit Exact(size_t n) : size(n), at(new T[n]()) {}
  T& operator[](size_t i) { return at[i]; }
  T* get() const { return at.get(); }
  size_t size;
  std::unique_ptr<T[]> at;
};

Exact<float> random_matrix(long rows, long columns) {
  Exact<float> m(rows * columns);
  for (size_t i = 0; i < m.size; i++) m[i] = random_float();
  return m;
}

// Stored values of a dtype and what they say.
struct Stored {
  Stored(size_t n, int dtype) : bytes(n * dtype_bytes(dtype)), say(n) {
    for (size_t i = 0; i < n; i++) {
      if (dtype == kF32) {
        const float f = random_float();
        std::memcpy(bytes.get() + 4 * i, &f, 4);
        say[i] = f;
      } else if (dtype == kBf16) {
        const float f = random_float();
        uint32_t u;
        std::memcpy(&u, &f, 4);
        const uint16_t half = (uint16_t)(u >> 16);
        u = (uint32_t)half << 16;
        std::memcpy(bytes.get() + 2 * i, &half, 2);
        float back;
        std::memcpy(&back, &u, 4);
        say[i] = back;
      } else {
        const int8_t b = (int8_t)(random_below(255) - 127);
        std::memcpy(bytes.get() + i, &b, 1);
        say[i] = b;
      }
    }
  }
  Exact<char> bytes;
  std::vector<double> say;
};

int failures = 0;

// got[rows][columns] against a(r, i) * b(i, c) summed over i.
template <class A, class B>
void compare(const char* what, const float* got, long rows, long columns, long depth, const A& a,
             const B& b) {
  double worst = 0, most = 1e-30;
  for (long r = 0; r < rows; r++) {
    for (long c = 0; c < columns; c++) {
      double sum = 0;
      for (long i = 0; i < depth; i++) sum += a(r, i) * b(i, c);
      worst = std::fmax(worst, std::fabs(got[r * columns + c] - sum));
      most = std::fmax(most, std::fabs(sum));
    }
  }
  if (!(worst / most < 1e-5)) {
    failures++;
    std::printf("%s: relative error %g at %ld x %ld x %ld\n", what, worst / most, rows, depth,
                columns);
  }
}

// One weight's three products; entries(visit) calls visit(entry, row, column).
struct Problem {
  long batch, k, n;
  std::vector<double> dense;
  Exact<float> x, dy, y, dx;

  Problem(long batch, long k, long n)
      : batch(batch), k(k), n(n), dense(k * n), x(random_matrix(batch, k)),
        dy(random_matrix(batch, n)), y(batch * n), dx(batch * k) {}

  Matrix in() const { return {x.get(), batch, k}; }
  Matrix out() const { return {dy.get(), batch, n}; }

  void check(const char* what) {
    compare(what, y.get(), batch, n, k, [&](long r, long i) { return x.at[r * k + i]; },
            [&](long i, long c) { return dense[i * n + c]; });
    compare(what, dx.get(), batch, k, n, [&](long r, long i) { return dy.at[r * n + i]; },
            [&](long i, long c) { return dense[c * n + i]; });
  }
  void check_sampled(const char* what, long row, long column, float got) {
    double sum = 0;
    for (long m = 0; m < batch; m++) sum += (double)x.at[m * k + row] * dy.at[m * n + column];
    if (!(std::fabs(got - sum) <= 1e-6 * (batch + 1))) {
      failures++;
      std::printf("%s: %g instead of %g\n", what, got, sum);
    }
  }
};

void test_block(long batch, long k, long n, int bk, int bn, int dtype, int percent) {
  Threads pool;
  Problem p(batch, k, n);
  const long down = (k + bk - 1) / bk, across = (n + bn - 1) / bn;
  Exact<int32_t> indptr(across + 1);
  std::vector<int32_t> rows;
  for (long j = 0; j < across; j++) {
    for (long i = 0; i < down; i++)
      if (random_below(100) < percent) rows.push_back((int32_t)i);
    indptr[j + 1] = (int32_t)rows.size();
  }
  Exact<int32_t> indices(rows.size());
  std::copy(rows.begin(), rows.end(), indices.get());
  const Stored values(rows.size() * bk * bn, dtype);
  const auto each = [&](const auto& visit) {
    for (long j = 0; j < across; j++)
      for (long e = indptr[j]; e < indptr[j + 1]; e++)
        for (long r = 0; r < bk; r++)
          for (long c = 0; c < bn; c++) {
            const long row = rows[e] * bk + r, column = j * bn + c;
            if (row < k && column < n) visit((e * bk + r) * bn + c, row, column);
          }
  };
  each([&](long at, long row, long column) { p.dense[row * n + column] = values.say[at]; });
  const BlockWeights w{k,  n, bk, bn, dtype, values.bytes.get(), indptr.get(), indices.get(),
                       (long)rows.size()};
  if (check_pointers(w.indptr, across, w.nnz) || check_indices(w)) failures++;
  block_dot(pool, p.in(), w, p.y.get());
  block_dot_transposed(pool, p.out(), w, p.dx.get());
  p.check("block");
  Exact<float> sampled(rows.size() * bk * bn);
  block_sampled(pool, p.in(), p.out(), w, sampled.get());
  each([&](long at, long row, long column) {
    if (at % 7 == 0) p.check_sampled("block sampled", row, column, sampled[at]);
  });
}

template <class Row>
void test_csc(long batch, long k, long n, int dtype, int percent) {
  Threads pool;
  Problem p(batch, k, n);
  Exact<int32_t> indptr(n + 1);
  std::vector<Row> rows;
  for (long j = 0; j < n; j++) {
    for (long i = 0; i < k; i++)
      if (random_below(100) < percent) rows.push_back((Row)i);
    indptr[j + 1] = (int32_t)rows.size();
  }
  Exact<Row> indices(rows.size());
  std::copy(rows.begin(), rows.end(), indices.get());
  const Stored values(rows.size(), dtype);
  for (long j = 0; j < n; j++)
    for (long e = indptr[j]; e < indptr[j + 1]; e++) p.dense[rows[e] * n + j] = values.say[e];
  const CscWeights w{k, n, dtype, values.bytes.get(), indptr.get(), indices.get(),
                     sizeof(Row) == 4, (long)rows.size()};
  if (csc_dot(pool, p.in(), w, p.y.get())) failures++;
  if (csc_dot_transposed(pool, p.out(), w, p.dx.get())) failures++;
  p.check("csc");
  Exact<float> sampled(rows.size());
  if (csc_sampled(pool, p.in(), p.out(), w, sampled.get())) failures++;
  for (long j = 0; j < n; j++)
    for (long e = indptr[j]; e < indptr[j + 1]; e++)
      p.check_sampled("csc sampled", rows[e], j, sampled[e]);
  // Damaged indices: an error or a wrong result, but no stray access.
  for (int round = 0; round < 4 && !rows.empty(); round++) {
    for (int hits = 0; hits < 3; hits++)
      indices[random_below((int)rows.size())] = (Row)random_below(round < 2 ? (int)k : 60000);
    csc_dot(pool, p.in(), w, p.y.get());
    csc_dot_transposed(pool, p.out(), w, p.dx.get());
    csc_sampled(pool, p.in(), p.out(), w, sampled.get());
  }
}

void test_bitmap(long batch, long k, long n, int dtype, int percent) {
  Threads pool;
  Problem p(batch, k, n);
  const int words = (int)std::min<long>(8, (k + 31) / 32);
  BitmapWeights w{k, n, dtype, nullptr, nullptr, nullptr, words, 0};
  Exact<uint32_t> bits(w.strips() * n * words);
  Exact<int32_t> starts(w.strips() * w.chunks() + 1);
  std::vector<long> rows, columns;
  for (long s = 0; s < w.strips(); s++)
    for (long c = 0; c < n; c++) {
      for (long r = 0; r < w.strip() && s * w.strip() + r < k; r++)
        if (random_below(100) < percent) {
          bits[(s * n + c) * words + r / 32] |= 1u << r % 32;
          rows.push_back(s * w.strip() + r);
          columns.push_back(c);
        }
      starts[s * w.chunks() + c / kTileColumns + 1] = (int32_t)rows.size();
    }
  const Stored values(rows.size(), dtype);
  for (size_t e = 0; e < rows.size(); e++) p.dense[rows[e] * n + columns[e]] = values.say[e];
  w.values = values.bytes.get();
  w.starts = starts.get();
  w.bits = bits.get();
  w.nnz = (long)rows.size();
  if (check_pointers(w.starts, w.strips() * w.chunks(), w.nnz)) failures++;
  if (bitmap_dot(pool, p.in(), w, p.y.get())) failures++;
  if (bitmap_dot_transposed(pool, p.out(), w, p.dx.get())) failures++;
  p.check("bitmap");
  Exact<float> sampled(rows.size());
  if (bitmap_sampled(pool, p.in(), p.out(), w, sampled.get())) failures++;
  for (size_t e = 0; e < rows.size(); e++)
    p.check_sampled("bitmap sampled", rows[e], columns[e], sampled[e]);
  // Damaged bits: always an error, where there is anything to multiply; and no stray access.
  for (int round = 0; round < 4; round++) {
    const int hit = random_below((int)(w.strips() * n * words));
    bits[hit] ^= round % 2 ? ~0u : 1u << random_below(32);
    const bool refused[] = {bitmap_dot(pool, p.in(), w, p.y.get()) != nullptr,
                            bitmap_dot_transposed(pool, p.out(), w, p.dx.get()) != nullptr,
                            bitmap_sampled(pool, p.in(), p.out(), w, sampled.get()) != nullptr};
    for (bool one : refused)
      if (!one && batch > 0 && round == 0) failures++;
  }
}

void test_nm(long batch, long k, long n, int kept, int m, int dtype) {
  Threads pool;
  Problem p(batch, k, n);
  NmWeights w{k, n, kept, m, dtype, nullptr, nullptr};
  const long rows = w.groups() * kept;
  const Stored values(rows * n, dtype);
  Exact<uint32_t> positions((rows + w.per_word() - 1) / w.per_word() * n);
  std::vector<long> at(rows * n);
  for (long g = 0; g < w.groups(); g++) {
    for (long c = 0; c < n; c++) {
      std::vector<int> order(m);
      for (int i = 0; i < m; i++) order[i] = i;
      std::shuffle(order.begin(), order.end(), rng);
      for (int z = 0; z < kept; z++) {
        const long r = g * kept + z, row = g * m + order[z];
        positions[r / w.per_word() * n + c] |= (uint32_t)order[z]
                                               << (w.bits() * (int)(r % w.per_word()));
        at[r * n + c] = row;
        if (row < k) p.dense[row * n + c] = values.say[r * n + c];
      }
    }
  }
  w.values = values.bytes.get();
  w.positions = positions.get();
  nm_dot(pool, p.in(), w, p.y.get());
  nm_dot_transposed(pool, p.out(), w, p.dx.get());
  p.check("nm");
  Exact<float> sampled(rows * n);
  nm_sampled(pool, p.in(), p.out(), w, sampled.get());
  for (long e = 0; e < rows * n; e += 5)
    if (at[e] < k) p.check_sampled("nm sampled", at[e], e % n, sampled[e]);
}

}  // namespace
}  // namespace jaxsparse

int main() {
  using namespace jaxsparse;
  if (isa_error()) {
    std::printf("%s\n", isa_error());
    return 0;
  }
  const int blocks[][2] = {{1, 16}, {4, 16}, {32, 32}, {5, 48}, {64, 64}};
  const int groups[][2] = {{2, 4}, {1, 4}, {1, 2}, {4, 8}, {3, 16}};
  const long batches[] = {0, 1, 2, 5, 8, 13, 16, 17, 40, 70};
  const int percents[] = {0, 5, 40, 100};
  for (int round = 0; round < 40; round++) {
    const long batch = batches[round % 10], k = 1 + random_below(150), n = 1 + random_below(100);
    const int dtype = random_below(3), percent = percents[random_below(4)];
    const auto& block = blocks[random_below(5)];
    const auto& group = groups[random_below(5)];
    test_block(batch, k, n, block[0], block[1], dtype, percent);
    if (round % 2) test_csc<uint16_t>(batch, k, n, dtype, percent);
    else test_csc<int32_t>(batch, k, n, dtype, percent);
    test_bitmap(batch, k, n, dtype, percent);
    test_nm(batch, k, n, group[0], group[1], dtype);
  }
  // More of x than a cache holds: CSC is cut into tiles.
  for (int dtype : {kF32, kBf16, kI8}) {
    test_csc<uint16_t>(34, 8001, 70, dtype, 3);
    test_csc<int32_t>(41, 7003, 65, dtype, 40);
    for (long batch : {1, 3, 7, 20, 70}) test_bitmap(batch, 520, 70, dtype, 50);
  }
  std::printf("%s: %s\n", kernels().name, failures ? "FAILED" : "passed");
  return failures != 0;
}
