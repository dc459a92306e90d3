#define LANES 8
#define TABLE kAvx2
#define TABLE_NAME "avx2"
#include "microkernels/table-inl.h"
