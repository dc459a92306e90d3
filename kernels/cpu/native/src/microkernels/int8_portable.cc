#define LANES 4
#define INT8_TABLE kInt8Portable
#define INT8_NAME "portable"
#define INT8_ROWS 4
#include "microkernels/int8-inl.h"
