// XLA FFI handlers of sparse convolution; part of ffi.cc, whose helpers it uses.
//
//     pairs     x, w, index, order -> y         columns of an index are outputs, rows are taps
//     outer     x, g, index, order -> dw
//     sort      keys -> keys in order, their places before
//     distinct  keys -> those that differ, how many there are
//     map       keys and rows, fine and coarse -> index, reverse

// Multiplications below which the calling thread works alone, if every pair were there.
constexpr long kPairsAlone = 1024 * 1024;

const int32_t* whole_numbers(const Buffer& b, size_t axes) {
  return data<int32_t>(b, Type::S32, axes, "keys, rows and indices must be int32");
}

PairTable pair_table(const Buffer& index, const Buffer& order, long inputs) {
  const PairTable table{dim(index, 0), dim(index, 1), inputs, whole_numbers(index, 2),
                        whole_numbers(order, 1)};
  require(dim(order, 0) == table.outputs, "an order needs a row for every output");
  bool inside = true;
  for (long j = 0; j < table.outputs; j++)
    inside &= (uint64_t)(uint32_t)table.order[j] < (uint64_t)table.outputs;
  require(inside, "an order names a row that is not there");
  return table;
}

const float* floats(const Buffer& b) {
  return data<float>(b, Type::F32, 3, "weights must be float32 with three axes");
}

ffi::Error cloud_pairs(ffi::ThreadPool threads, Buffer x, Buffer w, Buffer index, Buffer order,
                       ffi::Result<Buffer> y) {
  return run(threads, [&](Pool& all) {
    const Matrix in = matrix(x), out = matrix(*y);
    const PairTable table = pair_table(index, order, in.rows);
    const float* weights = floats(w);
    require(dim(w, 0) == table.taps && dim(w, 1) == in.columns && dim(w, 2) == out.columns &&
                out.rows == table.outputs,
            "weights must be (taps, columns of x, columns of y)");
    OneThread one;
    const bool alone = table.outputs * (long)w.element_count() <= kPairsAlone;
    pairs_product(alone ? static_cast<Pool&>(one) : all, in, weights, out.columns, table,
                  static_cast<float*>(y->untyped_data()));
  });
}

ffi::Error cloud_outer(ffi::ThreadPool threads, Buffer x, Buffer g, Buffer index, Buffer order,
                       ffi::Result<Buffer> dw) {
  return run(threads, [&](Pool& all) {
    const Matrix in = matrix(x), out = matrix(g);
    const PairTable table = pair_table(index, order, in.rows);
    floats(*dw);
    require(dim(*dw, 0) == table.taps && dim(*dw, 1) == in.columns &&
                dim(*dw, 2) == out.columns && out.rows == table.outputs,
            "what is sampled must be (taps, columns of x, columns of g)");
    OneThread one;
    const bool alone = table.outputs * (long)dw->element_count() <= kPairsAlone;
    pairs_sampled(alone ? static_cast<Pool&>(one) : all, in, out, table,
                  static_cast<float*>(dw->untyped_data()));
  });
}

// A sort by digits has no room for a sign.
const int32_t* keys_of(const Buffer& b) {
  const int32_t* keys = whole_numbers(b, 1);
  int32_t signs = 0;
  for (long i = 0; i < dim(b, 0); i++) signs |= keys[i];
  require(signs >= 0, "a key is negative");
  return keys;
}

ffi::Error cloud_sort(ffi::ThreadPool threads, Buffer keys, ffi::Result<Buffer> sorted,
                      ffi::Result<Buffer> order) {
  return run(threads, [&](Pool&) {
    const int32_t* from = keys_of(keys);
    whole_numbers(*sorted, 1), whole_numbers(*order, 1);
    require(dim(*sorted, 0) == dim(keys, 0) && dim(*order, 0) == dim(keys, 0), "lengths differ");
    sort_places(from, dim(keys, 0), static_cast<int32_t*>(sorted->untyped_data()),
                static_cast<int32_t*>(order->untyped_data()));
  });
}

ffi::Error cloud_distinct(ffi::ThreadPool threads, Buffer keys, ffi::Result<Buffer> kept,
                          ffi::Result<Buffer> needed) {
  return run(threads, [&](Pool&) {
    const int32_t* from = keys_of(keys);
    whole_numbers(*kept, 1), whole_numbers(*needed, 0);
    *static_cast<int32_t*>(needed->untyped_data()) =
        (int32_t)distinct_places(from, dim(keys, 0), dim(*kept, 0),
                                 static_cast<int32_t*>(kept->untyped_data()));
  });
}

// Places in rising order, of which each has a row of its own.
Places places(const Buffer& keys, const Buffer& rows) {
  const Places found{dim(keys, 0), keys_of(keys), whole_numbers(rows, 1)};
  require(dim(rows, 0) == found.capacity, "keys and rows differ in length");
  bool inside = true;
  for (long i = 0; i < found.capacity; i++)
    inside &= (uint64_t)(uint32_t)found.rows[i] < (uint64_t)found.capacity;
  require(inside, "rows name one that is not there");
  require(std::is_sorted(found.keys, found.keys + found.capacity), "keys do not rise");
  return found;
}

// What one axis of a window says, an attribute each.
std::vector<WindowAxis> window_axes(const ffi::Dictionary& attributes) {
  std::vector<WindowAxis> axes;
  const auto read = [&](const char* name, long WindowAxis::*field) {
    const auto found = attributes.get<ffi::Span<const int64_t>>(name);
    require(found.has_value() && found->size() >= 1 && found->size() <= 16,
            "a window needs a number for each of 1 to 16 axes");
    if (axes.empty()) axes.resize(found->size());
    require(axes.size() == found->size(), "a window's axes differ in number");
    for (size_t a = 0; a < axes.size(); a++) axes[a].*field = (long)(*found)[a];
  };
  read("size", &WindowAxis::size);
  read("stride", &WindowAxis::stride);
  read("dilation", &WindowAxis::dilation);
  read("shift", &WindowAxis::shift);
  read("fine", &WindowAxis::fine);
  read("coarse", &WindowAxis::coarse);
  for (const WindowAxis& axis : axes)
    require(axis.size >= 1 && axis.stride >= 1 && axis.fine >= 1 && axis.coarse >= 1,
            "sizes and strides must be at least 1");
  return axes;
}

ffi::Error cloud_map(ffi::ThreadPool threads, ffi::Dictionary attributes, Buffer fine_keys,
                     Buffer fine_rows, Buffer coarse_keys, Buffer coarse_rows,
                     ffi::Result<Buffer> index, ffi::Result<Buffer> reverse) {
  return run(threads, [&](Pool& pool) {
    const Places fine = places(fine_keys, fine_rows), coarse = places(coarse_keys, coarse_rows);
    const std::vector<WindowAxis> axes = window_axes(attributes);
    long taps = 1;
    for (const WindowAxis& axis : axes) taps *= axis.size;
    whole_numbers(*index, 2), whole_numbers(*reverse, 2);
    require(dim(*index, 0) == taps && dim(*index, 1) == coarse.capacity &&
                dim(*reverse, 0) == taps && dim(*reverse, 1) == fine.capacity,
            "index must be (taps, coarse rows), reverse (taps, fine rows)");
    const auto mirrors = attributes.get<bool>("mirrors");
    place_pairs(pool, fine, coarse, axes, mirrors.has_value() && *mirrors,
                static_cast<int32_t*>(index->untyped_data()),
                static_cast<int32_t*>(reverse->untyped_data()));
  });
}
