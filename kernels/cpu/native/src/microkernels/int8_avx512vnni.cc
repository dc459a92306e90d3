#define LANES 16
#define INT8_TABLE kInt8Avx512Vnni
#define INT8_NAME "avx512vnni"
#define INT8_ROWS 28
#define INT8_DOT
#include "microkernels/int8-inl.h"
