// One instruction set's table. The including file defines LANES, TABLE and TABLE_NAME.
#include "kernels.h"
#include "microkernels/bitmap-inl.h"
#include "microkernels/bitmap_dot-inl.h"
#include "microkernels/block-inl.h"
#include "microkernels/csc_panel-inl.h"
#include "microkernels/csc_scatter-inl.h"
#include "microkernels/csc_tiles-inl.h"
#include "microkernels/image-inl.h"
#include "microkernels/nm_quads-inl.h"
#include "microkernels/nm_rows-inl.h"
#include "microkernels/outer-inl.h"
#include "microkernels/panels-inl.h"
#include "microkernels/pairs-inl.h"
#include "microkernels/peak-inl.h"
#include "microkernels/tile_dot-inl.h"

namespace jaxsparse {

extern const Kernels TABLE = {
    TABLE_NAME,       LANES,       kRowsHeld,   kNarrowRows,
    kTileVectors,     pack_panel,  pack_rows,   turn,        copy_pieces, store_panel,
    block_panel,      block_rows,  widen_any,   widen_transposed,
    outer,            tile_dot,    nm_quads,    quads_dot,
    csc_cut,          csc_copy,    descents,
    csc_panel,        csc_scatter, bitmap_rows, bitmap_dot,
    bitmap_sums,
    nm_rows,
    kPairVectors,     pairs_dot,   pairs_outer,
    fma_rounds,       read_all,
};

}  // namespace jaxsparse
