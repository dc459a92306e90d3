#define LANES 16
#define TABLE kAvx512
#define TABLE_NAME "avx512"
#include "microkernels/table-inl.h"
