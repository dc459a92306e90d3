#define LANES 8
#define INT8_TABLE kInt8Avx2
#define INT8_NAME "avx2"
#define INT8_ROWS 6
#include "microkernels/int8-inl.h"
