#define LANES 16
#define INT8_TABLE kInt8Avx512
#define INT8_NAME "avx512"
#define INT8_ROWS 16
#include "microkernels/int8-inl.h"
