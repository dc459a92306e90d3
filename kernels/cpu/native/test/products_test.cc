// Every product of random weights against plain loops in double, built with the sanitizers:
// buffers are exactly as long as they may be, so a stray access is caught.
//
//     products_test [cases [first]]
//
// Case i draws everything from the seed i; a failure names its case, and `products_test 1 i`
// runs that one again.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#ifdef JAXSPARSE_SANITIZE
#include <sanitizer/common_interface_defs.h>
#endif

#include "drivers/products.h"
#include "int8.h"

namespace jaxsparse {
namespace {

std::mt19937 rng;
int random_below(int n) { return (int)(rng() % (unsigned)n); }
int random_between(int low, int high) { return low + random_below(high - low + 1); }
bool one_in(int n) { return random_below(n) == 0; }
float random_float() { return (float)(int)(rng() % 2001) / 1000.f - 1.f; }

// What is being drawn, for messages.
long number;
char drawn[200];

class Threads : public Pool {
 public:
  explicit Threads(int threads) : threads_(threads) {}
  int threads() const override { return threads_; }
  void schedule(std::function<void()> task) override { running_.emplace_back(std::move(task)); }
  ~Threads() override {
    for (auto& thread : running_) thread.join();
  }

 private:
  const int threads_;
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

Exact<float> unwritten(size_t n) {
  Exact<float> out(n);
  std::fill(out.get(), out.get() + n, NAN);
  return out;
}

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
void fail(const char* what) {
  failures++;
  std::printf("case %ld, %s: %s\n", number, drawn, what);
}

// got[rows][columns] against a(r, i) * b(i, c) summed over i. Errors are measured by the largest
// sum of magnitudes, for a single sum may cancel to nothing.
template <class A, class B>
void compare(const char* what, const float* got, long rows, long columns, long depth, const A& a,
             const B& b) {
  double worst = 0, most = 1e-30;
  for (long r = 0; r < rows; r++) {
    for (long c = 0; c < columns; c++) {
      double sum = 0, magnitude = 0;
      for (long i = 0; i < depth; i++) {
        const double term = a(r, i) * b(i, c);
        sum += term;
        magnitude += std::fabs(term);
      }
      const double error = std::fabs(got[r * columns + c] - sum);
      worst = std::isnan(error) ? INFINITY : std::fmax(worst, error);
      most = std::fmax(most, magnitude);
    }
  }
  if (!(worst / most < 2e-6)) fail(what);
}

// One weight's three products; entries(visit) calls visit(entry, row, column).
struct Problem {
  long batch, k, n;
  std::vector<double> dense;
  Exact<float> x, dy, y, dx;

  Problem(long batch, long k, long n)
      : batch(batch), k(k), n(n), dense(k * n), x(random_matrix(batch, k)),
        dy(random_matrix(batch, n)), y(unwritten(batch * n)), dx(unwritten(batch * k)) {}

  Matrix in() const { return {x.get(), batch, k}; }
  Matrix out() const { return {dy.get(), batch, n}; }

  void check() {
    compare("y differs", y.get(), batch, n, k, [&](long r, long i) { return x.at[r * k + i]; },
            [&](long i, long c) { return dense[i * n + c]; });
    compare("dx differs", dx.get(), batch, k, n, [&](long r, long i) { return dy.at[r * n + i]; },
            [&](long i, long c) { return dense[c * n + i]; });
  }
  void check_sampled(long row, long column, float got) {
    double sum = 0;
    for (long m = 0; m < batch; m++) sum += (double)x.at[m * k + row] * dy.at[m * n + column];
    if (!(std::fabs(got - sum) <= 1e-6 * (batch + 1))) fail("a sampled value differs");
  }
  void check_spare(const Exact<float>& sampled, size_t kept) {
    for (size_t e = kept; e < sampled.size; e++)
      if (sampled.at[e] != 0) fail("a sampled value of spare room is not zero");
  }
};

// Weights are kept with a probability; columns that keep none or all come up too.
struct Density {
  int percent = one_in(4) ? (one_in(2) ? 0 : 100) : one_in(2) ? random_below(10) : random_below(101);
  bool keeps() const { return random_below(100) < percent; }
};

// Columns of ascending rows, with room to spare behind the last.
template <class Row>
struct Columns {
  Columns(long down, long across, const Density& density)
      : indptr(across + 1), rows(kept_of(down, across, density) + (one_in(2) ? 0 : random_below(9))) {
    std::copy(kept.begin(), kept.end(), rows.get());
  }
  // Says what check_pointers and the products should say.
  bool good(long down) const {
    for (size_t j = 0; j + 1 < indptr.size; j++) {
      long last = -1;
      for (long e = indptr.at[j]; e < indptr.at[j + 1]; e++) {
        const long row = (long)rows.at[e];
        if (row <= last || row >= down) return false;
        last = row;
      }
    }
    return true;
  }
  // Something that may be wrong with the rows: another row, two rows exchanged, one repeated.
  void damage(long down) {
    if (kept.empty()) return;
    const int e = random_below((int)kept.size()), other = random_below((int)kept.size());
    switch (random_below(4)) {
      case 0: rows[e] = (Row)random_below((int)down); break;
      case 1: rows[e] = (Row)(one_in(2) ? -1 : random_between((int)down, (int)down + 60000)); break;
      case 2: std::swap(rows[e], rows[other]); break;
      default: rows[e] = rows[e > 0 ? e - 1 : e];
    }
  }

  std::vector<Row> kept;
  Exact<int32_t> indptr;
  Exact<Row> rows;

 private:
  size_t kept_of(long down, long across, const Density& density) {
    for (long j = 0; j < across; j++) {
      for (long i = 0; i < down; i++)
        if (density.keeps()) kept.push_back((Row)i);
      indptr[j + 1] = (int32_t)kept.size();
    }
    return kept.size();
  }
};

void test_block(Pool& pool, Problem& p, int dtype, const Density& density) {
  const long k = p.k, n = p.n;
  const int bk = one_in(3) ? 1 << random_below(6) : random_between(1, 70);
  const int bn = 16 * (one_in(3) ? 1 << random_below(4) : random_between(1, 9));
  std::snprintf(drawn + std::strlen(drawn), 40, ", blocks %dx%d", bk, bn);
  const long down = (k + bk - 1) / bk, across = (n + bn - 1) / bn;
  Columns<int32_t> index(down, across, density);
  const auto &indptr = index.indptr, &rows = index.rows;
  const Stored values(rows.size * bk * bn, dtype);
  const auto each = [&](const auto& visit) {
    for (long j = 0; j < across; j++)
      for (long e = indptr.at[j]; e < indptr.at[j + 1]; e++)
        for (long r = 0; r < bk; r++)
          for (long c = 0; c < bn; c++) {
            const long row = rows.at[e] * bk + r, column = j * bn + c;
            if (row < k && column < n) visit((e * bk + r) * bn + c, row, column);
          }
  };
  each([&](long at, long row, long column) { p.dense[row * n + column] = values.say[at]; });
  const BlockWeights w{k,  n, bk, bn, dtype, values.bytes.get(), indptr.get(), rows.get(),
                       (long)rows.size};
  if (check_pointers(w.indptr, across, w.nnz) || check_indices(w)) fail("a good index is refused");
  dot(pool, p.in(), w, p.y.get());
  dot_transposed(pool, p.out(), w, p.dx.get());
  p.check();
  Exact<float> sampled = unwritten(rows.size * bk * bn);
  jaxsparse::sampled(pool, p.in(), p.out(), w, sampled.get());
  each([&](long at, long row, long column) {
    if (at % 7 == 0) p.check_sampled(row, column, sampled[at]);
  });
  p.check_spare(sampled, index.kept.size() * bk * bn);
  for (int round = 0; round < 3; round++) {
    index.damage(down);
    if ((check_indices(w) == nullptr) != index.good(down)) fail("a damaged index");
  }
}

template <class Row>
void test_csc(Pool& pool, Problem& p, int dtype, const Density& density) {
  const long k = p.k, n = p.n;
  Columns<Row> index(k, n, density);
  const auto &indptr = index.indptr, &rows = index.rows;
  const Stored values(rows.size, dtype);
  const auto each = [&](const auto& visit) {
    for (long j = 0; j < n; j++)
      for (long e = indptr.at[j]; e < indptr.at[j + 1]; e++) visit(e, rows.at[e], j);
  };
  each([&](long at, long row, long column) { p.dense[row * n + column] = values.say[at]; });
  const CscWeights w{k, n, dtype, values.bytes.get(), indptr.get(), rows.get(), sizeof(Row) == 4,
                     (long)rows.size};
  Exact<float> sampled = unwritten(rows.size);
  // Some zeros, which few rows skip.
  if (one_in(2))
    for (size_t i = 0; i < p.dy.size; i++) p.dy[i] = one_in(3) ? p.dy[i] : 0.f;
  const auto products = [&](bool good) {
    if ((dot(pool, p.in(), w, p.y.get()) == nullptr) != good ||
        (dot_transposed(pool, p.out(), w, p.dx.get()) == nullptr) != good ||
        (jaxsparse::sampled(pool, p.in(), p.out(), w, sampled.get()) == nullptr) != good)
      fail(good ? "a good index is refused" : "a product takes a damaged index");
  };
  products(true);
  p.check();
  each([&](long at, long row, long column) { p.check_sampled(row, column, sampled[at]); });
  p.check_spare(sampled, index.kept.size());
  // What zeros skip they do not check.
  for (size_t i = 0; i < p.dy.size; i++) p.dy[i] = p.dy[i] == 0.f ? 1.f : p.dy[i];
  for (int round = 0; round < 3 && k > 0 && p.batch > 0; round++) {
    index.damage(k);
    products(index.good(k));
  }
}

void test_bitmap(Pool& pool, Problem& p, int dtype, const Density& density) {
  const long k = p.k, n = p.n;
  const int words = (int)std::max<long>(1, std::min<long>(8, (k + 31) / 32));
  BitmapWeights w{k, n, dtype, nullptr, nullptr, nullptr, words, 0};
  Exact<uint32_t> bits(w.strips() * n * words);
  Exact<int32_t> starts(w.strips() * w.chunks() + 1);
  std::vector<long> rows, columns;
  for (long s = 0; s < w.strips(); s++)
    for (long c = 0; c < n; c++) {
      for (long r = 0; r < w.strip() && s * w.strip() + r < k; r++)
        if (density.keeps()) {
          bits[(s * n + c) * words + r / 32] |= 1u << r % 32;
          rows.push_back(s * w.strip() + r);
          columns.push_back(c);
        }
      starts[s * w.chunks() + c / kTileColumns + 1] = (int32_t)rows.size();
    }
  const Stored values(rows.size() + (one_in(2) ? 0 : random_below(9)), dtype);
  for (size_t e = 0; e < rows.size(); e++) p.dense[rows[e] * n + columns[e]] = values.say[e];
  w.values = values.bytes.get();
  w.starts = starts.get();
  w.bits = bits.get();
  w.nnz = (long)values.say.size();
  if (check_pointers(w.starts, w.strips() * w.chunks(), w.nnz)) fail("good starts are refused");
  Exact<float> sampled = unwritten(values.say.size());
  const auto products = [&](bool good) {
    if ((dot(pool, p.in(), w, p.y.get()) == nullptr) != good ||
        (dot_transposed(pool, p.out(), w, p.dx.get()) == nullptr) != good ||
        (jaxsparse::sampled(pool, p.in(), p.out(), w, sampled.get()) == nullptr) != good)
      fail(good ? "good bits are refused" : "a product takes damaged bits");
  };
  products(true);
  p.check();
  for (size_t e = 0; e < rows.size(); e++) p.check_sampled(rows[e], columns[e], sampled[e]);
  p.check_spare(sampled, rows.size());
  if (bits.size == 0 || p.batch == 0) return;
  // A bit more or less is counted, and where it goes elsewhere in its column it is not.
  const int hit = random_below((int)bits.size);
  const uint32_t before = bits[hit];
  for (const uint32_t wrong : {before ^ 1u << random_below(32), ~before, 0u, ~0u}) {
    bits[hit] = wrong;
    if (__builtin_popcount(wrong) != __builtin_popcount(before)) products(false);
  }
}

void test_nm(Pool& pool, Problem& p, int dtype) {
  const long k = p.k, n = p.n;
  const int m = 2 << random_below(4), kept = one_in(3) ? 1 : random_between(1, m);
  std::snprintf(drawn + std::strlen(drawn), 40, ", %d:%d", kept, m);
  NmWeights w{k, n, kept, m, dtype, nullptr, nullptr};
  const long rows = w.groups() * kept;
  const Stored values(rows * n, dtype);
  Exact<uint32_t> positions((rows + w.per_word() - 1) / w.per_word() * n);
  std::vector<long> at(rows * n);
  for (long g = 0; g < w.groups(); g++) {
    for (long c = 0; c < n; c++) {
      int order[16];
      for (int i = 0; i < m; i++) order[i] = i;
      std::shuffle(order, order + m, rng);
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
  dot(pool, p.in(), w, p.y.get());
  dot_transposed(pool, p.out(), w, p.dx.get());
  p.check();
  Exact<float> sampled = unwritten(rows * n);
  jaxsparse::sampled(pool, p.in(), p.out(), w, sampled.get());
  for (long e = 0; e < rows * n; e += 5)
    if (at[e] < k) p.check_sampled(at[e], e % n, sampled[e]);
}

// Codes by int8 blocks: the sums exactly, and what is made of them within a rounding.
void test_int8(Pool& pool, const Problem& p, const Density& density) {
  const long k = p.k, n = p.n, batch = p.batch;
  const int bk = one_in(3) ? 1 << random_below(6) : random_between(1, 40);
  const int bn = one_in(2) ? 16 * random_between(1, 3) : random_between(1, 40);
  std::snprintf(drawn + std::strlen(drawn), 40, ", blocks %dx%d", bk, bn);
  Columns<int32_t> index((k + bk - 1) / bk, (n + bn - 1) / bn, density);
  Exact<int8_t> values(index.rows.size * bk * bn);
  Exact<uint8_t> x(batch * k);
  const int most = one_in(3);
  for (size_t i = 0; i < values.size; i++)
    values[i] = (int8_t)(most ? (one_in(2) ? -128 : 127) : random_below(256));
  for (size_t i = 0; i < x.size; i++)
    x[i] = (uint8_t)(most ? 255 * random_below(2) : random_below(256));
  const bool with_sign = one_in(2);
  const int least = with_sign ? -128 : 0;
  const int zero = least + (one_in(3) ? 255 * random_below(2) : random_below(256));
  std::vector<long> dense(k * n), sums(batch * n);
  for (size_t j = 0; j + 1 < index.indptr.size; j++)
    for (long e = index.indptr[j]; e < index.indptr[j + 1]; e++)
      for (long r = 0; r < bk; r++)
        for (long c = 0; c < bn; c++) {
          const long row = index.rows[e] * bk + r, column = (long)j * bn + c;
          if (row < k && column < n) dense[row * n + column] = values[(e * bk + r) * bn + c];
        }
  for (long m = 0; m < batch; m++)
    for (long i = 0; i < k; i++) {
      const long code = with_sign ? (int8_t)x[m * k + i] : x[m * k + i];
      for (long c = 0; c < n; c++) sums[m * n + c] += (code - zero) * dense[i * n + c];
    }
  Exact<float> scales(n), bias(n);
  for (long c = 0; c < n; c++) {
    scales[c] = 0.01f + std::fabs(random_float());
    bias[c] = random_float();
  }
  const BlockWeights w{k,  n, bk, bn, kI8, values.get(), index.indptr.get(), index.rows.get(),
                       (long)index.rows.size};
  const Codes codes{x.get(), with_sign, batch, k, 0.003f, zero};
  Exact<int32_t> exact(batch * n);
  int8_dot(pool, codes, w, scales.get(), nullptr, {kOutI32, false, 1.f, 0}, exact.get());
  const bool relu = one_in(2), signed_out = one_in(2);
  const int out_zero = random_below(256) - (signed_out ? 128 : 0);
  Exact<float> floats = unwritten(batch * n);
  int8_dot(pool, codes, w, scales.get(), bias.get(), {kOutF32, relu, 1.f, 0}, floats.get());
  Exact<uint8_t> bytes(batch * n);
  int8_dot(pool, codes, w, scales.get(), bias.get(),
           {signed_out ? kOutI8 : kOutU8, relu, 4.f, out_zero}, bytes.get());
  for (long i = 0; i < batch * n; i++) {
    if (exact[i] != sums[i]) return fail("an integer sum differs");
    double y = (double)(0.003f * scales[i % n]) * (double)sums[i];
    const double near = 1e-6 * (1 + std::fabs(y));
    y += bias[i % n];
    y = relu ? std::fmax(y, 0) : y;
    if (!(std::fabs(floats[i] - y) <= near)) return fail("a float of sums differs");
    const double low = signed_out ? -128 : 0;
    const double code = std::fmin(std::fmax(4 * y + out_zero, low), low + 255);
    const int found = signed_out ? (int8_t)bytes[i] : bytes[i];
    if (!(std::fabs(found - code) <= 0.5 + 4 * near)) return fail("a code of sums differs");
  }
}

// Small, or as large as `most`: edges lie near multiples of a vector and of a tile.
int random_size(int most) {
  if (one_in(20)) return 0;
  const int size = one_in(3) ? random_between(1, 20) : random_between(1, most);
  return one_in(3) ? std::max(1, size / 16 * 16 + random_between(-1, 1)) : size;
}

void run(long i) {
  rng.seed((unsigned)i);
  number = i;
  const int storage = random_below(6), dtype = random_below(3);
  const Density density;
  // One case in ten is deep, so that weights are cut into tiles and few columns share a thread.
  const bool deep = one_in(10);
  const long k = deep ? random_size(9000) : random_size(330);
  const long n = random_size(deep ? 40 : 150);
  const long batch = one_in(10) ? random_between(100, 200) : random_size(80);
  Threads pool(one_in(2) ? 1 : random_between(2, 6));
  static const char* const kNames[] = {"block", "csc 16", "csc 32", "bitmap", "nm", "int8"};
  std::snprintf(drawn, sizeof drawn, "%s, dtype %d, %ld x %ld x %ld, %d %%, %d threads",
                kNames[storage], dtype, batch, k, n, density.percent, pool.threads());
  Problem p(batch, k, n);
  switch (storage) {
    case 0: return test_block(pool, p, dtype, density);
    case 1: return test_csc<uint16_t>(pool, p, dtype, density);
    case 2: return test_csc<int32_t>(pool, p, dtype, density);
    case 3: return test_bitmap(pool, p, dtype, density);
    case 4: return test_nm(pool, p, dtype);
    default: return test_int8(pool, p, density);
  }
}

}  // namespace
}  // namespace jaxsparse

int main(int count, char** arguments) {
  using namespace jaxsparse;
  if (isa_error()) {
    std::printf("%s\n", isa_error());
    return 0;
  }
#ifdef JAXSPARSE_SANITIZE
  __sanitizer_set_death_callback([] { std::fprintf(stderr, "case %ld, %s\n", number, drawn); });
#endif
  const long cases = count > 1 ? std::atol(arguments[1]) : 300;
  const long first = count > 2 ? std::atol(arguments[2]) : 0;
  for (long i = first; i < first + cases; i++) run(i);
  std::printf("%s: %ld cases %s\n", kernels().name, cases, failures ? "FAILED" : "passed");
  return failures != 0;
}
